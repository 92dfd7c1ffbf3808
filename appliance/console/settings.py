"""Settings: every key of `config.toml`, by section; a change is looked at before it is saved."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sanic import Blueprint, HTTPResponse, Request
from sanic.exceptions import NotFound
from sanic.response import html

from appliance.console.actions import OWNER
from appliance.console.render import back, form_field, page, render
from appliance.console.setting_fields import (
    LEADS,
    QUIET,
    TITLES,
    Field,
    Typed,
    fields,
    find_keys,
    group_named,
    label,
    quiet,
    read_typed,
    show,
)
from appliance.errors import Conflict, InvalidRequest, InvalidSettings, ShammahError
from appliance.settings.editor import Page
from appliance.settings.form import Group, Key, as_text, keys
from appliance.store.changes import Difference


@dataclass(frozen=True)
class Notices:
    """What an owner must know before anything else about the settings.

    Attributes:
        problems: what is wrong with the file, line by line.
        reload: settings that somebody changed in the file, and that do not count yet.
        restart: settings that count from the next start.
    """

    problems: tuple[str, ...]
    reload: tuple[str, ...]
    restart: tuple[Key, ...]


@dataclass(frozen=True)
class Section:
    """An entry of the list of sections."""

    name: str
    title: str
    about: str
    count: int
    changed: int


def add_routes(blueprint: Blueprint) -> None:
    """Put `/settings` on the blueprint."""
    blueprint.add_route(show_all, "/settings", methods=["GET"], name="settings")
    blueprint.add_route(show_section, "/settings/<section:str>", methods=["GET"], name="settings_section")
    blueprint.add_route(check, "/settings/check", methods=["POST"], name="settings_check")
    blueprint.add_route(preview, "/settings/preview", methods=["POST"], name="settings_preview")
    blueprint.add_route(save, "/settings/save", methods=["POST"], name="settings_save")
    blueprint.add_route(reload, "/settings/reload", methods=["POST"], name="settings_reload")


def notices(found: Page) -> Notices:
    """What the page says above everything else."""
    return Notices(
        found.file.problems,
        tuple(label(key.name) for key in found.reload),
        found.restart,
    )


def sections(found: Page) -> list[Section]:
    """The list of sections, with how much in each is not as it comes."""
    return [
        Section(
            name,
            title,
            LEADS[name],
            len(_group(name).keys),
            sum(found.texts[key.name] != as_text(key.default) for key in _group(name).keys),
        )
        for name, title in TITLES.items()
    ]


async def show_all(request: Request) -> HTTPResponse:
    """The list of sections, and what a search finds."""
    found = await asyncio.to_thread(request.app.ctx.settings.page)
    words = (request.args.get("q") or "").strip()[:200]
    (hours,) = (field for field in fields(_group("resources"), found.texts) if field.name == QUIET)
    results = [Field(key, found.texts[key.name], found.texts[key.name]) for key in find_keys(words)]
    return page(
        request,
        "settings.html",
        section="settings",
        notices=notices(found),
        broken=found.file.config is None,
        etag=found.file.etag,
        suggestion=found.suggestion,
        sections=sections(found),
        titles=TITLES,
        hours=hours,
        words=words,
        results=results if words else [],
    )


async def show_section(request: Request, section: str) -> HTTPResponse:
    """The form of one section."""
    group = _group(section)
    found = await asyncio.to_thread(request.app.ctx.settings.page)
    return _form(request, group, found)


async def check(request: Request) -> HTTPResponse:
    """What is wrong with one value as it was typed, or what it means."""
    name = request.args.get("key") or ""
    text = read_typed(request).texts.get(name, "")
    problem = await asyncio.to_thread(request.app.ctx.settings.check, name, text)
    said = quiet(text, time.time()) if name == QUIET else None
    return html(render("parts/setting_said.html", problem=problem, said=said))


async def preview(request: Request) -> HTTPResponse:
    """What saving would change; or the form again, with what is wrong with it."""
    typed, group = read_typed(request), _group(form_field(request, "section"))
    if form_field(request, "act") == "edit":
        found = await asyncio.to_thread(request.app.ctx.settings.page)
        return _form(request, group, found, typed)
    editor = request.app.ctx.settings
    try:
        differences = await asyncio.to_thread(editor.preview, typed.changes, typed.etag)
    except ShammahError as error:
        return await _again(request, group, typed, error)
    if not differences:
        return back(request, "Nothing was changed.", "info", f"/settings/{group.name}")
    return page(
        request,
        "settings_preview.html",
        section="settings",
        group=group,
        title=TITLES[group.name],
        typed=typed,
        differences=[show(difference) for difference in differences],
        meaning=quiet(typed.changes[QUIET], time.time()) if QUIET in typed.changes else None,
    )


async def save(request: Request) -> HTTPResponse:
    """Save what was looked at."""
    typed, group = read_typed(request), _group(form_field(request, "section"))
    editor = request.app.ctx.settings
    try:
        change = await asyncio.to_thread(editor.save, typed.changes, typed.etag, OWNER)
    except ShammahError as error:
        return await _again(request, group, typed, error)
    return back(request, outcome(change.differences), to=f"/settings/{group.name}")


async def reload(request: Request) -> HTTPResponse:
    """Go by the file as somebody has edited it."""
    try:
        taken = await asyncio.to_thread(request.app.ctx.settings.reload, OWNER)
    except ShammahError as error:
        return back(request, f"Everything stays as it is: {error.message}", "bad", "/settings")
    return back(request, outcome(taken) if taken else "There was nothing new in config.toml.", to="/settings")


def outcome(differences: Sequence[Difference]) -> str:
    """What saving has brought about, as a sentence."""
    names = [keys()[difference.key] for difference in differences if difference.key in keys()]
    waiting = [label(key.name) for key in names if key.restart]
    count = len(names) - len(waiting)
    if not names:
        return "Saved. All values are as they were."
    parts = []
    if count:
        parts.append(f"{count} {'setting counts' if count == 1 else 'settings count'} from now on")
    if waiting:
        parts.append(f"{', '.join(waiting)} {'counts' if len(waiting) == 1 else 'count'} from the next start")
    return f"Saved: {'; '.join(parts)}."


def _group(name: str) -> Group:
    group = group_named(name)
    if group is None:
        raise NotFound("There are no such settings.")
    return group


async def _again(request: Request, group: Group, typed: Typed, error: ShammahError) -> HTTPResponse:
    """The form with what was typed, and why it was not saved."""
    found = await asyncio.to_thread(request.app.ctx.settings.page)
    problems = error.problems if isinstance(error, InvalidSettings) else {}
    if isinstance(error, InvalidRequest) and error.code == "unchanged":
        return back(request, error.message, "info", f"/settings/{group.name}")
    return _form(request, group, found, typed, problems, error)


def _form(
    request: Request,
    group: Group,
    found: Page,
    typed: Typed | None = None,
    problems: dict[str, str] | None = None,
    error: ShammahError | None = None,
) -> HTTPResponse:
    made = fields(group, found.texts, typed, problems)
    mine = {field.name for field in made}
    order = list(TITLES.items())
    place = [name for name, _ in order].index(group.name)
    return page(
        request,
        "settings_section.html",
        status=error.status if error else 200,
        section="settings",
        notices=notices(found),
        broken=found.file.config is None,
        etag=found.file.etag,
        group=group,
        title=TITLES[group.name],
        lead=LEADS[group.name],
        fields=made,
        wrong=[field for field in made if field.problem],
        conflict=isinstance(error, Conflict) and error.param == "etag",
        message=_elsewhere(error, mine),
        before=order[place - 1] if place else None,
        after=order[place + 1] if place + 1 < len(order) else None,
    )


def _elsewhere(error: ShammahError | None, mine: set[str]) -> str | None:
    """Why nothing was saved, as far as no field says so."""
    if isinstance(error, InvalidSettings):
        others = [f"{name}: {problem}" for name, problem in error.problems.items() if name not in mine]
        return " ".join(others) or None
    return error.message if error else None
