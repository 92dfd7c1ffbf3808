"""The dimensions of a model that the trainer on ONNX Runtime knows, from its `config.json`.

Imports neither onnx nor a runtime: the daemon asks here, too, whether that trainer knows its model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, eq=False)
class Llama:
    """The dimensions of a Llama model.

    Attributes:
        head: width of a head.
        frequencies: of the rotary positions, [head / 2].
    """

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    layers: int
    vocabulary: int
    epsilon: float
    tied: bool
    frequencies: npt.NDArray[np.float64]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Llama:
        """Read a checkpoint's `config.json`.

        Raises:
            ValueError: it has what these graphs do not.
        """
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        odd = [
            config.get("model_type") not in ("llama", "mistral"),
            config.get("hidden_act") != "silu",
            rope.get("rope_type", "default") != "default",
            config.get("attention_bias") or config.get("mlp_bias") or config.get("sliding_window"),
        ]
        if any(odd):
            raise ValueError('The trainer "ort" knows plain Llama models only; set [train] backend = "peft".')
        heads = config["num_attention_heads"]
        head = config.get("head_dim") or config["hidden_size"] // heads
        theta = rope.get("rope_theta") or config["rope_theta"]
        return cls(
            hidden=config["hidden_size"],
            inner=config["intermediate_size"],
            heads=heads,
            kv_heads=config["num_key_value_heads"],
            head=head,
            layers=config["num_hidden_layers"],
            vocabulary=config["vocab_size"],
            epsilon=config["rms_norm_eps"],
            tied=config["tie_word_embeddings"],
            frequencies=1.0 / theta ** (np.arange(0, head, 2) / head),
        )

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads

    def linears(self, layer: int) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of a layer's linear modules, by their names in the checkpoint."""
        wide, narrow = self.heads * self.head, self.kv_heads * self.head
        shapes = {
            "q_proj": (wide, self.hidden),
            "k_proj": (narrow, self.hidden),
            "v_proj": (narrow, self.hidden),
            "o_proj": (self.hidden, wide),
            "gate_proj": (self.inner, self.hidden),
            "up_proj": (self.inner, self.hidden),
            "down_proj": (self.hidden, self.inner),
        }
        place = f"model.layers.{layer}"
        return {
            f"{place}.{'self_attn' if name in ATTENTION else 'mlp'}.{name}": shape
            for name, shape in shapes.items()
        }

    def weights(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights of a layer."""
        place = f"model.layers.{layer}"
        norms = {f"{place}.{name}_layernorm.weight": (self.hidden,) for name in ("input", "post_attention")}
        return {**norms, **{f"{name}.weight": shape for name, shape in self.linears(layer).items()}}
