"""What chat templates demand, and how conversations are fitted to it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from appliance.errors import InvalidRequest
from appliance.model.bundle import Bundle
from appliance.model.tokenizer import Tokenizer

SAY = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
TURNS = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}{% endfor %}"
)
REFUSE = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
TEMPLATES = {
    "anything": SAY,
    # As Gemma's and Mistral's first ones: both demands.
    "strict": REFUSE + TURNS + SAY,
    "alternating after a system message": (
        "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
        "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}"
        "[system]{{ system }}" + TURNS + SAY
    ),
    "drops system messages": "{% for m in messages if m.role in ('user', 'assistant') %}[{{ m.role }}]"
    "{{ m.content }}{% endfor %}",
    "system only in front": (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('late') }}"
        "{% endif %}{% endfor %}" + SAY
    ),
}
# Any order of speakers, as clients send it; an assistant that begins is the client's own matter.
ORDERS = st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=7).filter(
    lambda roles: next((role for role in roles if role != "system"), "user") == "user"
)


def with_template(bundle: Bundle, place: Path, source: str) -> Tokenizer:
    """A tokenizer of single bytes: it is the template that matters, and this is made at once."""
    letters = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokens = tokenizers.Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokens.save(str(place / "tokenizer.json"))
    (place / "tokenizer_config.json").write_text("{}")
    (place / "chat_template.jinja").write_text(source)
    return Tokenizer(Bundle(place, bundle.manifest))


@pytest.fixture(scope="module", params=TEMPLATES)
def demanding(request: pytest.FixtureRequest, bundle: Bundle, tmp_path_factory: Any) -> Tokenizer:
    return with_template(bundle, tmp_path_factory.mktemp("template"), TEMPLATES[request.param])


@given(ORDERS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_all_that_is_said_is_said_in_order(demanding: Tokenizer, roles: list[str]) -> None:
    messages = [{"role": role, "content": f"{at}:{role}."} for at, role in enumerate(roles)]
    text = demanding.decode(demanding.encode_chat(messages))
    places = [text.find(message["content"]) for message in messages]
    assert -1 not in places, text
    users = [at for at, role in enumerate(roles) if role != "system"]
    assert all(places[one] < places[other] for one, other in pairwise(users)), text


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("anything", "[system]Be brief.[user]Hi[user]You?"),
        ("strict", "[user]Be brief.\n\nHi\n\nYou?"),
        ("alternating after a system message", "[system]Be brief.[user]Hi\n\nYou?"),
        ("drops system messages", "[user]Be brief.\n\nHi[user]You?"),
        ("system only in front", "[system]Be brief.[user]Hi[user]You?"),
    ],
)
def test_how_it_is_said(bundle: Bundle, tmp_path: Path, template: str, expected: str) -> None:
    tokenizer = with_template(bundle, tmp_path, TEMPLATES[template])
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "user", "content": "You?"},
    ]
    assert tokenizer.decode(tokenizer.encode_chat(messages)) == expected
    empty = [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}]
    assert tokenizer.decode(tokenizer.encode_chat(empty)).endswith("[user]Hi")


def test_what_no_template_takes_is_the_clients_matter(bundle: Bundle, tmp_path: Path) -> None:
    tokenizer = with_template(bundle, tmp_path, TEMPLATES["strict"])
    with pytest.raises(InvalidRequest, match="alternate"):
        tokenizer.encode_chat([{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Hi"}])


CALLS = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}[{{ m.role }}]"
    "{{ m.content }}{% for call in m.tool_calls or [] %}{% set f = call.function %}CALL{% endfor %}"
    "{% endfor %}"
)
JSON = '<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}'


@pytest.mark.parametrize(
    ("source", "knows"),
    [
        (CALLS.replace("CALL", JSON), True),
        (SAY + "{# tools: <tool_call> #}", False),  # named, but never said
        (CALLS.replace("CALL", "<tool_call><function={{ f.name }}>"), False),  # another form
        (CALLS.replace("CALL", JSON).replace("[{{ m.role }}]", "{% if m.role == 'tool' %}"
         "{{ raise_exception('no tools') }}{% endif %}"), False),
    ],
)  # fmt: skip
def test_a_template_that_knows_tools_is_known_by_trying(
    bundle: Bundle, tmp_path: Path, source: str, knows: bool
) -> None:
    assert with_template(bundle, tmp_path, source).writes_calls is knows
