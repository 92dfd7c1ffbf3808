"""What front ends ask for themselves: titles, tags, follow-up questions, search queries and the like.

A person never sees the question, and the answer says nothing of how people want to be answered.

No field of OpenAI's API tells. Some front ends say it in `metadata`; all of them send prompts of their own,
which are known here by how they begin. That is long and odd enough that nobody types it: a person who wants
"a title for my essay" asks a question like any other. Where a beginning could be a person's, something that
only the front end writes has to be there too.

The prompts are those of Open WebUI (`backend/open_webui/config.py`, since 0.3), Page Assist, LibreChat (its
`agents`), LobeChat (`chainSummaryTitle` and others), big-AGI (`autoTitle`), NextChat, Cherry Studio, Chatbox,
HuggingChat, Jan, Continue and opencode, as of 2026. Owners can write their own in some of them; one that
keeps what Open WebUI fills in is still known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.store.normalise import message_text

LOOKED_AT = 4000
"""Characters of the beginning, and of the end, of a message: what is said in between is the conversation."""

TASKS = frozenset(
    {
        "title_generation",
        "tags_generation",
        "follow_up_generation",
        "emoji_generation",
        "query_generation",
        "image_prompt_generation",
        "autocomplete_generation",
        "function_calling",
        "moa_response_generation",
    }
)
"""Open WebUI's names, in `metadata.task`."""


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


# "Respond to the user query using the provided context" begins with "### Task:" too: a person's question.
_BEGINS = _any(
    # Open WebUI
    r"#{1,4} task:?\s+generate a concise,? (?:and )?\d",
    r"#{1,4} task:?\s+generate \d-\d broad tags",
    r"#{1,4} task:?\s+suggest \d-\d relevant follow-?up",
    r"#{1,4} task:?\s+analyze the chat history to (?:determine|generate)",
    r"#{1,4} task:?\s+you are an autocompletion system",
    r"#{1,4} task:?\s+generate a detailed prompt for an?m? image",
    r"create a concise,? \d-\d word (?:title|phrase)\b.{0,120}\b(?:previous|following) (?:prompt|query)",
    r"create a concise,? \d-\d word (?:title|phrase)\b.{0,120}\b(?:the chat history|suitable emojis)",
    r"your task is to reflect the speaker's likely facial expression",
    r"you have been provided with a set of responses from various models to the latest user query",
    r"generate a concise,? \d-\d word title\b.{0,60}\bsummari[sz]ing the (?:chat history|conversation)",
    # LibreChat
    r"(?:please )?(?:provide|generate|write) a concise,? (?:\d|five)-word-or-less title for (?:the|this) ",
    r"write a concise title for this conversation in the given language",
    r"analy[sz]e this conversation and provide:\s+1\. the detected language",
    r"in this environment you have access to a set of tools you can use to generate the conversation title",
    # big-AGI
    r"analy[sz]e the given short conversation \(every line is truncated\)",
    # NextChat, Cherry Studio, Chatbox, Jan, Continue, opencode
    r"please generate a four to five word title summari[sz]ing our conversation without any lead-?in",
    r"summari[sz]e the discussion briefly in 200 words or less to use as a prompt for future context",
    r"summari[sz]e the given session as a \d+-word title",
    r"based on the chat history, (?:please )?(?:give|name) this conversation",
    r"summari[sz]e in a (?:maximum )?\d+[- ]words? title\. give the title only",
    r"given the following\.\.\. please reply with a title for the chat",
    r"generate a title for this conversation:\s",
)
# Of messages that put the conversation first, and the wish after it.
_ENDS = _any(
    r"please summari[sz]e the above conversation into a title within \d+ (?:words|characters)",
    r"please generate a four to five word title summari[sz]ing our conversation",
    r"please reply with a title for the chat that is \d-\d words",
    "请总结上述对话为\\d+个字以内的标题",
)
# Older prompts of Open WebUI, and of those that took it over.
_QUERY_FIRST = _any(r"here is the query:\s")
_QUERY_LAST = _any(r"create a concise,? \d-\d word (?:title|phrase)\b.{0,80}\bprevious (?:query|prompt)")
_FILLED_IN = ("<chat_history>", "</chat_history>")
_WANTS_JSON = _any(r'"(?:title|tags|follow_ups|queries|text)"\s*:')
_SYSTEM = _any(
    r"you are (?:an ai|a) conversation titles? assistant",
    r"you are a professional conversation summari[sz]er\. generate a concise title",
    r"you are a conversation-savvy assistant\. summari[sz]e the conversation into a title",
    r"you are an assistant (?:who is )?skilled in conversation.{0,80}\btitles?\b",
    r"you are a summari[sz]ation ai\.? .{0,40}your task is to summari[sz]e the user's request in a single",
    r"you are a title generator\. you output only",
    r"you are an emoji expert\.\s+rules:",
    r"summari[sz]e the given session as a \d+[- ]word title",
    "你是一名擅长会话的助理.{1,3}你需要将用户的会话总结为",
)
_PICKS_TOOLS = ("Available Tools: ", "Your task is to choose and return the correct tool(s)")


def is_chore(messages: Sequence[Mapping[str, Any]], task: str = "") -> bool:
    """Whether a front end asks this for itself.

    Args:
        messages: the conversation.
        task: what the request itself says it is for.
    """
    if task.rpartition(".")[2].lower() in TASKS:  # "TASKS.TITLE_GENERATION", in some versions
        return True
    user = next((message for message in reversed(messages) if message.get("role") == "user"), None)
    if user is not None and _asks_for_itself(message_text(user).strip()):
        return True
    first = messages[0] if messages else {}
    if first.get("role") != "system":
        return False
    begins, goes_on = _PICKS_TOOLS
    text = message_text(first).strip()
    return bool(_SYSTEM.match(text[:LOOKED_AT])) or (text.startswith(begins) and goes_on in text)


def _asks_for_itself(text: str) -> bool:
    head, tail = text[:LOOKED_AT], text[-LOOKED_AT:]
    opens, closes = _FILLED_IN
    return bool(
        _BEGINS.match(head)
        or (_QUERY_FIRST.match(head) and _QUERY_LAST.search(tail))
        or _ENDS.match(tail.rpartition("\n\n")[2])
        or (text.endswith(closes) and opens in text and _WANTS_JSON.search(head))
    )
