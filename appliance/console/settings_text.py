"""`config.toml` as a text: for those who like to write it, and the way out of a file that is broken."""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sanic import Blueprint, HTTPResponse, Request

from appliance.console.actions import OWNER
from appliance.console.render import back, page
from appliance.console.setting_fields import show
from appliance.console.settings import notices, outcome
from appliance.errors import Conflict, InvalidRequest, InvalidSettings, ShammahError

MAX_TEXT = 200_000
"""Characters: a file of all keys with their explanations has a tenth of it."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with the text.

    Attributes:
        message: for a person.
        line: its number; None when it is not about one.
        source: that line.
    """

    message: str
    line: int | None = None
    source: str = ""


def add_routes(blueprint: Blueprint) -> None:
    """Put `/settings/text` on the blueprint."""
    blueprint.add_route(show_text, "/settings/text", methods=["GET"], name="settings_text")
    blueprint.add_route(preview, "/settings/text", methods=["POST"], name="settings_text_preview")
    blueprint.add_route(save, "/settings/text/save", methods=["POST"], name="settings_text_save")


def find_problems(messages: Sequence[str], text: str) -> list[Problem]:
    """Problems as `config.py` words them, each with the line that it names."""
    lines, found = text.splitlines(), []
    for message in messages:
        named = re.search(r"\bline (\d+)", message)
        number = int(named[1]) if named else None
        source = lines[number - 1] if number is not None and 1 <= number <= len(lines) else ""
        found.append(Problem(re.sub(r"^config\.toml line \d+: ", "", message), number, source))
    return found


def changed_lines(old: str, new: str) -> list[tuple[str, str]]:
    """The difference of two texts, line by line: "+", "-", " " or "@" where lines are left out."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), n=2, lineterm="")
    return [(line[0], line[1:] if line[0] in "+- " else "") for line in list(lines)[2:]]


async def show_text(request: Request) -> HTTPResponse:
    """The editor."""
    return await _editor(request)


async def preview(request: Request) -> HTTPResponse:
    """What saving would change; or the editor again, with what is wrong."""
    text, etag, edit = _sent(request)
    if edit:
        return await _editor(request, text)
    editor = request.app.ctx.settings
    try:
        _short_enough(text)
        differences = await asyncio.to_thread(editor.preview_text, text, etag)
    except ShammahError as error:
        return await _editor(request, text, error)
    found = await asyncio.to_thread(editor.page)
    lines = await asyncio.to_thread(changed_lines, found.file.text, text)
    if not lines:
        return back(request, "Nothing was changed.", "info", "/settings/text")
    return page(
        request,
        "settings_text_preview.html",
        section="settings",
        text=text,
        etag=etag,
        lines=lines,
        broken=found.file.config is None,
        differences=[show(difference) for difference in differences],
    )


async def save(request: Request) -> HTTPResponse:
    """Put the text in place of the file."""
    text, etag, _ = _sent(request)
    try:
        _short_enough(text)
        change = await asyncio.to_thread(request.app.ctx.settings.replace, text, etag, OWNER)
    except ShammahError as error:
        return await _editor(request, text, error)
    return back(request, outcome(change.differences), to="/settings/text")


def _sent(request: Request) -> tuple[str, str, bool]:
    """Text, etag, and whether the owner goes back to the editor."""
    form: Any = request.get_form(keep_blank_values=True) or {}
    text = str(form.get("text") or "").replace("\r\n", "\n")
    return text, str(form.get("etag") or ""), form.get("act") == "edit"


def _short_enough(text: str) -> None:
    if len(text) > MAX_TEXT:
        raise InvalidRequest(f"A text longer than {MAX_TEXT:,} characters is no settings file.", param="text")


async def _editor(
    request: Request, text: str | None = None, error: ShammahError | None = None
) -> HTTPResponse:
    """The editor, with what was typed, or else with what the file says."""
    found = await asyncio.to_thread(request.app.ctx.settings.page)
    shown = found.file.text if text is None else text
    if isinstance(error, InvalidSettings):
        in_text = error.problems.get("text", "").splitlines()
        others = [f"{name}: {problem}" for name, problem in error.problems.items() if name != "text"]
        problems = find_problems([*in_text, *others], shown)
    elif error is None and text is None:
        problems = find_problems(found.file.problems, shown)
    else:
        problems = []
    conflict = isinstance(error, Conflict)
    return page(
        request,
        "settings_text.html",
        status=error.status if error else 200,
        section="settings",
        notices=notices(found),
        text=shown,
        etag=found.file.etag,
        problems=problems,
        saved=text is None,
        message=error.message if error and not problems else None,
        on_disk=found.file.text if conflict else None,
        suggestion=found.suggestion,
    )
