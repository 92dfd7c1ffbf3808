"""A network on torch and PEFT in training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from appliance.adapters.file import Matrix
from appliance.learning.train.data import Tokens
from appliance.learning.train.learner import BETAS, CLIP, EPSILON, Judged
from appliance.learning.train.loss import Terms
from appliance.learning.train.network import Anchored, Network


class PeftLearner(Network):
    """The network with its optimizer; a `Learner`."""

    _optimizer: torch.optim.AdamW | None = None
    _anchored: Sequence[Anchored] = ()
    _anchor_weight = 0.0

    def prepare(self, items: Sequence[Tokens]) -> None:
        """Nothing can go: PEFT holds the whole model."""

    def anchor(self, ordinary: Sequence[Tokens], weight: float) -> None:
        self._anchored, self._anchor_weight = self.anchored(ordinary), weight

    def judge(self, batch: Sequence[Tokens]) -> list[Judged]:
        with torch.no_grad():
            states = self.hidden(batch)
            out = []
            for item, hidden in zip(batch, states, strict=True):
                logp = _picked(self.logits(hidden).log_softmax(-1), _answers([item]))
                out.append(Judged(logp.numpy(), hidden.numpy()))
        return out

    def learn(self, batch: Sequence[Tokens], terms: Terms, rate: float) -> float:
        hidden = torch.cat(self.hidden(batch))
        loss = self._loss(self.logits(hidden).log_softmax(-1), _answers(batch), terms)
        if self._anchored:
            loss = loss + self._anchor_weight * torch.stack([layer.moved() for layer in self._anchored]).sum()
        value = loss.item()
        if not math.isfinite(value):
            raise ArithmeticError("The loss is not finite.")
        optimizer = self._adamw()
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return value

    def start_from(self, tensors: Mapping[str, Matrix], scale: float) -> None:
        super().start_from(tensors, scale)
        self._optimizer = None

    def state(self) -> dict[str, npt.NDArray[Any]]:
        state: dict[str, npt.NDArray[Any]] = {}
        for index, parameter in enumerate(self.parameters()):
            state[f"{index}.weight"] = parameter.detach().numpy()
            for name, value in self._adamw().state[parameter].items():
                state[f"{index}.{name}"] = value.numpy()
        return state

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters()):
                names = [name for name in state if name.startswith(f"{index}.")]
                mine = {name.partition(".")[2]: torch.tensor(state[name]) for name in names}
                parameter.copy_(mine.pop("weight"))
                self._adamw().state[parameter] = mine

    def _adamw(self) -> torch.optim.AdamW:
        if self._optimizer is None:
            self._optimizer = torch.optim.AdamW(self.parameters(), betas=BETAS, eps=EPSILON, weight_decay=0.0)
        return self._optimizer

    def _loss(self, ours: Tensor, answers: Tensor, terms: Terms) -> Tensor:
        logp = _picked(ours, answers)
        loss = (torch.from_numpy(terms.push) * torch.relu(logp - torch.from_numpy(terms.floor))).sum()
        loss = loss - (torch.from_numpy(terms.weight) * logp).sum()
        if len(terms.kept):
            with torch.no_grad():
                theirs = self.logits(torch.from_numpy(terms.reference)).log_softmax(-1)
            apart = theirs - ours[torch.from_numpy(terms.kept)]
            loss = loss + (torch.from_numpy(terms.keep) * (theirs.exp() * apart).sum(-1)).sum()
        return loss


def _answers(batch: Sequence[Tokens]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.array(item.ids[item.start :], np.int64) for item in batch]))


def _picked(logs: Tensor, ids: Tensor) -> Tensor:
    return torch.gather(logs, 1, ids[:, None])[:, 0]
