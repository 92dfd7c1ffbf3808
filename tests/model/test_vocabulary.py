from __future__ import annotations

import json

import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models

from appliance.model.tokenizer import Tokenizer
from appliance.model.vocabulary import Vocabulary


@given(st.text(max_size=40))
def test_the_bytes_of_tokens_are_those_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    joined = b"".join(tokenizer.bytes_of(ident) for ident in ids)
    # Where the vocabulary lacks a byte, neither way says anything.
    assert joined.decode("utf-8", "replace") == tokenizer.decode(ids)


def test_control_tokens_have_their_names_and_unknown_ids_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.bytes_of(tokenizer.eos_ids[0]) == b"<|im_end|>"
    assert tokenizer.bytes_of(10**6) == b""


def test_a_vocabulary_with_bytes_and_marked_spaces() -> None:
    names = ["<unk>", "<0xF0>", "<0x9F>", "\u2581the", "e\u0301", "x", "<0x>"]
    plain = tokenizers.Tokenizer(
        models.BPE({name: at for at, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    )
    plain.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
    vocabulary = Vocabulary(json.loads(plain.to_str()), plain)
    found = [vocabulary.bytes_of(at) for at in range(len(names))]
    assert found == [b"<unk>", b"\xf0", b"\x9f", b" the", "e\u0301".encode(), b"x", b"<0x>"]
