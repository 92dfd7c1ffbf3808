"""The sizes of models: those on this box, and well-known open ones that can be imported."""

from __future__ import annotations

import json
from dataclasses import dataclass

from appliance.model.bundle import Bundle

BLOCK_BYTES = 36
"""Of 32 weights: a byte each, and a scale of four. As `model/quantize.py` writes them."""


@dataclass(frozen=True)
class Shape:
    """What decides how much memory a model takes and how fast it is.

    Attributes:
        layers: how many.
        linear: weights of all their linear layers.
        words: weights of the embedding: vocabulary times width.
        tied: the head is the embedding, too.
        vocabulary: tokens that it knows.
        kv_heads: of a layer.
        head: width of one.
        context: longest text, in tokens.
        plain: the smaller trainer (`ort`) knows its kind.
    """

    layers: int
    linear: int
    words: int
    tied: bool
    vocabulary: int
    kv_heads: int
    head: int
    context: int
    plain: bool

    @property
    def parameters(self) -> int:
        """Weights, but for the few that scale and shift."""
        return self.linear + self.words * (1 if self.tied else 2)

    @property
    def stored(self) -> float:
        """Bytes of the bundle's weights: embedding and head each have their own form, even when tied."""
        return (self.linear + 2 * self.words) * BLOCK_BYTES / 32 + 4 * self.context * self.head

    @property
    def read(self) -> float:
        """Bytes of weights that one token takes: all but the embedding, of which it is a row."""
        return (self.linear + self.words) * BLOCK_BYTES / 32

    @property
    def kept(self) -> int:
        """Bytes of keys and values for each token of a conversation."""
        return 2 * 4 * self.layers * self.kv_heads * self.head


def shape_of(bundle: Bundle) -> Shape:
    """The shape of a model on this box."""
    manifest = bundle.manifest
    try:
        config = json.loads((bundle.path / "config.json").read_text(encoding="utf-8"))
        tied = bool(config.get("tie_word_embeddings", False))
    except (OSError, ValueError, AttributeError):
        tied = True
    return Shape(
        layers=manifest.layers,
        linear=sum(port.inputs * port.outputs for port in manifest.ports),
        words=manifest.vocab_size * manifest.hidden,
        tied=tied,
        vocabulary=manifest.vocab_size,
        kv_heads=manifest.kv_heads,
        head=manifest.head_dim,
        context=manifest.context_length,
        plain=manifest.family in ("llama", "mistral"),
    )


@dataclass(frozen=True)
class Known:
    """A model that others publish.

    Attributes:
        id: on the hub, as `shammah model import` takes it.
        family: as its `config.json` calls it.
        remark: what to know before importing it.
    """

    id: str
    family: str
    shape: Shape
    remark: str = ""


def _known(
    ident: str,
    family: str,
    sizes: tuple[int, int, int, int, int, int, int, int],
    *,
    tied: bool = True,
    plain: bool | None = None,
    remark: str = "",
) -> Known:
    layers, hidden, inner, heads, kv_heads, head, vocabulary, context = sizes
    attention = 2 * hidden * heads * head + 2 * hidden * kv_heads * head
    shape = Shape(
        layers=layers,
        linear=layers * (attention + 3 * hidden * inner),
        words=vocabulary * hidden,
        tied=tied,
        vocabulary=vocabulary,
        kv_heads=kv_heads,
        head=head,
        context=context,
        plain=family in ("llama", "mistral") if plain is None else plain,
    )
    return Known(ident, family, shape, remark)


_GATED = "its terms must be accepted on the hub first"
_RESEARCH = "its licence is for research"
# layers, width, inner width, heads, key heads, width of a head, vocabulary, context
KNOWN = (
    _known("HuggingFaceTB/SmolLM2-135M-Instruct", "llama", (30, 576, 1536, 9, 3, 64, 49152, 8192)),
    _known("HuggingFaceTB/SmolLM2-360M-Instruct", "llama", (32, 960, 2560, 15, 5, 64, 49152, 8192)),
    _known("Qwen/Qwen2.5-0.5B-Instruct", "qwen2", (24, 896, 4864, 14, 2, 64, 151936, 32768)),
    _known(
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "llama", (22, 2048, 5632, 32, 4, 64, 32000, 2048), tied=False
    ),
    _known(
        "meta-llama/Llama-3.2-1B-Instruct",
        "llama",
        (16, 2048, 8192, 32, 8, 64, 128256, 131072),
        plain=False,
        remark=_GATED,
    ),
    _known("Qwen/Qwen2.5-1.5B-Instruct", "qwen2", (28, 1536, 8960, 12, 2, 128, 151936, 32768)),
    _known("HuggingFaceTB/SmolLM2-1.7B-Instruct", "llama", (24, 2048, 8192, 32, 32, 64, 49152, 8192)),
    _known(
        "Qwen/Qwen2.5-3B-Instruct", "qwen2", (36, 2048, 11008, 16, 2, 128, 151936, 32768), remark=_RESEARCH
    ),
    _known(
        "meta-llama/Llama-3.2-3B-Instruct",
        "llama",
        (28, 3072, 8192, 24, 8, 128, 128256, 131072),
        plain=False,
        remark=_GATED,
    ),
    _known(
        "mistralai/Mistral-7B-Instruct-v0.3",
        "mistral",
        (32, 4096, 14336, 32, 8, 128, 32768, 32768),
        tied=False,
        remark=_GATED,
    ),
    _known("Qwen/Qwen2.5-7B-Instruct", "qwen2", (28, 3584, 18944, 28, 4, 128, 152064, 32768), tied=False),
)
"""Of the families that can be imported, the small instructed ones, by size."""
