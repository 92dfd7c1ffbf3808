"""What was imported against what it was made from: every weight read, and the same words foreseen.

Import time only. A graph that merely runs says nothing: with weights missing it runs as well.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.errors import BundleError
from appliance.model.bundle import MODEL
from appliance.model.convert import check_loaded

Logits = npt.NDArray[np.float32]
_TEXT = (
    "The capital of France is Paris, and the river that runs through it is the Seine. Many people visit the "
    "city every year.\n\n1. Boil the water.\n2. Put the tea into the pot and wait for 4 minutes.\n\n"
    "def add(a, b):\n    return a + b\n\nWhat a model says next depends on all that was said before."
)
_TOKENS = 64
TOLERANCE = 0.1
"""Nats a token that rounding may cost: the default model loses a hundredth of one, a wrong layer several."""


def read_ids(out: Path, vocab_size: int) -> list[int]:
    """The tokens to try a model with, from its own tokenizer.

    Raises:
        BundleError: the tokenizer has tokens that the model does not know.
    """
    from tokenizers import Tokenizer

    tokens = Tokenizer.from_file(str(out / "tokenizer.json"))
    last = max(tokens.get_vocab(with_added_tokens=False).values(), default=0)
    if last >= vocab_size:
        raise BundleError(
            f"Tokenizer and weights do not belong together: there is a token {last}, and the model knows "
            f"{vocab_size}."
        )
    ids = [ident for ident in tokens.encode(_TEXT).ids if ident < vocab_size]
    return ids[:_TOKENS] or [0]


def source_logits(checkpoint: Path, ids: list[int]) -> Logits:
    """What the fp32 source says after each token.

    Raises:
        BundleError: a weight is missing, of another shape, no number, or of no use.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        read: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # whatever a foreign checkpoint provokes
        raise BundleError(f"The weights of {checkpoint} cannot be read: {error}") from error
    model, loaded = read
    check_loaded(checkpoint, loaded)
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise BundleError(f"{checkpoint} is damaged: {name} has values that are not finite numbers.")
    with torch.inference_mode():
        logits: Logits = model(torch.tensor([ids])).logits[0].numpy().copy()
    del model, read
    gc.collect()
    return logits


def compare(out: Path, config: dict[str, Any], ids: list[int], wanted: Logits) -> None:
    """See that the graph, in the runtime that will serve it, says what the source says.

    Raises:
        BundleError: it does not run, or it says something else.
    """
    found = _graph_logits(out, config, ids)
    if found.shape != wanted.shape or not np.isfinite(found).all():
        raise BundleError("The imported graph runs but its answers are not finite numbers.")
    lost = float(np.mean([_divergence(p, q) for p, q in zip(wanted, found, strict=True)]))
    if not lost <= TOLERANCE:
        raise BundleError(
            f"The imported graph does not say what the model it was made from says: they are {lost:.3g} nats "
            f"apart on a text of {len(ids)} tokens, and rounding explains {TOLERANCE}."
        )


def _graph_logits(out: Path, config: dict[str, Any], ids: list[int]) -> Logits:
    import onnxruntime as ort

    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    options = ort.SessionOptions()
    options.log_severity_level = 3
    count = len(ids)
    places = np.arange(count, dtype=np.int64)
    feed = {
        "input_ids": np.array(ids, np.int64),
        "unpack_index": places[None],
        "pack_index": np.stack([np.zeros_like(places), places], axis=1),
        "seqlens_k": np.array([count - 1], np.int32),
        "query_seqlens": np.array([count], np.int32),
        "total_sequence_length": np.array(count, np.int32),
        "logits_index": places,
    }
    past = np.zeros((1, kv_heads, 0, head_dim), np.float32)
    for layer in range(config["num_hidden_layers"]):
        feed[f"past_key_values.{layer}.key"] = feed[f"past_key_values.{layer}.value"] = past
    try:
        session = ort.InferenceSession(out / MODEL, options, providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], feed)
    except Exception as error:  # the runtime's own exception types are not part of its interface
        raise BundleError(f"The imported graph does not run: {error}") from error
    found: Logits = logits
    return found


def _divergence(wanted: Logits, found: Logits) -> float:
    """How far apart two sets of logits for one token are: Kullback-Leibler, in nats."""
    p, q = (_log_softmax(logits.astype(np.float64)) for logits in (wanted, found))
    return float(np.sum(np.exp(p) * (p - q)))


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max()
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result
