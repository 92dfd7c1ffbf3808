"""The learning room with everything real around it: store, engine, registry, switch."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from daemons import keep_measures, lend_measures

from appliance.adapters.file import AdapterMeta, read_adapter, tensor_key, write_adapter
from appliance.adapters.registry import Registry
from appliance.config import Config, parse_config
from appliance.engine.engine import Engine
from appliance.engine.request import GenerationRequest
from appliance.engine.sampling import SamplingParams
from appliance.events import Event, EventBus
from appliance.home import Home
from appliance.learning.feedback import Feedback, give_feedback
from appliance.learning.service import Learning
from appliance.learning.switch import Switch
from appliance.model.bundle import Bundle
from appliance.model.tokenizer import Tokenizer
from appliance.sections import ModelConfig
from appliance.store import Store
from appliance.store.adapters import AdapterRow
from appliance.store.examples import Example, NewExample
from appliance.store.runs import Run, Trigger

MODEL = ModelConfig(slots=2, context_length=512)
# The machine that tests may be busy and small: these are not what is tested.
FREE = """
[resources]
max_load_per_core = 1000
min_free_memory_mb = 0
min_free_disk_mb = 0
max_temperature_c = 149
min_battery_percent = 0
"""


@dataclass
class Box:
    """A running box without HTTP."""

    home: Home
    config: Config
    store: Store
    bundle: Bundle
    tokenizer: Tokenizer
    registry: Registry
    engine: Engine
    switch: Switch
    learning: Learning
    events: EventBus
    seen: list[Event]

    async def until(self, condition: Callable[[], Any], seconds: float = 900) -> Any:
        """Wait for something to become true."""
        deadline = time.monotonic() + seconds
        while not (value := await asyncio.to_thread(condition)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {seconds} s; events: {[event.name for event in self.seen]}")
            await asyncio.sleep(0.1)
        return value

    async def finished(self, count: int = 1, seconds: float = 900) -> Event:
        """Wait for the `count`-th run to end."""
        await self.until(lambda: len(self.named("run.finished")) >= count, seconds)
        return self.named("run.finished")[count - 1]

    async def start_run(self, trigger: Trigger = "person") -> Run:
        """Ask for a run, as soon as what an earlier life left has been dealt with."""
        await self.until(lambda: not self.learning._busy, 60)
        return self.learning.request(trigger)

    def named(self, name: str) -> list[Event]:
        return [event for event in self.seen if event.name == name]

    async def ask(self, question: str, max_tokens: int = 20) -> str:
        prompt = tuple(self.tokenizer.encode_chat([{"role": "user", "content": question}]))
        request = GenerationRequest(prompt, max_tokens, SamplingParams(temperature=0))
        return "".join([delta.text async for delta in self.engine.generate(request)])


@asynccontextmanager
async def running(
    home: Home,
    bundle: Bundle,
    text: str = "",
    trainer: Sequence[str] | None = None,
    retry_minutes: float = 5,
    **hurry: float,
) -> AsyncIterator[Box]:
    """A box on `home`, stopped in the end.

    Args:
        home: where.
        bundle: what serves.
        text: its settings.
        trainer: a program instead of the real one.
        retry_minutes: its pause.
        hurry: other pauses, as `lora__batch_timeout_minutes`: shorter than settings may be.
    """
    config = parse_config(f"{text}\n{FREE}")
    for name, pause in {"resources__retry_minutes": retry_minutes, **hurry}.items():
        section, _, key = name.partition("__")
        changed = getattr(config, section).model_copy(update={key: pause})
        config = config.model_copy(update={section: changed})
    # Beside other tests, a modest program would wait for most of its time.
    config = config.model_copy(update={"train": config.train.model_copy(update={"nice": 0})})
    events, seen = EventBus(), list[Event]()
    events.listen(seen.append)
    store = Store.open(home)
    tokenizer = Tokenizer(bundle)
    registry = Registry(home, bundle.manifest)

    def accepted(adapter: Any) -> bool:
        row = store.adapters.get(adapter.name)
        if row is None or row.state != "accepted" or row.sha256 != adapter.sha256:
            return False
        return row.withdrawn is None

    lend_measures(home.runs, bundle)
    adapter, _ = registry.load_at_start(accepted)
    engine = Engine(bundle, tokenizer, MODEL, adapter)
    switch = Switch(registry, store, engine, events)
    learning = Learning(home, config, store, registry, bundle, engine, switch, events, trainer=trainer)
    engine.start()
    await learning.start()
    try:
        yield Box(home, config, store, bundle, tokenizer, registry, engine, switch, learning, events, seen)
    finally:
        await learning.stop()
        await asyncio.to_thread(engine.stop)
        store.close()
        keep_measures(home.runs, bundle)


def add(store: Store, query: str, response: str, **fields: Any) -> Example:
    """An example as collection or feedback would store it."""
    kind = fields.pop("kind", "automatic")
    return store.examples.add(
        NewExample(
            kind=kind,
            query=query,
            response=response,
            target=fields.pop("target", response),
            weight=fields.pop("weight", 1.0),
            messages=[{"role": "user", "content": query}],
            **fields,
        )
    )


def add_correction(store: Store, query: str, wrong: str, right: str, weight: float = 10.0) -> Example:
    return add(store, query, wrong, kind="correction", target=right, correction=right, weight=weight)


def make_adapter(
    path: Path, bundle: Bundle, *, scale: float, seed: int = 0, modules: Sequence[str] = ("o_proj",)
) -> Path:
    """A random adapter that fits the bundle: harmless with a small `scale`, ruinous with a large one."""
    random = np.random.default_rng(seed)
    tensors = {}
    for port in bundle.manifest.ports:
        for part in port.parts:
            if part.module.rpartition(".")[2] in modules:
                tensors[tensor_key(part.module, "A")] = random.standard_normal((4, port.inputs)).astype(
                    np.float32
                )
                tensors[tensor_key(part.module, "B")] = (
                    random.standard_normal((part.out, 4)).astype(np.float32) * scale
                )
    temp = path.with_name(f".{path.name}")
    write_adapter(temp, tensors, AdapterMeta(bundle.manifest.base_hash, 4, 4.0, tuple(modules)))
    shutil.move(temp, path)
    return path


def put(box: Box, name: str, *, scale: float = 0.01, seed: int = 0, **fields: Any) -> Path:
    """An adapter the gate has judged, by decree: judging is tested elsewhere."""
    temp = make_adapter(box.home.runs / f"{name}.safetensors", box.bundle, scale=scale, seed=seed)
    adapter = read_adapter(temp, box.bundle.manifest)
    known = {"run_id": None, "parent": None, "state": "accepted", "report": None, **fields}
    row = AdapterRow(name, 0.0, adapter.sha256, adapter.size, adapter.meta.base_hash, 4, **known)
    box.store.adapters.upsert(row)
    return temp.rename(box.home.adapters / temp.name)


def everywhere(box: Box, name: str | None) -> bool:
    """Whether this adapter is in service, and engine, link and history say so."""
    last = box.store.adapters.switches(1)
    return box.registry.current() == box.engine.adapter == (last[0].to if last else None) == name


def answered(store: Store, query: str, response: str, adapter: str | None, at: float | None = None) -> str:
    """An answer as collection would record it; its id."""
    completion_id = f"chatcmpl-{secrets.token_hex(12)}"
    messages = [{"role": "user", "content": query}]
    store.completions.record(
        completion_id, at or time.time(), None, "shammah", adapter, query, response, messages, "stop", 1, 1
    )
    return completion_id


def rate(store: Store, completion_id: str, rating: str, events: EventBus | None = None) -> Example:
    """A thumb on an answer."""
    return give_feedback(store, Config(), Feedback(completion_id=completion_id, rating=rating), events=events)


def example(number: int, kind: str = "automatic", **fields: object) -> Example:
    """An example as the store gives it, oldest first by number; what matters is named in `fields`."""
    base = {
        "id": f"ex_{number:03}",
        "created": float(number),
        "kind": kind,
        "state": "training",
        "query": f"q{number}",
        "response": f"said {number}",
        "target": f"learn {number}",
        "weight": 1.0,
        "feedback": None,
        "messages": [{"role": "user", "content": f"q{number}"}],
        "correction": None,
        "rating": None,
        "finish_reason": "stop",
        "device": None,
        "source": "api",
        "completion_id": None,
        "run_id": None,
        "note": None,
    }
    return Example(**{**base, **fields})  # type: ignore[arg-type]
