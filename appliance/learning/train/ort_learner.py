"""A model on onnxruntime-training in training.

Its graphs are made and differentiated here, in a fraction of a second, for the run's layers and rank.
Only the adapter is a parameter of them; the frozen weights are bound as inputs, without a copy.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from appliance.adapters.file import Matrix, tensor_key
from appliance.learning.train.anchor import Moments, measured
from appliance.learning.train.data import Tokens
from appliance.learning.train.learner import Judged
from appliance.learning.train.lineage import continued
from appliance.learning.train.llama import Llama
from appliance.learning.train.loss import Terms
from appliance.learning.train.ort_graph import Anchor, layer_graph, moments_input, training_graph
from appliance.learning.train.ort_session import Inputs, TrainingSession, session_options, value
from appliance.learning.train.packing import Row, begins, groups
from appliance.learning.train.shelf import Shelf

BLOCKED = np.float32(-1e9)


class OrtLearner:
    """A Llama checkpoint with one trainable adapter and its optimizer; a `Learner`."""

    def __init__(
        self,
        config: Mapping[str, Any],
        weights: dict[str, Matrix],
        *,
        rank: int,
        alpha: float,
        layers: float,
        prefix: Sequence[int] = (),
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        """Build it.

        Args:
            config: the checkpoint's `config.json`.
            weights: of the checkpoint; they are taken out, for the memory is taken over.
            rank: of the adapter.
            alpha: the update counts `alpha / rank`.
            layers: share of the layers, counted from the top, that get an adapter.
            prefix: the tokens that most sequences begin with.
            seed: of the adapter's first values.
            threads: to compute with.

        Raises:
            ValueError: the model has what the graphs here do not.
        """
        self._llama = llama = Llama.of(config)
        self._first = llama.layers - max(1, round(llama.layers * layers))
        self._rank = rank
        self._full = self._scale = alpha / rank
        self._prefix = tuple(prefix)
        self._weights = dict(weights)
        weights.clear()
        self._below: Shelf[tuple[int, ...]] = Shelf()
        self._options = session_options(threads)
        self._layer = onnxruntime.InferenceSession(layer_graph(llama).SerializeToString(), self._options)
        self._anchors: dict[str, Anchor] = {}
        self._moments: dict[str, onnxruntime.OrtValue] = {}
        self._start = _fresh(llama, self._first, rank, seed)
        self._opened: TrainingSession | None = None

    def size(self, item: Tokens) -> int:
        return len(item.ids) - (len(self._prefix) if begins(item.ids, self._prefix) else 0)

    def prepare(self, items: Sequence[Tokens]) -> None:
        """Compute what is below the adapter for all, and let go of the weights there."""
        for group in groups(dict.fromkeys(item.ids for item in items)):
            self._keep_below(group)
        for layer in range(self._first):
            for name in self._llama.weights(layer):
                self._weights.pop(name, None)
        _return_free_memory()

    def anchor(self, ordinary: Sequence[Tokens], weight: float) -> None:
        self._begin(self.adapter())
        self._moments = {}
        rows = [Row(group, self._prefix) for group in groups(item.ids for item in ordinary)]
        states = [self._state_below(row) for row in rows]
        graph = layer_graph(self._llama, moments=True)
        session = onnxruntime.InferenceSession(graph.SerializeToString(), self._options)
        for layer in range(self._first, self._llama.layers):  # one by one, for the sums are large
            moments = self._measure(session, layer, rows, states)
            for module in self._llama.linears(layer):
                found = moments[measured(module)]
                share = self._full**2 / found.output(self._weights[f"{module}.weight"])
                self._anchors[module] = Anchor(found.rest, weight * share)
            self._moments |= {moments_input(name): value(found.main) for name, found in moments.items()}

    @contextmanager
    def base(self) -> Iterator[None]:
        self._scale = 0.0
        try:
            yield
        finally:
            self._scale = self._full

    def judge(self, batch: Sequence[Tokens]) -> list[Judged]:
        none = np.zeros(sum(item.answer for item in batch), np.float32)
        _, logp, hidden = self._session.judge(self._inputs(batch, Terms(none, none, none)))
        bounds = np.cumsum([item.answer for item in batch])[:-1]
        pieces = zip(np.split(logp, bounds), np.split(hidden, bounds), strict=True)
        return [Judged(*pair) for pair in pieces]

    def learn(self, batch: Sequence[Tokens], terms: Terms, rate: float) -> float:
        return self._session.learn(self._inputs(batch, terms), rate)

    def scale(self, factor: float) -> None:
        for name, matrix in self.adapter().items():
            if "lora_B" in name:
                self._session.set(name, matrix * np.float32(factor))

    def adapter(self) -> dict[str, Matrix]:
        return dict(self._start) if self._opened is None else self._opened.parameters()

    def start_from(self, tensors: Mapping[str, Matrix], scale: float) -> None:
        self._begin(continued(self.adapter(), tensors, self._rank, scale / self._full))

    def state(self) -> dict[str, npt.NDArray[Any]]:
        return {"session": np.frombuffer(self._session.state(), np.uint8)}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        self._session.restore(state["session"].tobytes())

    def _begin(self, adapter: Mapping[str, Matrix]) -> None:
        """Start from this adapter, with nothing learned yet."""
        self._start, self._opened = dict(adapter), None

    @property
    def _session(self) -> TrainingSession:
        """Made at first use, for what is in its graph depends on `anchor`."""
        if self._opened is None:
            graph = training_graph(self._llama, self._first, self._start, self._anchors)
            names = {entry.name for entry in graph.graph.input}
            weights = {name: array for name, array in self._weights.items() if name in names}
            frozen = {name: value(array, copy=False) for name, array in weights.items()}
            self._opened = TrainingSession(
                graph, set(self._start), {**frozen, **self._moments}, self._options
            )
            self._start = {}
        return self._opened

    def _measure(
        self, session: onnxruntime.InferenceSession, layer: int, rows: Sequence[Row], states: list[Matrix]
    ) -> dict[str, Moments]:
        """Of what the layer's linear modules are given, with the rows' states below; they move above it."""
        totals = {
            module: np.zeros((inputs, inputs), np.float32)
            for module, (_, inputs) in self._llama.linears(layer).items()
            if measured(module) == module
        }
        called = [module for module in self._llama.linears(0) if measured(module) == module]
        wanted = ["out", *map(moments_input, called)]
        weights = self._layer_weights(layer)
        for at, row in enumerate(rows):
            given = {"state": states[at], **self._row(row), **weights}
            states[at], *sums = session.run(wanted, given)
            for total, part in zip(totals.values(), sums, strict=True):
                total += part
        count = sum(map(len, states))
        return {module: Moments.of(total, count) for module, total in totals.items()}

    def _layer_weights(self, layer: int) -> dict[str, Matrix]:
        """As the graph of one layer calls them."""
        names = zip(self._llama.weights(0), self._llama.weights(layer), strict=True)
        return {name: self._weights[own] for name, own in names}

    def _state_below(self, row: Row) -> Matrix:
        """Input of the first layer with an adapter, [tokens, hidden]."""
        given = self._row(row)
        state = self._weights["model.embed_tokens.weight"][row.ids]
        for layer in range(self._first):
            (state,) = self._layer.run(["out"], {"state": state, **given, **self._layer_weights(layer)})
        return state

    def _inputs(self, batch: Sequence[Tokens], terms: Terms) -> Inputs:
        sequences = [item.ids for item in batch]
        self._keep_below(sequences)
        row = Row(sequences, self._prefix)
        ends = row.ends[row.shared :]
        given = {
            "state": np.concatenate([self._below[key] for key in row.keys]),
            **self._row(row),
            "scale": np.array([self._scale], np.float32),
            "answer": np.concatenate(
                [np.arange(end - item.answer - 1, end - 1) for item, end in zip(batch, ends, strict=True)]
            ),
            "target": np.concatenate([item.ids[item.start :] for item in batch])[:, None],
            **vars(terms),
        }
        if not len(terms.kept):  # no place for nothing in a graph: one position, and it counts nothing
            given["kept"], given["keep"] = np.zeros(1, np.int64), np.zeros(1, np.float32)
            given["reference"] = np.zeros((1, self._llama.hidden), np.float32)
        return {name: value(array) for name, array in given.items()}

    def _row(self, row: Row) -> dict[str, Matrix]:
        angles = (row.positions[:, None] * self._llama.frequencies)[:, None, :]
        mask = np.where(row.mask, np.float32(0), BLOCKED)
        return {
            "cos": np.cos(angles).astype(np.float32),
            "sin": np.sin(angles).astype(np.float32),
            "mask": np.tile(mask, (self._llama.group, 1)),
        }

    def _keep_below(self, sequences: Sequence[tuple[int, ...]]) -> None:
        """Compute the input of the first layer with an adapter, where it is not known yet."""
        fresh = [ids for ids in dict.fromkeys(sequences) if ids not in self._below]
        if not fresh:
            return
        row = Row(fresh, self._prefix)
        state = self._state_below(row)
        for key, end, length in zip(row.keys, row.ends, row.lengths, strict=True):
            self._below.put(key, state[end - length : end])


def _return_free_memory() -> None:
    """Have the C library give back what it keeps for later, where it can be asked to."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _fresh(llama: Llama, first: int, rank: int, seed: int) -> dict[str, Matrix]:
    """A new adapter, drawn from the distribution that PEFT takes: B is zero, so it changes nothing yet."""
    random = np.random.default_rng(seed)
    out = {}
    for layer in range(first, llama.layers):
        for module, (outputs, inputs) in llama.linears(layer).items():
            bound = inputs**-0.5
            out[tensor_key(module, "A")] = random.uniform(-bound, bound, (rank, inputs)).astype(np.float32)
            out[tensor_key(module, "B")] = np.zeros((outputs, rank), np.float32)
    return out
