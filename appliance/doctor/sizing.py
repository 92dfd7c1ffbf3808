"""How much memory a model takes to serve and to learn; the constants were measured (docs/operate.md)."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.doctor.shapes import Shape
from appliance.sections import ModelConfig, TrainConfig

MB = 1e6
PROGRAM = 180 * MB
"""The serving process without a model."""
WORKING = 0.06
"""Of the weights' bytes: what a step computes with."""
TRAINER = {"ort": (400 * MB, 4.2), "peft": (660 * MB, 5.6)}
"""The trainer up to its first steps: without a model, and bytes for each of its weights."""
LATER = 1.15
"""How much larger it has become when it ends."""
TALK = 1024
"""Tokens of a conversation; the rest of the context takes memory only when it is used."""


@dataclass(frozen=True)
class Need:
    """Bytes of memory.

    Attributes:
        start: of the serving process, ready.
        serve: with every slot in a conversation of `TALK` tokens and the prefix cache full.
        full: with every slot at the end of its context.
        learn: of the trainer or the gate at its peak, beside that.
    """

    start: float
    serve: float
    full: float
    learn: float

    @property
    def both(self) -> float:
        """Serving while a run goes on, and a switch to what it made."""
        return self.serve + self.learn


def need(shape: Shape, model: ModelConfig, train: TrainConfig, backend: str = "") -> Need:
    """What a model takes with these settings.

    Args:
        shape: the model's.
        model: slots, context and prefix cache.
        train: what is learned, and by which backend.
        backend: the one that `auto` stands for; by default the smaller one where it knows the model.
    """
    start = PROGRAM + shape.stored
    context = min(model.context_length or shape.context, shape.context)
    cache = model.prefix_cache_mb * 1024 * 1024
    loaded = start * (1 + WORKING) + cache

    def slots(tokens: int) -> float:
        return float(model.slots * min(tokens, context) * shape.kept)

    return Need(start, loaded + slots(TALK), loaded + slots(context), learn(shape, train, backend))


def learn(shape: Shape, train: TrainConfig, backend: str = "") -> float:
    """The trainer's peak."""
    known = backend or (train.backend if train.backend != "auto" else "ort" if shape.plain else "peft")
    program, each = TRAINER[known]
    return LATER * (program + each * shape.parameters)
