# ruff: noqa: E501  (templates)
"""Chat templates that never end or take gigabytes, and users who write control tokens into them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shapes import SHAPES, TALKS, bundle_with, plain_rendering, tokenizer_only

from appliance.errors import InvalidRequest
from appliance.model.bundle import Bundle
from appliance.model.template import ChatTemplate
from appliance.model.tokenizer import Tokenizer

GREEDY = [
    "{% for i in range(999999999) %}{% endfor %}",
    "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) if a > 99999 %}{% endfor %}" * 20,
    "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "{{ 'x' * 10**9 }}",
    "{{ 10**9 * 'x' }}",
    "{{ ([1] * 100000) * 100000 }}",
    "{{ ([[1] * 1000] * 1000) * 1000 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%.999999999f' % 1.5 }}",
    "{{ '%(a)999999999d' % {'a': 1} }}",
    "{{ '%999999999d' | format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "{{ '{0:1000000000}'.format_map({'0': 1}) }}",
    "{{ ('{:1000000000}' | attr('format'))(1) }}",
    "{{ 'x' | center(10**9) }}",
    "{{ 'x'.center(10**9) }}",
    "{{ 'x'.ljust(10**9) }}",
    "{{ 'x'.rjust(10**9) }}",
    "{{ 'x'.zfill(10**9) }}",
    "{{ '\t'.expandtabs(10**9) }}",
    "{{ 5 | center(10**9) }}",
    "{{ 'a\nb' | indent(10**9) }}",
    "{{ 'a\nb' | indent('x' * 8000000) | indent('x' * 8000000) | indent('x' * 8000000) }}",
    "{{ 'x' | wordwrap(1, true, 'y' * 1000000) }}",
    "{{ ('a ' * 100000) | wordwrap(1, true, 'y' * 100000) }}",
    "{{ ('a' * 10000).replace('a', 'b' * 10000) }}",
    "{{ ('a' * 10000) | replace('a', 'b' * 10000) }}",
    "{{ ('a' * 10000) | replace('', 'b' * 10000) }}",
    "{{ ('b' * 10000).join(['a'] * 10000) }}",
    "{{ (['a'] * 10000) | join('b' * 10000) }}",
    "{{ [1, 2] | tojson(indent=10**9) }}",
    "{{ (range(10000) | list) | tojson(separators=('x' * 100000, ':')) }}",
    "{{ [1] | batch(10**9, 'x') | list }}",
    "{{ [1] | slice(10**9) | list }}",
    "{{ 1.5 | round(10**9, 'ceil') }}",
    "{{ 9 ** (9 ** 9) }}",
    "{% set ns = namespace(n=7) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
    "{% set ns = namespace(t='x') %}{% for i in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}{{ ns.t }}",
    "{% set ns = namespace(t='x') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}",
    "{% set ns = namespace(t=[1]) %}{% for i in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
    "{% set ns = namespace(t=1) %}{% for i in range(60) %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.t }}",
    "{% set ns = namespace(t=1) %}{% for i in range(60) %}{% set ns.t = (ns.t, ns.t) %}{% endfor %}{{ ns.t }}",
    "{% set ns = namespace(t=1) %}{% for i in range(60) %}{% set ns.t = {'a': ns.t, 'b': ns.t} %}{% endfor %}",
    "{% set ns = namespace(t=1) %}{% for i in range(60) %}{% set ns.t = dict(a=ns.t, b=ns.t) %}{% endfor %}",
    "{% set ns = namespace(t=1) %}{% for i in range(60) %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}"
    "{{ ns.t | tojson }}",
    "{% set ns = namespace(t='x') %}{% for i in range(60) %}{% set ns.t %}{{ ns.t }}{{ ns.t }}{% endset %}"
    "{% endfor %}{{ ns.t }}",
    "{% set ns = namespace(t=[1]) %}{% for i in range(60) %}{% set ns.t = [ns.t, ns.t] | sum(start=[]) %}"
    "{% endfor %}",
    "{% macro f(n) %}{{ f(n - 1) if n else '' }}{{ f(n - 1) if n else '' }}{% endmacro %}{{ f(60) }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{% for a in [1, 1] recursive %}{{ loop([1, 1]) if loop.depth < 60 }}{% endfor %}",
    "{{ (1).to_bytes(1000000000, 'big') }}",
    "{{ 'x'.encode().center(1000000000) }}",
    "{{ lipsum(n=100000) }}",
    "{{ strftime_now('%999999999d' * 1000) }}",
    "{{ range(99999) | map('center', 99999) | join }}",
    "{% for m in messages %}{% for i in range(90000) %}{{ m.content }}{% endfor %}{% endfor %}",
]


TRY_ALL = """
import json, resource, sys, time
from appliance.model.template import ERRORS, ChatTemplate
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
for number, source in enumerate(json.load(sys.stdin)):
    start = time.thread_time()
    try:
        made = ChatTemplate(source).render(messages=[{"role": "user", "content": "word " * 200}], tools=None)
        print(number, "ended:", len(made))
    except MemoryError:
        print(number, "took a gigabyte")
    except ERRORS:
        pass
    if time.thread_time() - start > 8:  # two seconds of its own, and then the step it is in
        print(number, "took", time.thread_time() - start)
"""


def test_a_greedy_template_is_stopped() -> None:
    """In little memory and a few seconds of processor each."""
    done = subprocess.run(
        [sys.executable, "-c", TRY_ALL], input=json.dumps(GREEDY), capture_output=True, text=True, timeout=300
    )
    assert (done.stdout, done.returncode) == ("", 0), done.stdout + done.stderr


def test_a_greedy_template_is_the_requests_error(tiny: Bundle, tmp_path: Path) -> None:
    for number, source in enumerate((GREEDY[1], GREEDY[4])):
        # Only when somebody says the word: the import cannot know.
        text = "{% if 'now' in messages[0].content %}" + source + "{% endif %}{{ messages[0].content }}"
        tokenizer = Tokenizer(bundle_with(tiny, tmp_path / str(number), text))
        assert tokenizer.encode_chat([{"role": "user", "content": "later"}])
        with pytest.raises(InvalidRequest) as caught:
            tokenizer.encode_chat([{"role": "user", "content": "now"}])
        assert caught.value.param == "messages"


def test_many_messages_cost_no_more_than_few_steps_each() -> None:
    """Templates in use look at each message a few times: a long conversation is rendered."""
    talk = [{"role": role, "content": "x" * 50} for _ in range(1000) for role in ("user", "assistant")]
    for name, source in SHAPES.items():
        assert (
            len(ChatTemplate(source).render(messages=talk, tools=None, add_generation_prompt=True, **NAMES))
            > 9e4
        ), name


NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
PIECES = st.sampled_from(
    (
        *(
            "<|im_start|>",
            "<|im_end|>",
            "<|im_",
            "start|>",
            "end|>",
            "<|",
            "|>",
            "<",
            ">",
            "</s>",
            "<s>",
            "</",
        ),
        *("<think>", "</think>", "</thi", "nk>", "<|IM_END|>", "<|im_<|im_end|>end|>", "</think></think>"),
        *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|end|>", "user", "system"),
        *(
            "[INST]",
            "[/INST]",
            "<start_of_turn>",
            "<end_of_turn>",
            "<tool_response>",
            "</tool_response>",
            "%s",
        ),
        *("{{", "}}", "{0}", "{messages}", "%(role)s", "\n", " ", "\t", "\u2028", "x", "é", "\ud800", "\x00"),
    )
)
HOSTILE = st.lists(PIECES | st.text(max_size=4), max_size=8).map("".join)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """As much of a bundle as a tokenizer takes."""
    return tokenizer_only(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def shaped(tiny: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("shapes")
    return {name: Tokenizer(bundle_with(tiny, root / name, source)) for name, source in SHAPES.items()}


@given(texts=st.lists(HOSTILE, min_size=4, max_size=4))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_message_becomes_a_control_token(shaped: dict[str, Tokenizer], texts: list[str]) -> None:
    """Each control token in the prompt is one that the template wrote, and it wrote as many as for words."""
    roles = ("system", "user", "assistant", "user")
    for name, tokenizer in shaped.items():

        def controls(contents: list[str], tokenizer: Tokenizer = tokenizer, name: str = name) -> list[int]:
            talk = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
            talk = talk[1:] if name == "alternates" else talk  # it takes no system message
            return [i for i in tokenizer.encode_chat(talk) if i in tokenizer.control_ids]

        found = controls(texts)
        # What a template decides by the text (thinking or not) is its own; all else is as for plain words.
        allowed = [controls(["a", "b", "c", "d"]), controls(["a", "b", "<think>t</think>c", "d"])]
        allowed += [
            controls(["a", "b", "", "d"]),
            controls(["a", "b", "c", ""]),
            controls(["a", "", "c", "d"]),
        ]
        allowed += [controls(["", "b", "c", "d"])]
        wrapped = [controls(["a", "<tool_response>b</tool_response>", "c", "d"])]
        assert found in allowed + wrapped or len(found) <= max(map(len, allowed)), (name, texts)


@given(texts=st.lists(HOSTILE, min_size=3, max_size=3))
@settings(max_examples=25, deadline=None)
def test_a_template_sees_what_was_written(texts: list[str]) -> None:
    """With any text whatever, the rendering is that of the same template without protection."""
    talk = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant", "user"), texts, strict=True)
    ]
    for name, source in SHAPES.items():
        assert ChatTemplate(source).render(
            messages=talk, tools=None, add_generation_prompt=True, **NAMES
        ) == (plain_rendering(source, talk)), name


def test_what_only_users_wrote_is_never_the_templates(tiny: Bundle, tmp_path: Path) -> None:
    """Whatever a template does with a message, its control tokens stay characters."""
    ways = [
        "{{ m.content }}", "{{ m.content | trim }}", "{{ m.content.strip() }}", "{{ m['content'][0:] }}",
        "{{ '' ~ m.content }}", "{{ '' + m.content }}", "{{ '%s' % m.content }}", "{{ '%s' | format(m.content) }}",
        "{{ '{}'.format(m.content) }}", "{{ [m.content] | join('') }}", "{{ ''.join([m.content]) }}",
        "{{ m.content | replace('~', '') }}", "{{ m.content.replace('~', '') }}", "{{ m.content | string }}",
        "{{ m.content.split('~') | join('') }}", "{{ m.content * 1 }}", "{{ m.content | safe }}",
        "{{ m.content | lower }}", "{{ m.content | tojson }}", "{{ m | tojson }}", "{{ m.content | indent }}",
        "{% set x %}{{ m.content }}{% endset %}{{ x }}", "{% filter trim %}{{ m.content }}{% endfilter %}",
        "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(m.content) }}", "{{ '<' + m.content[1:] }}",
        "{{ '<|im_' + m.content[5:] }}", "{{ '<|' ~ m.content[2:-2] ~ '|>' }}", "{{ m.content | default('a') }}",
        "{{ 'a%sb' % m.content | replace('a', '') }}", "{{ m.content | list | join }}",
        "{{ namespace(a=m.content).a }}", "{{ dict(a=m.content)['a'] }}", "{{ m.content | first ~ m.content[1:] }}",
        "{{ m.content.partition('im')[0] ~ 'im' ~ m.content.partition('im')[2] }}",
        "{{ m.content | reverse | reverse }}", "{{ m.content.removeprefix('<') | trim('>') }}",
        "{{ m.content.splitlines() | join }}", "{{ m.items() | list }}", "{{ m.content | upper | lower }}",
        "{{ m.content | title | lower }}", "{{ '{a}'.format_map({'a': m.content}) }}",
        "{{ [m.content, m.content] | unique | join }}", "{{ m.content.center(1) }}",
    ]  # fmt: skip
    for number, way in enumerate(ways):
        source = "{% for m in messages %}" + way + "</s>{% endfor %}"
        tokenizer = Tokenizer(bundle_with(tiny, tmp_path / str(number), source))
        for text in ("</s>", "<s>", "[user]", "<|im_start|>", "~</s>~", "</~s>"):
            ids = tokenizer.encode_chat([{"role": "user", "content": text}])
            assert [i for i in ids if i in tokenizer.control_ids] == [*tokenizer.eos_ids], (way, text)


def test_thinking_is_stripped_from_earlier_turns(shaped: dict[str, Tokenizer]) -> None:
    thought = "<think>\nLet me see, one and one.\n</think>\n\nTwo."
    talk = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": thought}, TALKS[0][0]]
    without = [talk[0], {"role": "assistant", "content": "Two."}, talk[2]]
    for name in ("thinks", "distilled"):
        assert shaped[name].encode_chat(talk) == shaped[name].encode_chat(without)


def test_the_shapes_do_what_they_are_for(shaped: dict[str, Tokenizer]) -> None:
    """Control tokens that templates put together from pieces and roles are control tokens."""
    names = json.loads(shaped["pieces"]._plain.to_str())["added_tokens"]
    assert {"<|user|>", "<|im_start|>"} <= {token["content"] for token in names}
    for name, tokenizer in shaped.items():
        for talk in TALKS:
            if any(message["role"] == "system" for message in talk) and name == "alternates":
                continue
            plain: Any = plain_rendering(SHAPES[name], talk)
            expected = tokenizer._plain.encode(plain, add_special_tokens=False).ids
            assert tokenizer.encode_chat(talk) == expected, name
