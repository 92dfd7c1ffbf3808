"""The model under training: frozen base, LoRA on the linear layers of the upper layers.

Sequences are packed into one row, each attending to itself only, so no token is padding. The start
that nearly all share (the template's system message) is in the row once, and all that begin with it
attend to it. What the layers below the lowest adapter make of a sequence never changes, so it is
computed once and kept.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from appliance.learning.train.data import Tokens

Matrix = npt.NDArray[np.float32]
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


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
        llama = LlamaConfig(**{**config, "attn_implementation": "sdpa"})
        with torch.device("meta"):
            model = LlamaForCausalLM(llama)
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()}
        if llama.tie_word_embeddings:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        model.load_state_dict(tensors, assign=True)
        model.tie_weights()
        model.model.rotary_emb = type(model.model.rotary_emb)(llama)
        total = llama.num_hidden_layers
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
        return len(item.ids) - (len(self._prefix) if _begins(item.ids, self._prefix) else 0)

    def hidden(self, batch: Sequence[Tokens]) -> list[Tensor]:
        """Last hidden states that predict each sequence's answer tokens, [answer, width] each."""
        self._keep_below([item.ids for item in batch])
        row = _Row([item.ids for item in batch], self._prefix)
        state = torch.cat([self._below[key] for key in row.keys])[None]
        state = self._run(state, row, self.first, len(self._model.layers))
        state = self._model.norm(state[0])
        return [
            state[end - item.answer - 1 : end - 1]
            for item, end in zip(batch, row.ends[row.shared :], strict=True)
        ]

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary scores of hidden states."""
        return self._head(hidden)  # type: ignore[no-any-return]

    def adapter(self) -> dict[str, Matrix]:
        """The adapter's weights under their PEFT names."""
        state = get_peft_model_state_dict(self._peft)
        return {name: tensor.detach().float().contiguous().numpy() for name, tensor in state.items()}

    def start_from(self, tensors: Mapping[str, Matrix], scale: float) -> None:
        """Take over an earlier adapter whose update counts `scale`; its rank may differ."""
        ours = self.adapter()
        own_scale = self.alpha / self.rank
        for name_a in [name for name in ours if name.endswith("lora_A.weight")]:
            name_b = name_a.replace("lora_A", "lora_B")
            if name_a not in tensors or name_b not in tensors:
                continue
            a: Matrix = np.asarray(tensors[name_a], np.float32)
            b: Matrix = np.asarray(tensors[name_b], np.float32) * np.float32(scale / own_scale)
            if a.shape[0] > self.rank:
                left, sizes, right = np.linalg.svd(b @ a, full_matrices=False)
                root = np.sqrt(sizes[: self.rank])
                a, b = root[:, None] * right[: self.rank], left[:, : self.rank] * root
            kept = a.shape[0]
            ours[name_a] = np.concatenate([a, ours[name_a][kept:]])
            ours[name_b] = np.concatenate([b, np.zeros_like(ours[name_b][:, kept:])], axis=1)
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
        row = _Row(fresh, self._prefix)
        with torch.no_grad():
            state = self._run(self._model.embed_tokens(row.ids[None]), row, 0, self.first)[0]
        # Copies, for a view would keep the whole row alive.
        for key, end, length in zip(row.keys, row.ends, row.lengths, strict=True):
            self._below[key] = state[end - length : end].clone()

    def _run(self, state: Tensor, row: _Row, first: int, last: int) -> Tensor:
        positions = row.positions[None]
        rotary = self._model.rotary_emb(state, position_ids=positions)
        for layer in self._model.layers[first:last]:
            state = layer(
                state,
                attention_mask=row.mask[None, None],
                position_ids=positions,
                position_embeddings=rotary,
                use_cache=False,
            )
        return state


def _begins(ids: tuple[int, ...], prefix: tuple[int, ...]) -> bool:
    # One more token must be left, as the prefix itself predicts nothing in a row.
    return bool(prefix) and len(ids) > len(prefix) + 1 and ids[: len(prefix)] == prefix


class _Row:
    """Sequences one after the other, the shared prefix first and once.

    Attributes:
        shared: 1 when the prefix is there, else 0.
        keys: what each piece is known by: the prefix, then the whole sequences.
        lengths: tokens of each piece.
        ends: where each piece ends in the row.
    """

    def __init__(self, sequences: Sequence[tuple[int, ...]], prefix: tuple[int, ...]) -> None:
        skip = len(prefix)
        begins = [_begins(ids, prefix) for ids in sequences]
        self.shared = int(any(begins))
        pieces = [ids[skip:] if begin else ids for ids, begin in zip(sequences, begins, strict=True)]
        starts = [skip if begin else 0 for begin in begins]
        self.keys = list(sequences)
        if self.shared:
            pieces, starts, self.keys = [prefix, *pieces], [0, *starts], [prefix, *self.keys]
        self.lengths = [len(piece) for piece in pieces]
        self.ends = list(itertools.accumulate(self.lengths))
        self.ids = torch.tensor([ident for piece in pieces for ident in piece])
        self.positions = torch.cat(
            [torch.arange(start, start + len(piece)) for piece, start in zip(pieces, starts, strict=True)]
        )
        lengths = torch.tensor(self.lengths)
        owner = torch.repeat_interleave(torch.arange(len(pieces)), lengths)
        sees_prefix = torch.repeat_interleave(torch.tensor(starts) > 0, lengths)
        same = owner[:, None] == owner[None, :]
        if self.shared:
            same |= sees_prefix[:, None] & (owner == 0)[None, :]
        self.mask = same & torch.ones_like(same).tril_()
