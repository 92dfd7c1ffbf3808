"""How large a regular expression becomes when its counted repetitions are written out.

The compiler writes them out, so `(a{1,1000}){1,1000}` is a million states. Read here is only what tells
the size: groups, classes, escapes and quantifiers. Whether the expression is right, the compiler says.
"""

from __future__ import annotations

import re

MAX_CHARS = 2000
MAX_SIZE = 10_000
MAX_GROUPS = 50  # within each other
_COUNT = re.compile(r"\{(\d{0,9})(,?)(\d{0,9})\}")
_PROPERTY = re.compile(r"\\[pP]\{[^}]*\}")
_AROUND = re.compile(r"\(\?(?:[=!]|<[=!])")
_WIDE = 20  # a class of Unicode's is that many ranges of bytes, at least


class PatternRefused(Exception):
    """A regular expression that is not served; the message says why."""


def check_pattern(pattern: str) -> None:
    """See that a regular expression is small.

    Raises:
        PatternRefused: it is not, or looks around or back, which is not served.
    """
    if len(pattern) > MAX_CHARS:
        raise PatternRefused(f"the pattern has more than {MAX_CHARS} characters.")
    sizes = [0]  # of what stands before in each open group
    atom = 0
    at = 0
    while at < len(pattern):
        char = pattern[at]
        step, quantified = 1, False
        if char == "\\":
            following = pattern[at + 1 : at + 2]
            if following and following in "123456789":
                raise PatternRefused("references back are not supported in patterns.")
            named = _PROPERTY.match(pattern, at)
            step = named.end() - at if named else 2
            new = _WIDE if following and following in "pPwWdDsS" else 1
        elif char == "[":
            step, new = _class(pattern, at)
        elif char == "(":
            if _AROUND.match(pattern, at):
                raise PatternRefused("looking around is not supported in patterns.")
            sizes[-1] += atom
            sizes.append(0)
            atom, at = 0, at + 1
            if len(sizes) > MAX_GROUPS:
                raise PatternRefused(f"groups are nested more than {MAX_GROUPS} deep.")
            continue
        elif char == ")" and len(sizes) > 1:
            new = sizes.pop() + atom + 1
            atom = 0
        elif char in "*+?":
            new, quantified = atom, True
        elif char == "{" and (count := _COUNT.match(pattern, at)):
            low, high = count.group(1), count.group(3)
            new, quantified = atom * max(int(low or 0), int(high or 0), 1), True
            step = count.end() - at
        else:
            new = 1 if char not in ".^$|" else 4
        if not quantified:
            sizes[-1] += atom
        atom = new
        at += step
        if atom + sum(sizes) > MAX_SIZE:
            raise PatternRefused(f"the pattern, its repetitions written out, has more than {MAX_SIZE} steps.")


def _class(pattern: str, start: int) -> tuple[int, int]:
    """(characters, size) of a class in brackets."""
    at = start + 1 + (pattern[start + 1 : start + 2] == "^")
    at += pattern[at : at + 1] == "]"
    depth, wide = 1, 1
    while at < len(pattern) and depth:
        char = pattern[at]
        if char == "\\":
            wide = max(wide, _WIDE if pattern[at + 1 : at + 2] in ("p", "P", "w", "W") else 1)
            at += 1
        elif char == "[":
            depth += 1
        elif char == "]":
            depth -= 1
        at += 1
    return at - start, max(wide, 4)
