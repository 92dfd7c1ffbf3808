"""Other wordings of a taught question.

A correction comes in one wording, and a model that sees only that one learns the wording and not
the fact. So every visit of a taught example asks in another way, by rules of English grammar
(question words, inversion, pronouns), by frames that people put around a question, and by the loss
of small words. Text that is no English question is left whole and only gets the harmless changes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

QUESTION = re.compile(
    r"^(?P<word>what|which|who|whom|whose|where|when|why|how)\b(?P<rest>.*)$", re.IGNORECASE | re.DOTALL
)
COPULA = re.compile(r"^(?:'s|\s+(?:is|are|was|were))\s+(?P<topic>\S.*)$", re.IGNORECASE | re.DOTALL)
# "What is the kettle good for": no topic stands behind the verb, but a clause whose object is asked for.
DANGLING = re.compile(
    r"^(?:'s|\s+(?P<be>is|are|was|were))\s+(?P<subject>(?:(?:the|our|my|your|his|her|their|a|an)\s+)?\S+)\s+"
    r"(?P<rest>\S.*\s(?:to|for|with|at|of|from|in|on|about|against|by))$",
    re.IGNORECASE | re.DOTALL,
)
AUXILIARY = re.compile(
    r"^(?P<noun>.*?)\s+(?P<verb>do|does|did|can|could|should|must|will|would|may)\s+"
    r"(?P<subject>(?:(?:the|our|my|your|his|her|their|a|an|mr|mrs|ms|dr)\s+)?\S+)\s+(?P<rest>\S.*)$",
    re.IGNORECASE | re.DOTALL,
)
SMALL = frozenset(
    re.findall(
        r"\w+",
        "a an the is are was were be been do does did to of for in on at by with from and or our my your we "
        "i you it this that there have has had can could should would will must may me us please",
    )
)
# Words that name no thing by themselves.
BLAND = frozenset(
    re.findall(
        r"\w+",
        "name number day time date place kind type sort called call come comes go goes need needs get gets "
        "use used keep kept put take takes make makes much many often long new old set want know",
    )
)
DETERMINER = re.compile(r"^(?:the|our|my|your|his|her|their|a|an)\s+", re.IGNORECASE)
ASKING = frozenset(("what", "which", "who", "whom", "whose", "where", "when", "why", "how"))
SWAPS = (
    (r"\bour\b", ("the", "my", "your")),
    (r"\bmy\b", ("the", "our")),
    (r"\bwe\b", ("I", "you", "they")),
    (r"\bI\b", ("we", "one")),
    (r"\bthe\b", ("our", "my")),
)
TOPIC_FORMS = {
    "what": (
        "Tell me {t}.", "{T}?", "I need {t}.", "Do you know {t}?", "Can you give me {t}?", "I forgot {t}.",
        "{T}, what is it?", "{T} is what?", "What would be {t}?", "Which one is {t}?", "What was {t} again?",
        "How do I get {t}?", "Give me {t}, please.", "I am looking for {t}.", "Remind me of {t}.",
        "Which {n} do we use?", "Which {n} do I need?", "Which {n} is right?", "I need the right {n}.",
    ),
    "where": (
        "Where can I find {t}?", "Where do I look for {t}?", "I am looking for {t}.", "I can't find {t}.",
        "In which place is {t}?", "Where do we keep {t}?", "Where did we put {t}?", "I need {t}.",
        "Where would {t} be?", "What is the place of {t}?", "How do I find {t}?", "{T}?",
        "Tell me where {t} is.", "Do you know where {t} is?", "How do I get to {t}?",
        "Where is the {n} kept?", "Has anybody seen {t}?",
    ),
    "who": (
        "What is the name of {t}?", "What is {t} called?", "Tell me who {t} is.", "Do you know {t}?",
        "Which person is {t}?", "{T}?", "Whom do I call when I need {t}?", "What name does {t} have?",
        "I forgot the name of {t}.", "Give me the name of {t}.", "Which one is {t}?", "Which {n} do we use?",
        "Which {n} should I call?", "Which {n} do I ask?", "Can you recommend a {n}?", "I need a {n}.",
    ),
    "when": (
        "On which day is {t}?", "At what time is {t}?", "What is the date of {t}?", "What day is {t}?",
        "When exactly was {t}?", "On what date is {t}?", "{T} is when?", "{T}?", "Tell me when {t} is.",
        "Which day is it for {t}?", "What time is {t}?", "Do you know when {t} is?", "When do we have {n}?",
        "When does {t} take place?", "Which day do I have to remember for {t}?",
    ),
    "which": ("What is {t}?", "Tell me which is {t}.", "{T}?", "Do you know {t}?", "Give me {t}."),
    "how": ("Tell me how {t} is.", "How about {t}?", "{T}?", "Do you know how {t} is?"),
    "why": ("Tell me why {t} is so.", "What is the reason for {t}?", "{T}, why?"),
}  # fmt: skip
SYNONYMS = {
    "what": ("which", "what exactly"),
    "which": ("what",),
    "where": ("in what place", "where exactly", "at which place"),
    "when": ("on which day", "at what time", "on what date", "what day", "what time"),
    "who": ("which person", "who exactly"),
    "how": ("in what way", "how exactly"),
    "why": ("for what reason",),
}
INDIRECT = (
    "Tell me {q}.", "Can you tell me {q}?", "Do you know {q}?", "I want to know {q}.", "I forgot {q}.",
    "Could you remind me {q}?", "Please tell me {q}.", "I wonder {q}.", "I am not sure {q}.",
)  # fmt: skip
KEYWORD_FORMS = (
    "{k}", "{K}?", "{k} please", "Tell me about {k}.", "I have a question about {k}.", "Info on {k}?",
    "What about {k}?", "What do you know about {k}?", "Question: {k}", "Can you help me with {k}?",
    "What should I know about {k}?",
)  # fmt: skip
# What leads somebody to ask: a person tells the occasion first.
OCCASIONS = (
    "There is something with {k}.", "It is about {k}.", "I need help with {k}.", "We talked about {k}.",
    "My question is on {k}.", "I have to take care of {k}.", "I could not find anything on {k}.",
)  # fmt: skip
# Somebody in the middle of something names the thing, and asks without naming it again.
SITUATIONS = (
    "The {k} does not work any more", "The {k} is broken", "Something is wrong with the {k}",
    "The {k} again", "I am standing in front of the {k}", "I want to use the {k}",
    "We have a problem with the {k}", "I have to pay for the {k}", "I got a letter about the {k}",
    "Somebody is asking me about the {k}", "I'm on the phone because of the {k}",
    "I have to fill in {k} on a form", "It is time for the {k}", "We need something for the {k}",
    "I am buying something for {k}", "I want to give {k} a present", "I am at the shop for the {k}",
    "We have to talk about the {k}", "I am looking after the {k} this week",
    "I would like to plan the {k}", "{K} is ill", "{K} is waiting for me", "I am going to meet {k} today",
    "I am new here and have to do with the {k}", "The {k} has to be ready soon",
    "There was a call for {k}", "My sister wants to know about the {k}",
    "I have never done anything with the {k}", "I lost my note on {k}",
    "I am writing down everything on {k}", "It is dark and I need the {k}", "We are short of {k}",
    "I can't deal with the {k} alone", "I must not forget the {k}", "A visitor came for the {k}",
    "The children are asking about {k}", "I want to open the {k}", "I have to reach the {k}",
    "I'd like to switch the {k} on", "I have an appointment for the {k}", "I am cleaning the {k}",
)  # fmt: skip
ENDS = {
    "what": (
        "what is it?", "what do I need?", "what was it again?", "what should I take?", "what do I do?",
        "which one is it?", "what do I enter?", "what do I say?", "what is right?", "what do we have?",
        "what is it called?", "what must I know?",
    ),
    "which": (
        "which one is it?", "which one do I need?", "which do we use?", "what is the right one?",
        "which one do I take?", "what do I need?", "which was it again?", "which one do I choose?",
    ),
    "where": (
        "where is it?", "where do I look?", "where should I go?", "where can I find that?",
        "where do I start?", "in which place?", "where was it again?", "where do we keep that?",
        "where do I get it?",
    ),
    "who": (
        "who is it?", "whom do I call?", "who can help?", "whom do I ask?", "who takes care of that?",
        "what is the name?", "who was it again?", "with whom do I talk?", "which person is it?",
        "who does it?",
    ),
    "when": (
        "when is it?", "which day is it?", "at what time?", "how long until then?", "when was it again?",
        "when do I have to be ready?", "is it soon?", "what day do I write down?", "which month is it?",
    ),
    "how": (
        "how does it work?", "what should I do?", "how do I do it?", "what do I press?",
        "what is the way?", "how much is it?", "how was it again?", "what do I have to know?",
        "how do we do that?",
    ),
    "why": (
        "why is that?", "what is the reason?",
    ),
}  # fmt: skip
ENDS |= {"whom": ENDS["who"], "whose": ENDS["who"]}
# What somebody wants to do with the thing tells what they need to know.
WISHES = (
    "How do I use the {k}?", "How do I get into the {k}?", "How do I start the {k}?",
    "How do I reach the {k}?", "How do I get to the {k}?", "How can I call the {k}?",
    "How do I find the {k}?", "How do I get the {k}?", "How do I turn the {k} on?",
    "How do I turn the {k} off?", "How can I open the {k}?", "How do I order {k}?",
    "How do I pay for the {k}?", "How do I look after the {k}?", "How do I choose the {k}?",
    "How is the {k} done?", "Can I use the {k} now?", "Who knows the {k}?", "Does the {k} have one?",
    "What do I do for the {k}?", "What do I put in for the {k}?", "What belongs to the {k}?",
    "What can you say about the {k}?", "What have we got for the {k}?", "Is there anything about the {k}?",
    "What is on the {k}?",
)  # fmt: skip
BEFORE = (
    "Hi! ", "Hello, ", "Hey, ", "Quick question: ", "Please help me. ", "I just came home. ", "Sorry, ",
    "One more thing: ", "We have visitors. ", "I am in a hurry. ", "I don't remember. ", "Good morning! ",
    "Something came up. ", "My friend is asking: ", "I need this now: ", "So, ", "Okay, ",
)  # fmt: skip
AFTER = (" Thanks!", " Please.", " Thank you.", " I forgot.", " I need to know.", " Please answer briefly.")


def reword(query: str, rng: random.Random) -> str:
    """One other wording, drawn at random; sometimes the query itself."""
    text = query.strip()
    match = QUESTION.match(text)
    if match is not None and keywords(text) and len(text) <= 200:
        forms = list(_forms(text, match, rng))
        # The kinds count alike, however many forms a kind has.
        text = rng.choice(forms)
        if rng.random() < 0.3:
            text = _swap(text, rng)
        if rng.random() < 0.15:
            text = _lose_word(text, rng)
        draw = rng.random()
        if draw < 0.25:
            text = rng.choice(BEFORE) + text
        elif draw < 0.35:
            text = f"{rng.choice(OCCASIONS).format(k=rng.choice(keywords(query)))} {text}"
        if rng.random() < 0.1:
            text = text + rng.choice(AFTER)
    return _style(text, rng)


def _forms(text: str, match: re.Match[str], rng: random.Random) -> Iterator[str]:
    """One form of each kind that applies."""
    word, rest = match["word"].lower(), match["rest"].rstrip(" ?.!")
    yield text
    yield rng.choice(SYNONYMS.get(word, (word,))).capitalize() + rest + "?"
    topic_words = keywords(text)
    keys = topic_words.copy()
    if rng.random() < 0.5:
        rng.shuffle(keys)
    # Not all of them: another wording may share but a few words with this one.
    kept = sorted(rng.sample(range(len(keys)), rng.randint((len(keys) + 1) // 2, len(keys))))
    joined = " ".join(keys[at] for at in kept)
    for _ in range(2):
        yield _situation(word, topic_words, rng)
    yield f"{match['word'].capitalize()} {joined}?"
    yield rng.choice(KEYWORD_FORMS).format(k=joined, K=_capital(joined))
    dangling = DANGLING.match(rest)
    if dangling is not None:
        be, subject, last = dangling["be"] or "is", dangling["subject"], dangling["rest"]
        for _ in range(2):
            yield rng.choice(INDIRECT).format(q=f"{word} {subject} {be} {last}")
        yield f"{be.capitalize()} {subject} {last} {rng.choice(('something', 'anything'))}?"
        return
    copula = COPULA.match(rest)
    if copula is not None:
        topic = copula["topic"]
        # Three times: a topic has the richest forms.
        for _ in range(3):
            form = rng.choice(TOPIC_FORMS.get(word, TOPIC_FORMS["what"]))
            yield form.format(t=topic, T=_capital(topic), n=DETERMINER.sub("", topic))
        return
    auxiliary = AUXILIARY.match(rest)
    if auxiliary is not None:
        verb = auxiliary["verb"].lower()
        modal = "" if verb in ("do", "does", "did") else f" {verb}"
        clause = f"{word}{auxiliary['noun']} {auxiliary['subject']}{modal} {auxiliary['rest']}"
        for _ in range(2):
            yield rng.choice(INDIRECT).format(q=clause)
        yield f"{_capital(auxiliary['subject'])}{modal} {auxiliary['rest']} {word}{auxiliary['noun']}?"
        return
    yield rng.choice(INDIRECT).format(q=f"{word}{rest}")


def _situation(word: str, keys: list[str], rng: random.Random) -> str:
    """One that names a part of the topic: a wish, or what is the matter, before or after the question."""
    keys = [key for key in keys if key.lower() not in BLAND] or keys
    first = rng.randrange(len(keys))
    named = " ".join(keys[first : first + rng.randint(1, 2)])
    draw = rng.random()
    if draw < 0.25:
        return rng.choice(WISHES).format(k=named)
    told = rng.choice(SITUATIONS).format(k=named, K=_capital(named))
    asked = rng.choice(ENDS[word])
    draw = rng.random()
    if draw < 0.5:
        return f"{told}, {asked}"
    if draw < 0.8:
        return f"{told}{rng.choice('.!')} {_capital(asked)}"
    return f"{_capital(asked)} {told}."


def keywords(text: str) -> list[str]:
    """The words that carry the topic."""
    words = re.findall(r"[\w'-]+", text)
    return [word for word in words if word.lower() not in SMALL | ASKING]


def _swap(text: str, rng: random.Random) -> str:
    pattern, others = rng.choice(SWAPS)
    return re.sub(pattern, rng.choice(others), text)


def _lose_word(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    small = [at for at, word in enumerate(words) if word.lower().strip("?.,!") in SMALL]
    if small and len(words) > 3:
        del words[rng.choice(small)]
    return " ".join(words)


def _style(text: str, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.15:
        text = text.lower()
    elif draw < 0.2:
        text = text.upper()
    if rng.random() < 0.15:
        text = text.rstrip("?.! ")
    return text


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
