"""The model under training: frozen base, LoRA on the linear layers of the upper layers.

Sequences are packed into rows, see `packing.py`. What the layers below the lowest adapter make of a
sequence never changes, so it is computed once and kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from appliance.adapters.file import Matrix
from appliance.learning.train.anchor import SAME_INPUT, Moments
from appliance.learning.train.data import Tokens
from appliance.learning.train.learner import LINEARS
from appliance.learning.train.lineage import continued
from appliance.learning.train.packing import Row, begins, groups

ADAPTER = "default"  # PEFT's name of it


def load_llama(config: Mapping[str, Any], state: Mapping[str, Matrix]) -> LlamaForCausalLM:
    """The model of a checkpoint's `config.json` and weights, whose memory is taken over, not copied."""
    llama = LlamaConfig(**{**config, "attn_implementation": "sdpa"})
    with torch.device("meta"):
        model = LlamaForCausalLM(llama)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()}
    if llama.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(llama)
    return model


class Network:
    """A Llama checkpoint with one trainable adapter."""

    def __init__(
        self,
        config: Mapping[str, Any],
        state: Mapping[str, Matrix],
        *,
        rank: int,
        alpha: float,
        layers: float,
        prefix: Sequence[int] = (),
    ) -> None:
        """Build it.

        Args:
            config: the checkpoint's `config.json`.
            state: its weights; the memory is taken over, not copied.
            rank: of the adapter.
            alpha: the update counts `alpha / rank`.
            layers: share of the layers, counted from the top, that get an adapter.
            prefix: the tokens that most sequences begin with.
        """
        model = load_llama(config, state)
        total = model.config.num_hidden_layers
        self.first = total - max(1, round(total * layers))
        self.rank, self.alpha = rank, alpha
        lora = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # only ever divided by the rank
            target_modules=list(LINEARS),
            layers_to_transform=list(range(self.first, total)),
            layers_pattern="layers",
            lora_dropout=0.0,
            bias="none",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT reads a name that transformers renames
            self._peft = get_peft_model(model, lora)
        self._peft.eval()
        self._model = model.model
        self._head = model.lm_head
        self._prefix = tuple(prefix)
        self._below: dict[tuple[int, ...], Tensor] = {}

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [item for item in self._peft.parameters() if item.requires_grad]

    def base(self) -> AbstractContextManager[None]:
        """Within it the adapter is off."""
        return self._peft.disable_adapter()

    def size(self, item: Tokens) -> int:
        """Tokens that the sequence adds to a row."""
        return len(item.ids) - (len(self._prefix) if begins(item.ids, self._prefix) else 0)

    def hidden(self, batch: Sequence[Tokens]) -> list[Tensor]:
        """Last hidden states that predict each sequence's answer tokens, [answer, width] each."""
        self._keep_below([item.ids for item in batch])
        row = Row([item.ids for item in batch], self._prefix)
        state = torch.cat([self._below[key] for key in row.keys])[None]
        state = self._run(state, row, self.first, len(self._model.layers))
        state = self._model.norm(state[0])
        return [
            state[end - item.answer - 1 : end - 1]
            for item, end in zip(batch, row.ends[row.shared :], strict=True)
        ]

    @torch.no_grad()
    def anchored(self, ordinary: Sequence[Tokens]) -> list[Anchored]:
        """The linear layers with an adapter, and what they are given in these sequences by the bare base."""
        rows = [Row(group, self._prefix) for group in groups(item.ids for item in ordinary)]
        embed = self._model.embed_tokens
        out = []
        with self.base():
            states = [self._run(embed(torch.from_numpy(row.ids)[None]), row, 0, self.first) for row in rows]
            for number in range(self.first, len(self._model.layers)):  # one by one, for the sums are large
                inputs = _Inputs(self._model.layers[number])
                for at, row in enumerate(rows):
                    states[at] = self._run(states[at], row, number, number + 1)
                out += inputs.anchored()
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary scores of hidden states."""
        return self._head(hidden)  # type: ignore[no-any-return]

    def adapter(self) -> dict[str, Matrix]:
        """The adapter's weights under their PEFT names."""
        state = get_peft_model_state_dict(self._peft)
        return {name: tensor.detach().float().contiguous().numpy() for name, tensor in state.items()}

    def start_from(self, tensors: Mapping[str, Matrix], scale: float) -> None:
        """Take over an earlier adapter whose update counts `scale`; its rank may differ."""
        ours = continued(self.adapter(), tensors, self.rank, scale * self.rank / self.alpha)
        loaded = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in ours.items()}
        set_peft_model_state_dict(self._peft, loaded)

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply the whole update by `factor`."""
        for name, parameter in self._peft.named_parameters():
            if "lora_B" in name:
                parameter.mul_(factor)

    def _keep_below(self, sequences: Sequence[tuple[int, ...]]) -> None:
        """Compute the input of the first layer with an adapter, where it is not known yet."""
        fresh = [ids for ids in dict.fromkeys(sequences) if ids not in self._below]
        if not fresh:
            return
        row = Row(fresh, self._prefix)
        with torch.no_grad():
            state = self._run(self._model.embed_tokens(torch.from_numpy(row.ids)[None]), row, 0, self.first)[
                0
            ]
        # Copies, for a view would keep the whole row alive.
        for key, end, length in zip(row.keys, row.ends, row.lengths, strict=True):
            self._below[key] = state[end - length : end].clone()

    def _run(self, state: Tensor, row: Row, first: int, last: int) -> Tensor:
        positions = torch.from_numpy(row.positions)[None]
        mask = torch.from_numpy(row.mask)[None, None]
        rotary = self._model.rotary_emb(state, position_ids=positions)
        for layer in self._model.layers[first:last]:
            state = layer(
                state,
                attention_mask=mask,
                position_ids=positions,
                position_embeddings=rotary,
                use_cache=False,
            )
        return state


@dataclass(frozen=True, eq=False)
class Anchored:
    """A linear layer with an adapter `a` [rank, inputs], `b` [outputs, rank], and what it is given.

    Attributes:
        main, rest: see `Moments`.
        share: the square of what the update counts, over the mean square length of the layer's output.
    """

    a: Tensor
    b: Tensor
    main: Tensor
    rest: float
    share: float

    def moved(self) -> Tensor:
        """By which share the adapter moves the layer's output on ordinary text, squared, on average."""
        seen = self.a @ self.main.T
        inner = seen @ seen.T + self.rest * (self.a @ self.a.T)
        return self.share * ((self.b.T @ self.b) * inner).sum()


class _Inputs:
    """Sums x x^T over what the linear modules of a decoder layer are given, until `anchored`."""

    def __init__(self, layer: nn.Module) -> None:
        modules = layer.named_modules()
        self._linears: dict[str, Any] = {
            name.rsplit(".", 1)[-1]: module for name, module in modules if isinstance(module, LoraLayer)
        }
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._hooks = [
            module.register_forward_pre_hook(partial(self._add, name))
            for name, module in self._linears.items()
            if name not in SAME_INPUT
        ]

    def _add(self, name: str, _: nn.Module, given: tuple[Tensor]) -> None:
        inputs = given[0].flatten(0, -2)
        total = inputs.T @ inputs
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._count += len(inputs)

    def anchored(self) -> list[Anchored]:
        for hook in self._hooks:
            hook.remove()
        count = self._count // len(self._hooks)
        moments = {name: Moments.of(total.numpy(), count) for name, total in self._sums.items()}
        return [
            self._anchored(module, moments[SAME_INPUT.get(name, name)])
            for name, module in self._linears.items()
        ]

    def _anchored(self, module: Any, moments: Moments) -> Anchored:
        share = module.scaling[ADAPTER] ** 2 / moments.output(module.base_layer.weight.numpy())
        a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
        return Anchored(a, b, torch.from_numpy(moments.main), moments.rest, share)
