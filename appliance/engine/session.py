"""One ONNX Runtime session: base weights, or those with an adapter merged into them (see `merge.py`)."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from appliance.adapters.file import Adapter
from appliance.engine.cache import KVCache
from appliance.engine.merge import merge
from appliance.errors import Unavailable
from appliance.hardware import default_threads
from appliance.model.bundle import Bundle

SPIN_MICROSECONDS = 50
ort.set_default_logger_severity(3)  # it warns of an option that is set twice, and sets it twice itself
BINDINGS = 64  # row ranges whose cache bindings are kept; making one costs milliseconds


def weights_of(adapter: Adapter | None) -> str:
    """Identity of the weights with an adapter, or base: a name can be used again for others."""
    return adapter.sha256 if adapter else "base"


class Session:
    """A built session bound to a cache. Not thread-safe: one thread steps it."""

    def __init__(self, bundle: Bundle, adapter: Adapter | None, cache: KVCache, *, threads: int = 0) -> None:
        """Build it.

        Args:
            bundle: the base model.
            adapter: its LoRA matrices, or None for base.
            cache: where keys and values live; sessions of the same bundle may share one.
            threads: threads to compute with; 0 for `default_threads()`.

        Raises:
            Unavailable: ONNX Runtime could not build it (memory, broken file).
        """
        manifest = bundle.manifest
        self.adapter = adapter.name if adapter else None
        self.weights = weights_of(adapter)
        self.vocab_size = manifest.vocab_size
        self._cache = cache
        self._bindings: OrderedDict[tuple[int, int], ort.IOBinding] = OrderedDict()
        names = [f"{i}.{kind}" for i in range(manifest.layers) for kind in ("key", "value")]
        self._past = [f"past_key_values.{name}" for name in names]
        self._present = [f"present.{name}" for name in names]
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or default_threads()
        options.log_severity_level = 3
        # A thread that waits spins a moment before it sleeps: long enough for the next operation of the same
        # step, so that an idle box gains what spinning gains, and too short to take the processor from
        # others, which would halve the speed of a busy one. See docs/performance.md.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
        # Kept as long as the session: where the runtime has no packed form for a processor, it computes
        # with these very arrays.
        self._changed: dict[str, NDArray[np.generic]] = {}
        try:
            if adapter is not None:
                self._changed = dict(merge(bundle, adapter))
                values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self._changed.values()]
                options.add_external_initializers(list(self._changed), values)
            model = os.fspath(bundle.model_path)
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises bare pybind exceptions of several types
            what = f"adapter {self.adapter}" if self.adapter else "the base model"
            raise Unavailable(f"A session with {what} could not be built: {error}") from error

    def use(self, cache: KVCache) -> None:
        """Work on another cache from now on: a session is tried on a small one, then put in service."""
        self._cache = cache
        self._bindings.clear()

    def step(
        self,
        tokens: NDArray[np.int64],
        row: int,
        lengths: NDArray[np.int32],
        counts: NDArray[np.int32],
        wanted: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Append tokens to cached sequences and compute logits.

        A token's logits and cache entries are the same to the bit whoever else is in the step, and however
        a sequence is cut into steps.

        Args:
            tokens: [T] ids: those of the first row, then those of the second, and so on.
            row: first row of the cache; the B sequences are rows `row … row + B - 1`.
            lengths: [B] tokens already cached in each row.
            counts: [B] how many of `tokens` belong to each row. The two places after a row's tokens may be
                overwritten; the capacity must have room for them, if there is but one token, or none.
            wanted: [n] positions in `tokens` whose logits are computed.

        Returns:
            [n, vocab] logits.

        Raises:
            Unavailable: the runtime failed; the cache rows hold nothing of use.
        """
        layout = _layout(tuple(counts.tolist()))
        last = lengths + layout.counts - np.int32(1)
        # Of the longest row, padding included.
        total = np.array(max(int(last.max()) + 1, layout.unpack.shape[1]), np.int32)
        logits = np.empty((len(wanted), self.vocab_size), np.float32)
        binding = self._binding(row, len(counts))
        # Raw pointers: these arrays live until run returns, which is all the binding asks for.
        for name, array in (
            ("input_ids", tokens),
            ("seqlens_k", last),
            ("query_seqlens", layout.counts),
            ("total_sequence_length", total),
            ("unpack_index", layout.unpack),
            ("pack_index", layout.pack),
            ("logits_index", wanted),
        ):
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # as in the constructor
            raise Unavailable(f"The model failed to compute: {error}") from error
        return logits

    def _binding(self, row: int, batch: int) -> ort.IOBinding:
        key = (row, batch)
        binding = self._bindings.get(key)
        if binding is None:
            binding = self._session.io_binding()
            for past, present, buffer in zip(self._past, self._present, self._cache.buffers, strict=True):
                view = buffer[row : row + batch]
                binding.bind_input(past, "cpu", 0, np.float32, view.shape, view.ctypes.data)
                binding.bind_output(present, "cpu", 0, np.float32, view.shape, view.ctypes.data)
            self._bindings[key] = binding
            if len(self._bindings) > BINDINGS:
                self._bindings.popitem(last=False)
        self._bindings.move_to_end(key)
        return binding


@dataclass(frozen=True)
class _Layout:
    """How flat tokens lie in attention's rows.

    Attributes:
        counts: [B] places of each row that attention takes for tokens.
        unpack: [B, S] the token at each place of a row; padding repeats the row's last.
        pack: [T, 2] row and place of each token.
    """

    counts: NDArray[np.int32]
    unpack: NDArray[np.int64]
    pack: NDArray[np.int64]


@lru_cache(maxsize=256)
def _layout(counts: tuple[int, ...]) -> _Layout:
    real = np.array(counts, np.int64)
    # Attention has another kernel for a lone token, which rounds otherwise than when the same token is
    # among others. So none is alone: a second one follows it, which nobody looks at and whose cache
    # entries the next real token overwrites.
    filled = np.maximum(real, 2)
    starts = np.minimum(np.cumsum(real) - real, real.sum() - 1)
    unpack = starts[:, None] + np.minimum(np.arange(filled.max()), np.maximum(real, 1)[:, None] - 1)
    rows = np.repeat(np.arange(len(real)), real)
    pack = np.stack([rows, np.arange(len(rows)) - starts[rows]], axis=1)
    return _Layout(filled.astype(np.int32), unpack, pack)
