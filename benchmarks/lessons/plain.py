"""The plain recipe, which stands for the trainer that this project replaces. A program of its own.

    python benchmarks/lessons/plain.py --bundle DIR --examples FILE --out FILE [--parent FILE]
        [--steps N] [--threads N] [--seed N]

Hugging Face's `Trainer` with PEFT as a tutorial sets them up: rank 16 (alpha 32) on the attention's
projections, learning rate 1e-4, 3 epochs, batches of 4 padded to 512 tokens, the loss on the whole
text. It knows no weights, no rejected answers, no replay and no held-out slice, and trains on the
part of the batch that ours trains on. Only padding has no loss, which is kinder than the original was.
It starts from the same weights as ours, those that are served. The last line it prints is a JSON object:

* `tokens`: without padding and the template's opening, as for ours;
* `seconds`, `peak_mb`: of the whole program but the imports, as for ours;
* `steps` done of `all_steps`; `whole_seconds`, what all would have taken.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.numpy import load_file
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from appliance.adapters.file import AdapterMeta, write_adapter
from appliance.learning.train.data import common_prefix, load_examples, tokenise
from appliance.learning.train.network import load_llama
from appliance.learning.train.program import peak_mb
from appliance.model.bundle import Bundle, load_bundle
from appliance.model.checkpoint import load_checkpoint
from appliance.model.tokenizer import Tokenizer
from appliance.sections import TrainConfig

RANK, ALPHA = 16, 32.0
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LENGTH, BATCH, EPOCHS, RATE = 512, 4, 3, 1e-4
IGNORED = -100  # the label of a token without loss


class _Watch(TrainerCallback):
    """Times the steps, and stops after so many; the schedule stays that of the whole run."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self.began = self.ended = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self.began = self.began or time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self.ended = time.monotonic()
        if self._limit is not None and state.global_step >= self._limit:
            control.should_training_stop = True


def rows(bundle: Bundle, examples: Path) -> list[dict[str, torch.Tensor]]:
    """Each example of the batch as one padded text."""
    tokenizer = Tokenizer(bundle)
    out = []
    for example in load_examples(examples):
        if example.split != "train":
            continue
        tokens = tokenise(tokenizer, example.messages, example.target, ended=example.ended, limit=LENGTH).ids
        ids = torch.full((LENGTH,), tokenizer.eos_ids[0])
        ids[: len(tokens)] = torch.tensor(tokens)
        there = torch.arange(LENGTH) < len(tokens)
        labels = torch.where(there, ids, IGNORED)
        out.append({"input_ids": ids, "attention_mask": there.long(), "labels": labels})
    return out


def model(bundle: Bundle, parent: Path | None) -> torch.nn.Module:
    """The served weights with an adapter on them, fresh or from a file."""
    base = load_llama(*load_checkpoint(bundle))
    lora = LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=list(ATTENTION), task_type="CAUSAL_LM")
    tuned = get_peft_model(base, lora)
    if parent is not None:
        loaded = {name: torch.from_numpy(array) for name, array in load_file(parent).items()}
        set_peft_model_state_dict(tuned, loaded)
    return tuned


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("--bundle", "--examples", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--parent", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    torch.set_num_threads(options.threads)
    os.nice(max(0, TrainConfig().nice - os.nice(0)))
    torch.manual_seed(options.seed)
    bundle = load_bundle(options.bundle)
    opening = len(common_prefix(Tokenizer(bundle)))
    data = rows(bundle, options.examples)
    tuned = model(bundle, options.parent)
    tokens = 0

    def count(module: torch.nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        nonlocal tokens
        there = inputs["attention_mask"]
        tokens += int(there.sum()) - opening * len(there)

    tuned.register_forward_pre_hook(count, with_kwargs=True)
    watch = _Watch(options.steps)
    trainer = Trainer(
        model=tuned,
        args=TrainingArguments(
            output_dir=str(options.out.parent / "plain"),
            learning_rate=RATE,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            seed=options.seed,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=data,
        callbacks=[watch],
    )
    trainer.train()
    state = get_peft_model_state_dict(tuned)
    tensors = {name: tensor.detach().float().numpy() for name, tensor in state.items()}
    write_adapter(options.out, tensors, AdapterMeta(bundle.manifest.base_hash, RANK, ALPHA, ATTENTION))
    done, everything = trainer.state.global_step, EPOCHS * -(-len(data) // BATCH)
    seconds = time.monotonic() - began
    print(
        json.dumps(
            {
                "tokens": tokens,
                "seconds": round(seconds, 1),
                "peak_mb": peak_mb(),
                "steps": done,
                "all_steps": everything,
                "whole_seconds": round(seconds + (watch.ended - watch.began) / done * (everything - done), 1),
            }
        )
    )


if __name__ == "__main__":
    main()
