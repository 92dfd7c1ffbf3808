"""How to use this box from a program: the same first request in three languages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sanic import Request

from appliance.console.render import is_https
from appliance.origin import is_loopback

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")

_CURL = """\
curl {url}/chat/completions \\
  -H "Authorization: Bearer {key}" \\
  -H "Content-Type: application/json" \\
  -d '{{"model": "shammah", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
"""
_PYTHON = """\
from openai import OpenAI

client = OpenAI(
    base_url="{url}",
    api_key="{key}",
)
answer = client.chat.completions.create(
    model="shammah",
    messages=[{{"role": "user", "content": "Hello!"}}],
)
print(answer.choices[0].message.content)
"""
_JAVASCRIPT = """\
import OpenAI from "openai";

const client = new OpenAI({{
  baseURL: "{url}",
  apiKey: "{key}",
}});
const answer = await client.chat.completions.create({{
  model: "shammah",
  messages: [{{ role: "user", content: "Hello!" }}],
}});
console.log(answer.choices[0].message.content);
"""


@dataclass(frozen=True)
class Snippet:
    """A small program to copy.

    Attributes:
        name: for ids in the page.
        title: the language.
    """

    name: str
    title: str
    text: str


def key_usage(request: Request, key: str) -> dict[str, Any]:
    """What the page with a new key shows (`parts/key_usage.html`): once, it is not kept for a reload."""
    request.ctx.once = bool(key)
    url = base_url(request)
    return {"key": key, "url": url, "local": names_this_machine(url), "snippets": snippets(url, key)}


def snippets(url: str, key: str) -> tuple[Snippet, ...]:
    """A first request with this address and key."""
    return tuple(
        Snippet(name, title, text.format(url=url, key=key))
        for name, title, text in (
            ("python", "Python", _PYTHON),
            ("javascript", "JavaScript", _JAVASCRIPT),
            ("curl", "curl", _CURL),
        )
    )


def base_url(request: Request) -> str:
    """The API's address as this browser would name it: the host it has reached the console by."""
    host = request.host
    if not _HOST.fullmatch(host):  # it ends up in a program: nothing but a host may be in it
        host = request.conn_info.server if request.conn_info else "127.0.0.1"
    return f"{'https' if is_https(request) else 'http'}://{host}/v1"


def names_this_machine(url: str) -> bool:
    """Whether other machines would reach themselves at this address, not the box."""
    host = url.partition("://")[2].partition("/")[0]
    return is_loopback(host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0])
