"""Private texts in what devices say are masked before it becomes an example.

Conservative: masked is what can be told for certain by its own check digits, by the numbering plan
of its country or by an unmistakable form. What a person teaches never comes here: "The plumber's
number is +44 20 7946 0958" is taught in order to be known.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import phonenumbers
from phonenumbers import Leniency, PhoneNumberMatcher
from stdnum import iban, luhn

from appliance.store.examples import NewExample

Spans = Iterator[tuple[int, int]]

# Prefixes that issuers gave their keys so that scanners know them.
_KEY = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"sk-[A-Za-z0-9_-]{20,}"  # OpenAI, Anthropic, this box's own device keys
    r"|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,}"
    r"|glpat-[A-Za-z0-9_-]{20,}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{20,}"  # Slack
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}"  # AWS
    r"|AIza[A-Za-z0-9_-]{35}"  # Google
    r"|[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"  # Stripe
    r"|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}"
    r"|SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"  # SendGrid
    r"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"  # JSON Web Token
    r")"
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY-----.*?(?:-----END (?:[A-Z]+ ){0,3}PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
# Limits as in RFC 5321. An address starts where no part of one stands before it, which also keeps a
# long text without any from being read again and again.
_EMAIL = re.compile(
    r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w@])"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,40}")
# Cards begin with 2 to 6. One number in ten passes the check digit, so only the lengths in use count:
# 14 and 15 digits with a 3 in front (Diners Club, American Express), 16 and 19 for all others.
_CARD = re.compile(
    r"(?<![\w+])(?<!\d[.,-])[2-6]\d{3}([ -]?)\d{4,7}(?:\1\d{4,5}){1,2}(\1\d{1,3})?(?!\w|[.,-]\d)"
)
_CARD_DIGITS = re.compile(r"3\d{13,14}|[2-6]\d{15}|[2-6]\d{18}")
_MAYBE_PHONE = re.compile(r"\d(?:[^\w\n]{0,4}\d){5}")


def mask(text: str, phone_region: str = "") -> tuple[str, Counter[str]]:
    """Replace private texts by what they are, as `[e-mail]`.

    Args:
        text: anything.
        phone_region: country whose phone numbers are known without a country code, too.

    Returns:
        The text, and how many of each kind were masked.
    """
    found: Counter[str] = Counter()
    # Longer things first: a key may hold what looks like a card, an IBAN what looks like a phone.
    text = _replace(text, "key", _keys, found)
    text = _replace(text, "e-mail", _emails, found)
    text = _replace(text, "IBAN", _ibans, found)
    text = _replace(text, "card number", _cards, found)
    text = _replace(text, "phone number", _international, found)
    if phone_region:
        text = _replace(text, "phone number", lambda text: _national(text, phone_region), found)
    return text, found


def mask_example(new: NewExample, phone_region: str = "") -> NewExample:
    """The example with query, response, target and conversation masked, and what was masked counted.

    A text that stands in it several times (the query is the last message, too) counts once.
    """
    masked: dict[str, tuple[str, Counter[str]]] = {}

    def clean(text: str) -> str:
        if text not in masked:
            masked[text] = mask(text, phone_region)
        return masked[text][0]

    cleaned = replace(
        new,
        query=clean(new.query),
        response=clean(new.response),
        target=None if new.target is None else clean(new.target),
        messages=[_mask_message(message, clean) for message in new.messages],
    )
    counts = sum((counted for _, counted in masked.values()), Counter[str]())
    return replace(cleaned, masked=dict(counts)) if counts else new


def _mask_message(message: Mapping[str, Any], clean: Callable[[str], str]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": clean(content)}
    if isinstance(content, list):
        parts = [
            {**part, "text": clean(part["text"])}
            if isinstance(part, Mapping) and isinstance(part.get("text"), str)
            else part
            for part in content
        ]
        return {**message, "content": parts}
    return dict(message)


def _replace(text: str, kind: str, find: Callable[[str], Spans], found: Counter[str]) -> str:
    pieces, end = [], 0
    for start, stop in find(text):
        pieces += [text[end:start], f"[{kind}]"]
        end = stop
        found[kind] += 1
    return "".join([*pieces, text[end:]])


def _keys(text: str) -> Spans:
    spans = sorted(match.span() for form in (_PRIVATE_KEY, _KEY) for match in form.finditer(text))
    end = 0
    for start, stop in spans:
        if start >= end:
            yield start, stop
            end = stop


def _emails(text: str) -> Spans:
    return (match.span() for match in _EMAIL.finditer(text)) if "@" in text else iter(())


def _ibans(text: str) -> Spans:
    for match in _IBAN.finditer(text):
        # The form has no end: words may follow. The longest part that is an IBAN is one.
        for stop in range(match.end(), match.start() + 14, -1):
            if not text[stop : stop + 1].isalnum() and iban.is_valid(text[match.start() : stop]):
                yield match.start(), stop
                break


def _cards(text: str) -> Spans:
    for match in _CARD.finditer(text):
        # A short last group may be the card's, or the code from its back.
        ends = [match.end(), match.start(2)] if match[1] and match[2] else [match.end()]
        for stop in ends:
            digits = re.sub(r"\D", "", text[match.start() : stop])
            if _CARD_DIGITS.fullmatch(digits) and luhn.is_valid(digits):
                yield match.start(), stop
                break


def _international(text: str) -> Spans:
    # The country code and the country's numbering plan are proof enough; people group digits freely.
    for start, stop in _phones(text, None, Leniency.VALID):
        # "5 + 442079460958" is a sum.
        if text[start + 1] != " " and not text[start - 1 : start].isdigit():
            yield start, stop


def _national(text: str, region: str) -> Spans:
    return _phones(text, region, Leniency.STRICT_GROUPING)


def _phones(text: str, region: str | None, leniency: int) -> Spans:
    if not _MAYBE_PHONE.search(text) or (region is not None and region not in phonenumbers.SUPPORTED_REGIONS):
        return
    for match in PhoneNumberMatcher(text, region, leniency=leniency):
        yield match.start, match.end
