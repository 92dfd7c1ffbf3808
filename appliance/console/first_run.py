"""First run: from the link in the log to a password, a name, a model, and a device that gets answers.

Where the owner stands is seen from what there is, so a reload or a power cut in between costs nothing.
The one thing that is not kept is the device's key: it is shown in the answer that makes it, and handed
on from form to form until the owner leaves.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

from sanic import Blueprint, HTTPResponse, Request
from sanic.response import text

from appliance.console.actions import audit
from appliance.console.login import Throttle, begin_session, secret_field
from appliance.console.render import back, form_field, page
from appliance.console.snippets import key_usage
from appliance.errors import Conflict, InvalidSettings, ShammahError
from appliance.model.bundle import list_bundles
from appliance.origin import trusted_loopback
from appliance.store.keys import PREFIX, Device
from appliance.store.owner import MAX_PASSWORD, MIN_PASSWORD, set_first_password, setup_token_valid

STEPS = (
    ("password", "Password"),
    ("name", "Name"),
    ("model", "Model"),
    ("key", "First device"),
    ("try", "Try it"),
)
PUBLIC = ("/setup", "/setup/password")
"""Answered before anybody is logged in; who may, is asked here."""

QUESTION = "What is the capital of France?"
MAX_QUESTION = 2_000
ANSWER_SECONDS = 300.0

# The link's token is not to be guessed, by however many: strangers' failures must not keep the owner from it.
throttle = Throttle(free_overall=1_000_000)


def add_routes(blueprint: Blueprint) -> None:
    """Put `/setup` on the blueprint."""
    blueprint.add_route(begin, "/setup", methods=["GET"], name="setup")
    blueprint.add_route(choose_password, "/setup/password", methods=["POST"], name="setup_password")
    for step, show, take in (
        ("name", show_name, take_name),
        ("model", show_model, take_model),
        ("key", show_key, take_key),
        ("try", show_try, take_try),
    ):
        blueprint.add_route(show, f"/setup/{step}", methods=["GET"], name=f"show_setup_{step}")
        blueprint.add_route(take, f"/setup/{step}", methods=["POST"], name=f"take_setup_{step}")
    blueprint.add_route(check_key, "/setup/key/check", methods=["POST"], name="check_setup_key")
    blueprint.add_route(show_done, "/setup/done", methods=["GET"], name="setup_done")


# -- the password ---------------------------------------------------------------------------


async def begin(request: Request) -> HTTPResponse:
    """The form for the password; once there is one, the first step that is not done."""
    if request.ctx.password_set:
        if request.ctx.logged_in:
            return back(request, to=f"/setup/{await asyncio.to_thread(next_step, request.app.ctx)}")
        return _closed(request, "done", 403)
    token = request.args.get("token", "")
    return await _refuse(request, token) or _password_page(request, token)


async def choose_password(request: Request) -> HTTPResponse:
    """Set the first password, and log in with it."""
    if request.ctx.password_set:
        return back(request, to="/setup" if request.ctx.logged_in else "/login")
    token, password = form_field(request, "token"), secret_field(request, "password")
    if refused := await _refuse(request, token):
        return refused
    if password != secret_field(request, "again"):
        return _password_page(request, token, "The two are not the same. Type the password twice.")
    try:
        await asyncio.to_thread(set_first_password, request.app.ctx.store, password)
    except Conflict as error:
        return back(request, error.message, "info", "/login")
    except ShammahError as error:
        return _password_page(request, token, error.message)
    await audit(request, "setup.password", by="setup link" if token else "this machine")
    return await begin_session(request, back(request, to="/setup/name"))


async def _refuse(request: Request, token: str) -> HTTPResponse | None:
    """A page for who may not choose the password: that takes the link's token, or being on this machine."""
    if not token:
        local = trusted_loopback(request.ip, request.headers)
        return None if local else _closed(request, "missing", 403)
    store = request.app.ctx.store
    wait = throttle.attempt(request.ip)
    if wait > 0:
        if throttle.worth_noting(request.ip):
            await asyncio.to_thread(store.audit.add, request.ip, "setup.throttled", {})
        response = _closed(request, "throttled", 429, seconds=math.ceil(wait))
        response.headers["Retry-After"] = str(math.ceil(wait))
        return response
    if not await asyncio.to_thread(setup_token_valid, store, token):
        await asyncio.to_thread(store.audit.add, request.ip, "setup.refused", {})
        return _closed(request, "wrong", 403)
    throttle.succeeded(request.ip)
    return None


def _closed(request: Request, why: str, status: int, seconds: int = 0) -> HTTPResponse:
    local = request.ctx.open_to_this_machine
    return page(
        request, "first_run_closed.html", status=status, bare=True, why=why, seconds=seconds, local=local
    )


def _password_page(request: Request, token: str, problem: str | None = None) -> HTTPResponse:
    return _page(
        request, "password", problem, token=token, min_password=MIN_PASSWORD, max_password=MAX_PASSWORD
    )


# -- name and model -------------------------------------------------------------------------


async def show_name(request: Request) -> HTTPResponse:
    """Ask what the box is called."""
    return _first(request) or await _name_page(request)


async def take_name(request: Request) -> HTTPResponse:
    """Name the box."""
    name = form_field(request, "name")
    return _first(request) or await _save(request, "console.name", name) or back(request, to="/setup/model")


async def _name_page(request: Request, problem: str | None = None, given: str | None = None) -> HTTPResponse:
    saved = await asyncio.to_thread(_setting, request.app.ctx, "console.name")
    return _page(request, "name", problem, name=saved if given is None else given)


async def show_model(request: Request) -> HTTPResponse:
    """Show the models that are here."""
    return _first(request) or await _model_page(request)


async def take_model(request: Request) -> HTTPResponse:
    """Choose the model; another than the present counts from the next start."""
    if first := _first(request):
        return first
    name, ctx = form_field(request, "model"), request.app.ctx
    if name not in [item.name for item in await asyncio.to_thread(list_bundles, ctx.home)]:
        return await _model_page(request, "Choose one of these.")
    if refused := await _save(request, "model.name", name):
        return refused
    if name == ctx.bundle.name:
        return back(request, to="/setup/key")
    return back(
        request,
        f"{name} will answer from the next start of the box; until then {ctx.bundle.name} does.",
        "info",
        "/setup/key",
    )


async def _model_page(request: Request, problem: str | None = None) -> HTTPResponse:
    ctx = request.app.ctx
    bundles = await asyncio.to_thread(list_bundles, ctx.home)
    chosen = await asyncio.to_thread(_setting, ctx, "model.name")
    models = [
        {"name": item.name, "size": sum(file.size for file in item.manifest.files.values())}
        for item in bundles
    ]
    return _page(request, "model", problem, models=models, chosen=chosen, present=ctx.bundle.name)


async def _save(request: Request, key: str, value: str) -> HTTPResponse | None:
    """Change a setting (the editor writes that down); the step's page again when it cannot be."""
    ctx = request.app.ctx

    def save() -> None:
        shown = ctx.settings.page()
        if shown.texts[key] != value:
            ctx.settings.save({key: value}, shown.file.etag, "owner")

    try:
        await asyncio.to_thread(save)
    except ShammahError as error:
        problem = (
            error.problems.get(key, error.message) if isinstance(error, InvalidSettings) else error.message
        )
        if key == "console.name":
            return await _name_page(request, problem, value)
        return await _model_page(request, problem)
    return None


def _setting(ctx: Any, key: str) -> str:
    return str(ctx.settings.page().texts[key])


# -- the first device -----------------------------------------------------------------------


async def show_key(request: Request) -> HTTPResponse:
    """Ask what the first device is called."""
    return _first(request) or await _key_page(request)


async def take_key(request: Request) -> HTTPResponse:
    """Make a device's key, and show it this once."""
    if first := _first(request):
        return first
    name, store = form_field(request, "name"), request.app.ctx.store
    try:
        device, key = await asyncio.to_thread(store.keys.create, name)
    except ShammahError as error:
        return await _key_page(request, error.message, name)
    await audit(request, "key.created", device=device.id, name=device.name)
    return await _key_page(request, name=device.name, key=key)


async def _key_page(
    request: Request, problem: str | None = None, name: str = "", key: str = ""
) -> HTTPResponse:
    devices = await asyncio.to_thread(request.app.ctx.store.keys.list)
    names = [device.name for device in devices if not device.revoked]
    return _page(request, "key", problem, name=name, devices=names, **key_usage(request, key))


async def show_try(request: Request) -> HTTPResponse:
    """Ask for the key again: it is not kept."""
    return _first(request) or _try_page(request, "")


async def take_try(request: Request) -> HTTPResponse:
    """Ask the box as the device would. With scripts the page does that by itself, and streams."""
    if first := _first(request):
        return first
    key, question = form_field(request, "key"), form_field(request, "question")
    device, wrong = await _device(request, key)
    if device is None:
        return _try_page(request, "", question, wrong)
    if not question:
        return _try_page(request, key)
    answer, problem = await _ask(request, key, question[:MAX_QUESTION])
    await audit(request, "setup.tried", worked=problem is None)
    return _try_page(request, key, question, problem, answer, device.name)


async def check_key(request: Request) -> HTTPResponse:
    """Whose key it is that a script is about to ask with; or what is wrong with it."""
    if first := _first(request):
        return first
    device, problem = await _device(request, form_field(request, "key"))
    return text(device.name if device else problem, status=200 if device else 400)


async def _device(request: Request, key: str) -> tuple[Device | None, str]:
    """The device of a key, or what is wrong with the key.

    A request cannot tell: on this machine the API answers whoever sends no key, or one of another kind.
    """
    if not key:
        return None, f"Paste the device's key: it begins with {PREFIX}"
    if not key.startswith(PREFIX):
        wrong = "That is no key of this box"
        return None, f"{wrong}: one begins with {PREFIX}. Copy all of it from the step before."
    device = await asyncio.to_thread(request.app.ctx.store.keys.verify, key)
    if device is None:
        await audit(request, "setup.tried", worked=False)
        wrong = "This key is not known here, or it was revoked"
        return None, f"{wrong}. Copy all of it, or make another in the step before."
    return device, ""


def _try_page(
    request: Request,
    key: str,
    question: str = "",
    problem: str | None = None,
    answer: str | None = None,
    device: str = "",
) -> HTTPResponse:
    return _page(
        request,
        "try",
        problem,
        question=question or QUESTION,
        max_question=MAX_QUESTION,
        answer=answer,
        device=device,
        **key_usage(request, key),
    )


async def _ask(request: Request, key: str, question: str) -> tuple[str | None, str | None]:
    """A real request over the network, with the key: (answer, problem), one of them None."""
    import httpx  # a tenth of the time of every start, for what is done once

    assert request.conn_info is not None
    body = {
        "model": "shammah",
        "messages": [{"role": "user", "content": question}],
        "store": False,  # trying it out is nothing to learn from
    }
    headers = {"Authorization": f"Bearer {key}"}
    # To itself, whatever proxy this process was told of.
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=ANSWER_SECONDS) as client:
        try:
            scheme = "https" if request.conn_info.ssl else "http"
            url = f"{scheme}://{request.conn_info.server}/v1/chat/completions"
            response = await client.post(url, json=body, headers=headers)
            data = response.json()
            if response.is_error:
                return None, str(data["error"]["message"])
            return str(data["choices"][0]["message"]["content"] or ""), None
        except (httpx.HTTPError, ValueError):  # a key of letters that no header may have is a ValueError
            return None, "The box did not answer. Try again; if it stays so, look into its log."


# -- all together ---------------------------------------------------------------------------


async def show_done(request: Request) -> HTTPResponse:
    """What comes next."""
    if first := _first(request):
        return first
    ctx = request.app.ctx
    chosen = await asyncio.to_thread(_setting, ctx, "model.name")
    return page(
        request,
        "first_run_done.html",
        bare=True,
        closed=ctx.closed,
        chosen=chosen,
        present=ctx.bundle.name,
    )


def next_step(ctx: Any) -> str:
    """The first step, after the password, that has left nothing behind yet. Blocking."""
    devices = [device for device in ctx.store.keys.list() if not device.revoked]
    if devices:
        return "done" if any(device.last_seen for device in devices) else "try"
    named = _setting(ctx, "console.name") != type(ctx.config.console)().name
    return "model" if named else "name"


def _first(request: Request) -> HTTPResponse | None:
    """Before all other steps comes the password."""
    return None if request.ctx.logged_in else back(request, to="/setup")


def _page(request: Request, step: str, problem: str | None = None, **context: Any) -> HTTPResponse:
    return page(
        request,
        "first_run.html",
        status=200 if problem is None else 400,
        bare=True,
        steps=STEPS,
        step=step,
        at=[name for name, _ in STEPS].index(step),
        problem=problem,
        **context,
    )
