"""Tiny models made on the spot: other widths, heads and families than the default one's."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TINY: dict[str, dict[str, Any]] = {
    # An untied head, a head width that hidden / heads does not give, widths no multiple of 32.
    "llama": {"hidden_size": 40, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2},
    # Biases and a tied head.
    "qwen2": {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 1, "tie": True},
    "mistral": {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2},
}


def make_checkpoint(out: Path, family: str = "llama", **changes: Any) -> Path:
    """A random model of `family` with a small byte-level tokenizer, in `out`."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator(["the quick brown fox jumps over the lazy dog, again and again"], trainer)
    tokens.add_special_tokens(
        [AddedToken(name, special=True) for name in ("[user]", "[assistant]", "[system]")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    settings = {
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "max_position_embeddings": 256,
        "vocab_size": len(tokenizer),
        "bos_token_id": 0,
        "eos_token_id": 1,
        "rope_theta": 5000.0,
        **TINY[family],
        **changes,
    }
    settings["tie_word_embeddings"] = settings.pop("tie", False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not ours: the libraries' own deprecations
        config = AutoConfig.for_model(family, **settings)
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.data.mul_(4)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    (out / "LICENSE").write_text("Anyone may do anything with these random numbers.\n")
    return out
