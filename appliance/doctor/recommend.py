"""Which models this box can carry, and how fast each would be: told from one that was measured here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from appliance.config import Config
from appliance.doctor.shapes import KNOWN, Known, Shape, shape_of
from appliance.doctor.sizing import Need, need
from appliance.hardware import Hardware
from appliance.learning.figures import read_figures
from appliance.learning.guard import SPARE
from appliance.model.bundle import Bundle

PRODUCTS = 0.65
"""Share of a token's time that goes into the products with the weights, and grows with these; the rest grows
with the number of layers (docs/performance.md)."""
OF_BANDWIDTH = 0.38
"""How near those products come to the speed at which memory is read, where nothing was measured."""
FASTER, SLOWER = 1.3, 0.5
"""How wrong a figure may be: above the expected one, and below it where nothing was measured."""
READING = 8.0
"""Tokens a second below which an answer is slower than who reads it."""

Fit = Literal["learns", "serves", "no"]


@dataclass(frozen=True)
class Yardstick:
    """A model whose speed on this box is known.

    Attributes:
        name: of the bundle.
        decode: tokens generated in a second, for one request alone.
        fresh: it was measured just now, and not by *Measure* in the console.
    """

    name: str
    shape: Shape
    decode: float
    fresh: bool


@dataclass(frozen=True)
class Speed:
    """Tokens a second of one answer: what to expect, and between what it may lie."""

    expected: float
    least: float
    most: float


@dataclass(frozen=True)
class Advice:
    """What is to be said of a model.

    Attributes:
        id: as `shammah model import` takes it, or the name of the bundle.
        fit: whether it can serve here, and learn beside that.
        speed: None when nothing is known that it could be told from.
        here: name of the bundle when it is on this box.
        best: it is the largest that learns here and answers faster than one reads.
    """

    id: str
    shape: Shape
    need: Need
    fit: Fit
    speed: Speed | None
    here: str | None = None
    best: bool = False
    remark: str = ""

    def to_json(self) -> dict[str, Any]:
        """For programs: memory in MB."""
        return {
            "id": self.id,
            "installed": self.here,
            "recommended": self.best,
            "parameters": self.shape.parameters,
            "weights_mb": round(self.shape.stored / 1e6),
            "memory_mb": {name: round(size / 1e6) for name, size in asdict(self.need).items()},
            "fits": {"serve": self.fit != "no", "learn": self.fit == "learns"},
            "tokens_per_second": None
            if self.speed is None
            else {name: round(value, 1) for name, value in asdict(self.speed).items()},
            "remark": self.remark,
        }


def yardstick(
    bundles: Sequence[Bundle], threads: int, measure: Callable[[Bundle], float] | None = None
) -> Yardstick | None:
    """The model to tell the others' speed from: the largest that was measured, else one measured now.

    Args:
        bundles: those on this box, the one served first.
        threads: that serve; figures of another number of them say nothing.
        measure: measures the speed of one; None for not to.
    """
    measured = [(bundle, figures) for bundle in bundles if (figures := read_figures(bundle)) is not None]
    measured = [(bundle, figures) for bundle, figures in measured if figures.threads == threads]
    if measured:
        bundle, figures = max(measured, key=lambda pair: shape_of(pair[0]).read)
        return Yardstick(bundle.name, shape_of(bundle), figures.decode, False)
    if not bundles or measure is None:
        return None
    return Yardstick(bundles[0].name, shape_of(bundles[0]), measure(bundles[0]), True)


def expect(shape: Shape, known: Yardstick | None, bandwidth: float) -> Speed | None:
    """How fast a model would be.

    Args:
        shape: the model's.
        known: a model whose speed is known.
        bandwidth: bytes a second; 0 when that was not measured.
    """
    ceiling = bandwidth / shape.read if bandwidth else float("inf")
    if known is None:
        if not bandwidth:
            return None
        expected = OF_BANDWIDTH * ceiling
        return Speed(expected, SLOWER * expected, ceiling)
    token, bytes_ratio = 1 / known.decode, shape.read / known.shape.read
    layers_ratio = shape.layers / known.shape.layers
    expected = 1 / (token * (PRODUCTS * bytes_ratio + (1 - PRODUCTS) * layers_ratio))
    # If all of the time went with the bytes, or all with the layers, it would be one of these.
    pure = known.decode / bytes_ratio
    least, most = min(pure, expected / FASTER), expected * FASTER
    return Speed(expected, least, max(expected, min(most, max(ceiling, expected))))


def advise(
    hardware: Hardware,
    config: Config,
    bundles: Sequence[Bundle],
    known: Yardstick | None,
    own: float = 0.0,
) -> tuple[Advice, ...]:
    """Say it of the models on this box and of those that can be had, by size.

    Args:
        hardware: what there is.
        config: how many conversations, how long, and what a run takes.
        bundles: the models on this box.
        known: what speed is told from.
        own: bytes that this box's daemon takes now, which another model would get.
    """
    room = hardware.available + own
    found = [
        _advice(bundle.manifest.source, shape_of(bundle), room, hardware, config, known, here=bundle.name)
        for bundle in bundles
    ]
    have = {advice.id.partition("@")[0] for advice in found}
    sizes = {(advice.shape.linear, advice.shape.words) for advice in found}
    for model in KNOWN:
        if model.id not in have and (model.shape.linear, model.shape.words) not in sizes:
            found.append(_advice(model.id, model.shape, room, hardware, config, known, model=model))
    found.sort(key=lambda advice: advice.shape.parameters)
    good = [advice for advice in found if advice.fit == "learns" and not advice.remark]
    quick = [advice for advice in good if advice.speed is None or advice.speed.expected >= READING]
    best = max(quick or good[:1], key=lambda advice: advice.shape.parameters, default=None)
    return tuple(
        advice if advice is not best else Advice(**{**vars(advice), "best": True}) for advice in found
    )


def _advice(
    ident: str,
    shape: Shape,
    room: float,
    hardware: Hardware,
    config: Config,
    known: Yardstick | None,
    *,
    here: str | None = None,
    model: Known | None = None,
) -> Advice:
    wanted = need(shape, config.model, config.train)
    least = max(config.resources.min_free_memory_mb * 1024 * 1024, wanted.learn * SPARE)
    fit: Fit = "no" if wanted.serve > room else "learns" if wanted.serve + least <= room else "serves"
    speed = expect(shape, known, hardware.bandwidth)
    if known is not None and here == known.name:
        speed = Speed(known.decode, known.decode, known.decode)
    return Advice(ident, shape, wanted, fit, speed, here, remark=model.remark if model else "")
