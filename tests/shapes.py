# ruff: noqa: E501  (templates)
"""Chat templates of the shapes that model families use, and bundles with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from checkpoints import make_checkpoint

from appliance.model.bundle import Bundle, Manifest

MARKS = (
    *("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|system|>", "<|user|>", "<|assistant|>"),
    *("<|end|>", "[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>", "<|User|>", "<|Assistant|>"),
)
SHAPES = {
    # Thinking is cut out of earlier answers; results of tools are found by how they begin and end.
    "thinks": """
{%- set ns = namespace(last=messages | length - 1, open=true) %}
{%- for m in messages[::-1] %}
    {%- if ns.open and m.role == 'user' and not (m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}
        {%- set ns.open = false %}{%- set ns.last = messages | length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- if m.content is string %}{%- set content = m.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if m.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last %}
            {{- '<|im_start|>' + m.role + '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + m.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}""",
    "plain": """
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}{%- if not (loop.first and m.role == 'system') %}
    {{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>' ~ '\\n' }}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}""",
    # A date, and everything trimmed.
    "headers": """{{- bos_token }}
{%- if not date is defined %}{%- set date = strftime_now('%d %b %Y') %}{%- endif %}
{%- if messages[0].role == 'system' %}{%- set system = messages[0].content | trim %}
{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date + '\\n\\n' + system + '<|eot_id|>' }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}""",
    # Roles get other names, the system message goes before the first turn.
    "turns": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{% set first = messages[0]['content'] + '\\n\\n' %}{% set loop_messages = messages[1:] %}{% else %}
{% set first = '' %}{% set loop_messages = messages %}{% endif %}
{% for message in loop_messages %}
    {% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
    {{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}{{ message['content'] | trim }}{{ '<end_of_turn>\\n' }}
{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}""",
    # Control tokens are put together from pieces and the role.
    "pieces": """{% for m in messages %}{{ '<|' + m['role'] + '|>' + '\\n' + m['content'] + '<|end|>' + '\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}""",
    "alternates": """{{ bos_token }}{% for m in messages %}
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}
{% endfor %}""",
    "distilled": """{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}
{% elif m.role == 'user' %}{{ '<|User|>' + m.content }}
{% else %}{% set content = m.content %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] | trim %}{% endif %}
{{ '<|Assistant|>' + content + eos_token }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}""",
    # Macros, blocks, joins and formats.
    "macros": """{% macro turn(role, text) %}<|im_start|>{{ role }}
{{ text | trim }}{{ '<|im_end|>' }}
{% endmacro %}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ turn(m.role, m.content) | trim }}
{% endgeneration %}{% else %}{% set block %}{{ turn(m.role, m.content.split('x') | join('x')) }}{% endset %}{{ block.strip() ~ '\\n' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ ['<|im_start|>', 'assistant'] | join }}{{ '%s\\n' % '' }}{{ '<think>{}'.format('') }}{{ '</think>%s' | format('\\n') }}{% endif %}""",
}
TALKS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "user", "content": " Hi\n"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "x"},
    ],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße 東京 {% raw %} %s {0}"}],
    [
        {"role": "user", "content": ""},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "\n\n"},
    ],
]


def tokenizer_only(path: Path) -> Bundle:
    """As much of a bundle as a tokenizer takes: no weights."""
    make_checkpoint(path)
    manifest = Manifest(
        name="tiny", family="llama", source="", source_hash="", created=0.0, context_length=256, vocab_size=300,
        layers=1, kv_heads=1, head_dim=1, hidden=1, eos_ids=(1,), chat_template=True, quantization="",
        base_hash="", files={}, ports=(),
    )  # fmt: skip
    return Bundle(path, manifest)


def bundle_with(tiny: Bundle, path: Path, template: str) -> Bundle:
    """The tiny model with this template and the families' marks."""
    path.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny.path / name, path / name)
    data = json.loads((path / "tokenizer.json").read_text())
    first = 1 + max(token["id"] for token in data["added_tokens"])
    for number, mark in enumerate(MARKS):
        data["added_tokens"].append({**data["added_tokens"][-1], "id": first + number, "content": mark})
    (path / "tokenizer.json").write_text(json.dumps(data))
    (path / "chat_template.jinja").write_text(template)
    return Bundle(path, tiny.manifest)


def plain_rendering(source: str, messages: list[dict[str, Any]]) -> str:
    """What transformers make of it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    names = {"bos_token": "<s>", "eos_token": "</s>"}
    rendered, _ = render_jinja_template([messages], chat_template=source, add_generation_prompt=True, **names)
    return str(rendered[0])
