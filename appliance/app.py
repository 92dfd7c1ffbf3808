"""Wiring: the one place that knows every room.

`build` puts the parts together, `create_app` the web application over them, `run_daemon` serves it
until told to stop. One process: Sanic's event loop and the threads of engine, collector, mirror and
learning; the trainer and the gate are child processes.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any

from sanic import Sanic

from appliance import connections, console, heartbeat, notify, process, served
from appliance.adapters.file import Adapter
from appliance.adapters.registry import Registry
from appliance.api import blueprints as api
from appliance.api.builds import Builds
from appliance.api.errors import RouteErrors
from appliance.api.exchange import Exchange
from appliance.api.health import alive
from appliance.api.limits import Limits
from appliance.api.meter import Meter
from appliance.api.running import Running
from appliance.backup.mend import read_news
from appliance.config import Config
from appliance.doctor.rounds import Rounds, inside
from appliance.engine.constraint import Grammars
from appliance.engine.engine import Engine
from appliance.engine.request import GenerationRequest
from appliance.engine.sampling import SamplingParams
from appliance.errors import ShammahError, Unavailable
from appliance.events import Event, EventBus
from appliance.home import Home
from appliance.learning.collector import Collector
from appliance.learning.critique import draft_critique
from appliance.learning.jobs import Jobs
from appliance.learning.service import Learning
from appliance.learning.switch import Switch
from appliance.leftovers import sweep
from appliance.logs import watch_tasks
from appliance.metrics.exposition import Metrics
from appliance.metrics.parts import offer as offer_parts
from appliance.model.bundle import Bundle, load_bundle
from appliance.model.tokenizer import Tokenizer
from appliance.network import listening, secure
from appliance.network.lan import Network
from appliance.network.routes import Routes
from appliance.pulse import Pulse
from appliance.restart import Restart, start_again
from appliance.settings.editor import SettingsEditor
from appliance.settings.file import read
from appliance.storage.reserve import give_up
from appliance.storage.upkeep import Upkeep
from appliance.store import Store
from appliance.store.footing import Rescued
from appliance.store.mirror import QueueMirror
from appliance.store.owner import password_set
from appliance.store.settings import keep_rescue

logger = logging.getLogger(__name__)

DRAFT_TOKENS = 96
SHUTDOWN_SECONDS = 7.0
"""For answers that have begun. All is closed within ten, which is what supervisors give."""
END_SECONDS = 1.0
WORKERS = 32
"""Threads for what blocks. By default there are a few more than cores, and a store that another program
has locked would soon hold all of them; whoever wants no more than a key looked up would wait with them."""
FULL_BYTES = 1_000_000
"""With less free disk, a start needs what was put by for that."""
LOAD_SECONDS = 1800.0
"""For a large model on a slow disk, and a store's migration before it."""
_IMPORTED = time.monotonic()


@dataclass
class Parts:
    """Everything a running box consists of, in the order it is built."""

    home: Home
    config: Config
    events: EventBus
    store: Store
    mirror: QueueMirror
    bundle: Bundle
    tokenizer: Tokenizer
    grammars: Grammars
    registry: Registry
    engine: Engine
    switch: Switch
    collector: Collector
    learning: Learning
    meter: Meter
    settings: SettingsEditor
    restart: Restart
    jobs: Jobs
    upkeep: Upkeep
    doctor: Rounds


def build(home: Home, config: Config) -> Parts:
    """Put the parts together; nothing runs yet.

    Raises:
        BundleError: the model is missing or broken.
        Unavailable: it cannot be loaded.
    """
    home.ensure()
    events = EventBus()
    store = Store.open(home)
    store.database.guard(lambda rescued: _tell_of_rescue(store, events, rescued))
    bundle = load_bundle(home.models / config.model.name)
    tokenizer = Tokenizer(bundle)
    registry = Registry(home, bundle.manifest)
    served.change_base(home, registry, bundle.manifest)
    adapter, notes = registry.load_at_start(lambda adapter: _accepted(store, adapter))
    for note in notes:
        logger.warning(note)
        events.publish("adapter.fallback", message=note)
    engine = _engine(bundle, tokenizer, config, adapter, registry)
    switch = Switch(registry, store, engine, events)
    learning = Learning(home, config, store, registry, bundle, engine, switch, events)
    settings = SettingsEditor(home, store, config, events)
    return Parts(
        home=home,
        config=config,
        events=events,
        store=store,
        mirror=QueueMirror(store, home),
        bundle=bundle,
        tokenizer=tokenizer,
        grammars=Grammars(bundle),
        registry=registry,
        engine=engine,
        switch=switch,
        collector=Collector(store, config, events),
        learning=learning,
        meter=Meter(store),
        settings=settings,
        restart=Restart(home, store, settings),
        upkeep=Upkeep(home, config, store, engine, learning, bundle.manifest, events),
        jobs=Jobs(home, config, events, wait=lambda: learning.progress is not None, busy=lambda: engine.busy),
        doctor=Rounds(home, events, lambda: inside(home, config, engine, learning)),
    )


def create_app(parts: Parts, *, insecure: bool = False, name: str = "shammah") -> Sanic[Any, Any]:
    """The web application: API and console over the parts; starts and stops them with the server.

    Args:
        parts: of `build`.
        insecure: serve the network even before the owner has set a password.
        name: of the app, as Sanic wants each to have its own.
    """
    app: Sanic[Any, Any] = Sanic(
        name,
        configure_logging=False,
        error_handler=RouteErrors(),
        request_class=Exchange,
        router=Routes(),
    )
    app.config.update(
        REQUEST_MAX_SIZE=parts.config.server.max_body_mb * 1_000_000,
        REQUEST_TIMEOUT=60,
        RESPONSE_TIMEOUT=3600,  # a long answer from a small box
        KEEP_ALIVE_TIMEOUT=75,
        GRACEFUL_SHUTDOWN_TIMEOUT=SHUTDOWN_SECONDS,
        ACCESS_LOG=False,
        AUTO_EXTEND=False,  # sanic-ext would put its own OpenAPI pages over ours
        FALLBACK_ERROR_FORMAT="json",
        MOTD=False,
    )
    for key, part in vars(parts).items():
        setattr(app.ctx, key, part)
    app.ctx.started_at, app.ctx.started = time.time(), time.monotonic()
    app.ctx.start_seconds = time.monotonic() - _IMPORTED
    app.ctx.local_token = secrets.token_urlsafe(32)
    app.ctx.set_up = insecure or password_set(parts.store)
    app.ctx.pulse = Pulse()
    app.ctx.metrics = Metrics(app.ctx)
    app.ctx.limits = Limits()
    app.ctx.running = Running(parts.store)
    app.ctx.builds = Builds(parts.engine.lingering)
    built = "Models that were made ready because a request named them."
    app.ctx.metrics.offer("shammah_model_builds_total", built, lambda: app.ctx.builds.made)
    app.ctx.network = Network(parts.home, parts.config, lambda: insecure or password_set(parts.store))
    offer_parts(app.ctx.metrics, app.ctx)
    healthy = "1 while no restart would help; see /health."
    app.ctx.metrics.offer("shammah_healthy", healthy, lambda: float(alive(app.ctx)))
    api.setup(app)
    console.setup(app)
    drafts = Drafts(parts)

    @app.before_server_start
    async def start(app: Sanic[Any, Any]) -> None:
        watch_tasks(asyncio.get_running_loop())
        app.ctx.pulse.start()
        workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="worker")
        asyncio.get_running_loop().set_default_executor(workers)
        parts.engine.start()
        parts.mirror.start()
        drafts.start()
        await parts.learning.start()
        await asyncio.to_thread(parts.jobs.start)
        # Not `add_task` of Sanic, which warns of what is cancelled.
        app.ctx.sweeping = asyncio.create_task(sweep(parts.home), name="sweep")
        parts.upkeep.start()
        await app.ctx.network.start()

    @app.before_server_stop
    async def withdraw(app: Sanic[Any, Any]) -> None:
        parts.learning.close()
        await app.ctx.network.stop()

    @app.after_server_stop
    async def stop(app: Sanic[Any, Any]) -> None:
        app.ctx.pulse.stop()
        await asyncio.to_thread(parts.upkeep.stop)
        await asyncio.to_thread(parts.jobs.stop)
        await parts.learning.stop()
        drafts.stop()
        await asyncio.to_thread(parts.engine.stop)
        await asyncio.to_thread(parts.grammars.stop)
        await asyncio.to_thread(parts.collector.stop)
        await asyncio.to_thread(parts.meter.stop)
        await asyncio.to_thread(parts.mirror.stop)
        await _end_tasks()
        parts.store.close()

    return app


async def _end_tasks() -> None:
    """What still waits for something waits in vain, and would be destroyed with the loop."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=END_SECONDS)


class Drafts:
    """Lets the model draft what a critique without a correction should have been answered with."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._tasks: set[asyncio.Task[None]] = set()
        self._remove: Callable[[], None] | None = None

    def start(self) -> None:
        """Draft what earlier critiques still lack, and new ones as they come."""
        loop = asyncio.get_running_loop()

        def listen(event: Event) -> None:
            if event.name == "feedback.given" and event.data["state"] == "review":
                loop.call_soon_threadsafe(self._begin, event.data["id"])

        self._remove = self._parts.events.listen(listen)
        for example in self._parts.store.examples.undrafted():
            self._begin(example.id)

    def stop(self) -> None:
        """Leave the rest for the next start."""
        if self._remove is not None:
            self._remove()
        for task in self._tasks:
            task.cancel()

    def _begin(self, example_id: str) -> None:
        task = asyncio.get_running_loop().create_task(self._draft(example_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _draft(self, example_id: str) -> None:
        store = self._parts.store
        try:
            example = await asyncio.to_thread(store.examples.get, example_id)
            await draft_critique(store, example, self._answer)
            self._parts.events.publish("example.drafted", id=example_id)
        except ShammahError as error:
            logger.warning("No draft for %s: %s", example_id, error)

    async def _answer(self, messages: list[dict[str, Any]]) -> str:
        prompt = tuple(await asyncio.to_thread(self._parts.tokenizer.encode_chat, messages))
        request = GenerationRequest(prompt, DRAFT_TOKENS, SamplingParams(temperature=0))
        async with aclosing(self._parts.engine.generate(request)) as deltas:
            return "".join([delta.text async for delta in deltas])


def run_daemon(home: Home, config: Config, bind: str | None = None, insecure: bool = False) -> None:
    """Serve until SIGTERM or SIGINT. At the owner's wish the process starts anew and does not come back.

    It also does if the model cannot be served and another is known that can: with that one.

    Until the owner has set a password, only this machine is served, whatever address is listened on;
    the log tells how to set one.

    Args:
        home: the files of the box.
        config: what `config.toml` says.
        bind: another address than there.
        insecure: serve the network even before there is a password.

    Raises:
        ConfigError: the address is none.
        Conflict: another daemon runs on this home.
        Unavailable: the address cannot be listened on.
        BundleError: the model is missing or broken.
    """
    # The engine's thread comes back from computing and wants the interpreter: it waits for the event loop
    # this long at most, ten times less than by default.
    sys.setswitchinterval(0.0005)
    places = listening.split_bind(bind or config.server.bind)
    if shutil.disk_usage(home.ensure().root).free < FULL_BYTES:
        give_up(home)
    process.configure_logging(home, config.server)
    with process.only_daemon(home):
        again = _serve(home, config, places, insecure)
    if again:
        start_again()


def _serve(home: Home, config: Config, wanted: Sequence[listening.Place], insecure: bool) -> bool:
    """Serve to the end; says whether to start anew."""
    try:
        try:
            notify.starting(f"Loading {config.model.name}", at_most=LOAD_SECONDS)
            served.begin(home, config.model.name)
            parts = build(home, config)
            _tell_of_start(parts)
        except Exception as error:
            if served.fall_back(home, config, error):
                return True
            raise
        app = create_app(parts, insecure=insecure)
        with ExitStack() as sockets:
            places, plain = listening.listen_all(wanted)
            for sock in plain:
                sockets.enter_context(sock)
            safe = [*map(sockets.enter_context, process.listen_secure(config.tls.bind, wanted))]
            app.ctx.network.listens(*([listening.name_of(sock) for sock in each] for each in (plain, safe)))
            process.stop_when_told(app, parts.restart)
            process.reload_on_signal(app, parts.settings)
            process.announce(app, home, places)
            host, port = listening.nearest(places)
            heartbeat.attach(app, listening.reached_at(host), port)
            if not password_set(parts.store):
                process.invite(app, places, insecure)
            connections.limit(app, config.server.max_connections)
            secure.run(
                app,
                plain,
                safe,
                app.ctx.network.certificates.listening,
                listening.BACKLOG,
                protocol=connections.Connection,
            )
        return parts.restart.wanted
    finally:
        served.end(home)


def _tell_of_start(parts: Parts) -> None:
    """Say what had to be put right for the box to come up."""
    if problems := read(parts.home.config).problems:
        logger.error("config.toml cannot be used; other settings serve: %s", "; ".join(problems))
        parts.events.publish("settings.broken", problems=list(problems))
    if (news := read_news(parts.home)) is not None:
        logger.warning("The store was damaged. %s", news.told)
        parts.events.publish("store.mended", kept=news.kept, backup=news.backup, broken=list(news.broken))


def _tell_of_rescue(store: Store, events: EventBus, rescued: Rescued) -> None:
    """Say what was done to the store's files under the box, and that it has been made good."""
    events.publish("store.rescued", files=list(rescued.files), aside=rescued.aside)
    try:
        keep_rescue(store.settings, rescued)
    except ShammahError as error:
        logger.warning("Nobody will remember this: %s", error)


def _engine(
    bundle: Bundle, tokenizer: Tokenizer, config: Config, adapter: Adapter | None, registry: Registry
) -> Engine:
    try:
        return Engine(bundle, tokenizer, config.model, adapter)
    except Unavailable as error:
        if adapter is None:
            raise
        logger.error("%s Serving with base instead.", error)
        registry.set_current(None)
        return Engine(bundle, tokenizer, config.model)


def _accepted(store: Store, adapter: Adapter) -> bool:
    """Whether the gate has passed this very file, not just one of its name, and service has not failed it."""
    row = store.adapters.get(adapter.name)
    if row is None or row.state != "accepted" or row.sha256 != adapter.sha256:
        return False
    return row.withdrawn is None
