"""Text that knows which of its characters the chat template wrote.

A template works on plain strings: what users wrote reaches it as it is. Its own constants are `Text`, a
string that carries the spans it wrote, and the operations below keep them. Whatever operation is not
known here gives a plain string, and plain is what users wrote: in doubt a control token becomes text, and
never the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

from appliance.model.budget import TooCostly, make_room, measure

Spans = tuple[tuple[int, int], ...]
_WIDEST = 10_000  # a field of a format
_CONVERSION = re.compile(
    r"%(?:\((?P<key>[^()]*)\))?[-+ #0]*(?P<width>\*|\d*)(?:\.(?P<digits>\*|\d*))?[hlL]?(?P<kind>.)", re.DOTALL
)
_CASE = {"upper", "lower", "title", "capitalize", "swapcase", "casefold"}
_FACTS = {
    *("startswith", "endswith", "find", "index", "rfind", "rindex", "count"),
    *("isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric"),
    *("isprintable", "isspace", "istitle", "isupper"),
}
_WIDTHS = {"center", "ljust", "rjust", "zfill"}


class Text(str):
    """A string with the spans of it that the template wrote."""

    _spans: Spans = ()

    def __str__(self) -> str:
        return self  # Jinja says `str(…)` of all it puts out

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        piece = super().__getitem__(key)
        if not isinstance(key, slice):
            at = range(len(self))[key]
            return cut(self, at, at + 1)
        start, _, step = key.indices(len(self))
        return cut(self, start, start + len(piece)) if step == 1 else piece


def authored(text: str) -> Text:
    """A text that is all the template's."""
    whole = Text(text)
    whole._spans = ((0, len(text)),) if text else ()
    return whole


def spans(text: str) -> Spans:
    """Where the template's characters are: in order, apart from each other."""
    return text._spans if isinstance(text, Text) else ()


def cut(text: str, start: int, end: int) -> str:
    """The characters from `start` to `end`."""
    piece = str.__getitem__(text, slice(start, end))
    kept = ((max(a, start) - start, min(b, end) - start) for a, b in spans(text) if a < end and b > start)
    return _with(piece, tuple(kept))


def join(parts: Iterable[str], separator: str = "") -> str:
    """The parts, one after the other."""
    pieces: list[str] = []
    size = 0
    for part in parts:
        if pieces and separator:
            pieces.append(separator)
            size += len(separator)
        pieces.append(part)
        size += len(part)
        if not len(pieces) % 1024:
            make_room(size)
    make_room(size)
    found: list[tuple[int, int]] = []
    at = 0
    for piece in pieces:
        for a, b in spans(piece):
            if found and found[-1][1] == at + a:
                found[-1] = (found[-1][0], at + b)
            else:
                found.append((at + a, at + b))
        at += len(piece)
    return _with("".join(pieces), tuple(found))


def repeat(text: str, times: int) -> str:
    """`text * times`."""
    make_room(len(text) * max(times, 0))
    if spans(text) == ((0, len(text)),):
        return authored(str.__mul__(text, times))
    return str.__mul__(text, times)


def percent(text: str, values: Any) -> str:
    """`text % values`."""
    measure(values)
    rest = list(values) if isinstance(values, tuple) else [values]
    pieces: list[str] = []
    at = 0
    for match in _CONVERSION.finditer(text):
        widths = (match["width"], match["digits"] or "")
        if "*" in widths or any(len(width) > 4 for width in widths):
            raise TooCostly("it formats to a width that is too large")
        pieces.append(cut(text, at, match.start()))
        at = match.end()
        if match["kind"] == "%":
            pieces.append("%")
        elif match["key"] is not None:
            pieces.append(_convert(match[0], values))
        elif rest:
            pieces.append(_convert(match[0], (rest.pop(0),)))
        else:
            raise TypeError("not enough arguments for format string")
    if rest and not isinstance(values, Mapping):
        raise TypeError("not all arguments converted during string formatting")
    return join([*pieces, cut(text, at, len(text))])


def check_format(spec: str) -> None:
    """Refuse a format of `str.format` that makes anything long."""
    if any(len(number) > 5 or int(number) > _WIDEST for number in re.findall(r"\d+", spec)):
        raise TooCostly("it formats to a width that is too large")


def call(text: str, name: str, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """The method `name` of a string.

    Raises:
        AttributeError: strings have none of that name, as far as templates are concerned.
    """
    if name in _FACTS:
        make_room(len(text))
        return getattr(str, name)(text, *args, **options)
    method = _METHODS.get(name)
    if method is None:
        raise AttributeError(f"the method {name!r} of a text is not available to chat templates")
    return method(text, *args, **options)


def _with(text: str, found: Spans) -> str:
    if not found:
        return str.__str__(text)
    result = Text(text)
    result._spans = found
    return result


def _convert(conversion: str, values: Any) -> str:
    return str(conversion % values)


def _strip(method: Callable[..., str]) -> Callable[..., str]:
    """Of methods that take something away at the ends."""

    def stripped(text: str, *args: Any) -> str:
        make_room(len(text))
        piece = method(text, *args)
        start = 0
        if method is str.lstrip or method is str.removeprefix:
            start = len(text) - len(piece)
        elif method is str.strip:
            start = len(text) - len(str.lstrip(text, *args))
        return cut(text, start, start + len(piece))

    return stripped


def _split(method: Callable[..., Sequence[str]]) -> Callable[..., list[str]]:
    """Of methods that take a text apart, with what stood between the parts left out or not."""

    def parted(text: str, *args: Any, **options: Any) -> list[str]:
        make_room(len(text))
        parts = method(text, *args, **options)
        measure(parts)
        if not spans(text):
            return list(parts)
        found = []
        at = 0
        for part in parts:
            # What lies between two parts is a separator: no part can begin within it.
            at = str.index(text, part, at)
            found.append(cut(text, at, at + len(part)))
            at += len(part)
            if method in (str.split, str.rsplit) and (separator := _separator(args, options)):
                at = min(at + len(separator), len(text))
        return found

    return parted


def _separator(args: tuple[Any, ...], options: Mapping[str, Any]) -> str | None:
    value = args[0] if args else options.get("sep")
    return value if isinstance(value, str) else None


def _splitlines(text: str, keepends: bool = False) -> list[str]:
    lines = []
    at = 0
    make_room(len(text))
    whole = str.splitlines(text, True)
    measure(whole)
    for line, bare in zip(whole, str.splitlines(text), strict=True):
        lines.append(cut(text, at, at + len(line if keepends else bare)))
        at += len(line)
    return lines


def _partition(method: Callable[[str, str], tuple[str, str, str]]) -> Callable[[str, str], tuple[str, ...]]:
    def parted(text: str, separator: str) -> tuple[str, ...]:
        make_room(len(text))
        first, middle, _ = (len(part) for part in method(text, separator))
        return (
            cut(text, 0, first),
            cut(text, first, first + middle),
            cut(text, first + middle, len(text)),
        )

    return parted


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    if not old or not (spans(text) or spans(new)):
        times = str.count(text, old)
        make_room(len(text) + times * len(new))
        return str.replace(str.__str__(text), old, new, count)
    return join(_split(str.split)(text, old, count), new)


def _case(method: Callable[[str], str]) -> Callable[[str], str]:
    def changed(text: str) -> str:
        make_room(len(text))
        result = method(text)
        return _with(result, spans(text)) if len(result) == len(text) else result

    return changed


def _pad(method: Callable[..., str]) -> Callable[..., str]:
    def padded(text: str, width: int, *fill: str) -> str:
        make_room(max(len(text), width))
        return method(text, width, *fill)

    return padded


def _expandtabs(text: str, tabsize: int = 8) -> str:
    make_room(len(text) * max(tabsize, 1))
    return str.expandtabs(text, tabsize)


def _join(text: str, parts: Iterable[str]) -> str:
    return join(parts, text)


_METHODS: dict[str, Callable[..., Any]] = {
    **{name: _strip(getattr(str, name)) for name in ("strip", "lstrip", "rstrip")},
    **{name: _strip(getattr(str, name)) for name in ("removeprefix", "removesuffix")},
    **{name: _split(getattr(str, name)) for name in ("split", "rsplit")},
    **{name: _partition(getattr(str, name)) for name in ("partition", "rpartition")},
    **{name: _case(getattr(str, name)) for name in _CASE},
    **{name: _pad(getattr(str, name)) for name in _WIDTHS},
    "splitlines": _splitlines,
    "replace": _replace,
    "expandtabs": _expandtabs,
    "join": _join,
}
