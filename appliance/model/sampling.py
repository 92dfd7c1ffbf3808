"""How a model wants to be sampled, by its own files. Import time only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.model.convert import SAMPLING_HINTS
from appliance.model.weights import read_json

_BOUNDS = {
    "temperature": (0.0, 2.0),
    "top_p": (1e-9, 1.0),
    "top_k": (0, 1_000_000),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-9, 2.0),
}
"""What a request may ask for as well; a value outside is none."""


def read_sampling(checkpoint: Path) -> dict[str, float]:
    """The values that `generation_config.json`, or a GGUF file, names."""
    for name in (SAMPLING_HINTS, "generation_config.json"):
        if (checkpoint / name).exists():
            return choose(read_json(checkpoint / name))
    return {}


def choose(said: Mapping[str, Any]) -> dict[str, float]:
    """Those of a model's values that mean anything here."""
    found: dict[str, float] = {}
    for key, (low, high) in _BOUNDS.items():
        value = said.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
            found[key] = int(value) if key == "top_k" else round(float(value), 6)
    if said.get("do_sample") is False:
        found["temperature"] = 0.0
    return found
