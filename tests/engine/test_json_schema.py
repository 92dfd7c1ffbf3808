"""Schemas as clients' libraries write them, and what is made of them before they are compiled."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from appliance.api import tools
from appliance.api.schemas import ChatBody
from appliance.engine.constraint import Grammars
from appliance.engine.json_schema import SchemaRefused, serve
from appliance.errors import InvalidRequest
from appliance.model.bundle import Bundle
from appliance.model.tokenizer import Tokenizer

TEXT = {"type": "string"}

# (as a library writes it, an answer that it allows)
WITHOUT_EFFECT: list[tuple[dict[str, Any], Any]] = [
    ({"type": "array", "items": TEXT, "uniqueItems": False}, ["a", "a"]),
    ({"type": "array", "items": TEXT, "uniqueItems": True, "maxItems": 1}, ["a"]),
    # zod's record
    ({"type": "object", "propertyNames": TEXT, "additionalProperties": {"type": "number"}}, {"a": 1}),
    ({"type": "object", "propertyNames": {"type": "string", "title": "Key"}}, {"a": 1}),
    ({"type": "object", "propertyNames": {}, "minProperties": 0}, {}),
    ({"$schema": "http://json-schema.org/draft-07/schema#", "$id": "x", "title": "T", "type": "object"}, {}),
    ({"$schema": "https://example.com/of-nobody", "type": "object"}, {}),
    ({**TEXT, "default": "", "examples": ["a"], "example": "a", "deprecated": True, "nullable": True}, "b"),
    ({**TEXT, "contentEncoding": "base64", "contentMediaType": "image/png", "contentSchema": {}}, "b"),
    ({**TEXT, "format": "password"}, "b"),
    ({"type": "integer", "format": "int32"}, 4),
    ({"type": "number", "format": "double", "maximum": 1.7976931348623157e308}, 0.5),
    ({"type": "integer", "minimum": -9007199254740991, "maximum": 9223372036854775807}, 4),
    ({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, 1),
    ({"type": "number", "exclusiveMinimum": False, "minimum": 0}, 0),
    ({"type": "object", "additionalProperties": {}}, {"a": [1]}),
    ({"type": "object", "dependentRequired": {}, "dependentSchemas": {}, "dependencies": {"a": []}}, {}),
    ({"type": "object", "if": {"required": ["a"]}}, {}),
    ({"type": "object", "then": {"required": ["a"]}}, {}),
    ({**TEXT, "not": False}, "a"),
    ({"type": "array", "contains": TEXT, "minContains": 0}, []),
    ({"type": "object", "properties": {"a": TEXT}, "unevaluatedProperties": False}, {"a": "b"}),
    ({"type": "object", "unevaluatedProperties": True, "unevaluatedItems": {}}, {"a": "b"}),
    ({"oneOf": [TEXT, {"type": "null"}], "discriminator": {"propertyName": "kind"}}, None),
    ({**TEXT, "maxLength": 2**31, "minLength": 0.0}, "a"),
    ({"type": "array", "items": [TEXT, {"type": "integer"}], "additionalItems": False}, ["a", 1]),
    ({"const": None}, None),
    ({"type": ["string", "null"], "x-order": 1, "xml": {"name": "a"}, "$comment": "c"}, None),
    # References as they are written: escaped, percent-encoded, by anchor, by the schema's own name.
    ({"$defs": {"a/b~c": TEXT}, "$ref": "#/$defs/a~1b~0c"}, "a"),
    ({"$defs": {"Päckchen[x]": TEXT}, "$ref": "#/$defs/P%C3%A4ckchen%5Bx%5D"}, "a"),
    ({"$defs": {"a": {**TEXT, "$anchor": "word"}}, "$ref": "#word"}, "a"),
    ({"$id": "https://example.com/s", "$defs": {"a": TEXT}, "$ref": "https://example.com/s#/$defs/a"}, "a"),
    ({"definitions": {"a": {"$ref": "#/definitions/b"}, "b": TEXT}, "$ref": "#/definitions/a"}, "a"),
    ({"properties": {"a": TEXT, "b": {"$ref": "#/properties/a"}}, "type": "object"}, {"b": "x"}),
    ({"x-parts": {"a": TEXT}, "items": {"$ref": "#/x-parts/a"}, "type": "array"}, ["x"]),
    (
        {
            "$ref": "#/$defs/n",
            "$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}},
        },
        {"next": {"next": {}}},
    ),
]
# (what constrains and is not followed, where that is said to be)
NOT_FOLLOWED: list[tuple[dict[str, Any], str]] = [
    ({"type": "array", "items": TEXT, "uniqueItems": True}, "#/uniqueItems"),
    ({"type": "object", "propertyNames": {"pattern": "^a"}}, "#/propertyNames"),
    ({"type": "object", "properties": {"a": {"type": "array", "contains": TEXT}}}, "#/properties/a/contains"),
    ({"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}}, "#/if"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "#/dependentRequired"),
    ({"type": "object", "properties": {"a/b": {**TEXT, "format": "iban"}}}, "#/properties/a~1b/format"),
    ({"type": "array", "prefixItems": [TEXT, {"not": TEXT}]}, "#/prefixItems/1/not"),
    ({"anyOf": [TEXT, {"allOf": [{"not": {"const": "a"}}]}]}, "#/anyOf/1/allOf/0/not"),
    ({"$defs": {"a": {"not": TEXT}}, "$ref": "#/$defs/a", "type": "object"}, "#/$defs/a/not"),
    ({"allOf": [{"type": "object"}], "unevaluatedProperties": False}, "#/unevaluatedProperties"),
    ({**TEXT, "pattern": "^(?!x)"}, "#/pattern"),
    ({**TEXT, "pattern": r"^(a)\1$"}, "#/pattern"),
    ({**TEXT, "pattern": "(a{1,1000}){1,1000}"}, "#/pattern"),
    ({"type": "integer", "multipleOf": 999_983}, "#/multipleOf"),
    ({"type": "array", "minItems": 10**9}, "#/minItems"),
    ({"type": "object", "properties": {"a": {"type": "float"}}}, "#/properties/a/type"),
    ({"$ref": "https://example.com/schema"}, "#/$ref"),
    ({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}, "#/properties/a/$ref"),
    ({"type": "object", "properties": {"a": {"$ref": "other.json#/x"}}}, "#/properties/a/$ref"),
]
MALFORMED: list[tuple[Any, str]] = [
    ({"type": "object", "properties": []}, "#/properties"),
    ({"anyOf": {"a": TEXT}}, "#/anyOf"),
    ({"type": "array", "maxItems": -1}, "#/maxItems"),
    ({"type": "object", "required": "a"}, "#/required"),
    ({"enum": {"a": 1}}, "#/enum"),
    ({"type": 5, "format": 7}, "#/"),
    ({"$ref": 7}, "#/$ref"),
    ({"type": "integer", "multipleOf": 0}, "#/multipleOf"),
]


@pytest.fixture(scope="module")
def grammars(bundle: Bundle) -> Grammars:
    return Grammars(bundle)


def asked(parameters: dict[str, Any], *, strict: bool | None = None, beside: int = 1) -> ChatBody:
    """A request with a harmless tool or more, and one that takes `parameters`."""
    function = {"name": "save", "parameters": parameters, "strict": strict}
    others = [{"name": f"other_{number}", "parameters": {"type": "object"}} for number in range(beside)]
    return ChatBody.model_validate(
        {
            "model": "shammah",
            "messages": [{"role": "user", "content": "Hi"}],
            "tools": [{"type": "function", "function": each} for each in (*others, function)],
            "tool_choice": "required",
        }
    )


def follows(grammars: Grammars, tokenizer: Tokenizer, body: ChatBody, arguments: Any) -> bool:
    """Whether the answer may be a call with these arguments."""
    matcher = tools.compiled(grammars, tokenizer, body).begin()
    call = f'<tool_call>\n{{"name": "save", "arguments": {json.dumps(arguments)}}}\n</tool_call>'
    for token in tokenizer.encode(call):
        if not matcher.allowed()[token]:
            return False
        matcher.take(token)
    return matcher.accepting


@pytest.mark.parametrize("strict", [True, None])
@pytest.mark.parametrize(("schema", "answer"), WITHOUT_EFFECT)
def test_what_constrains_nothing_costs_nothing(
    grammars: Grammars, tokenizer: Tokenizer, schema: dict[str, Any], answer: Any, strict: bool | None
) -> None:
    """Alone, inside of a tool, and whether the tool is strict or not."""
    # Nested, a reference from the root would lead elsewhere.
    root = schema if "$ref" in json.dumps(schema) else {"type": "object", "properties": {"v": schema}}
    if root is schema:
        assert serve(schema, strict=strict is True) is not False
        return
    body = asked({**root, "required": ["v"]}, strict=strict)
    assert follows(grammars, tokenizer, body, {"v": answer})
    assert not follows(grammars, tokenizer, body, {"w": answer})


@pytest.mark.parametrize(("schema", "answer"), [each for each in WITHOUT_EFFECT if "$ref" in str(each[0])])
def test_references_are_followed(
    grammars: Grammars, tokenizer: Tokenizer, schema: dict[str, Any], answer: Any
) -> None:
    from appliance.engine.constraint import json_grammar

    def fits(value: Any) -> bool:
        matcher = grammars.compile(json_grammar(schema), "response_format").begin()
        for token in tokenizer.encode(json.dumps(value)):
            if not matcher.allowed()[token]:
                return False
            matcher.take(token)
        return matcher.accepting

    assert fits(answer)
    assert not fits(7)


@pytest.mark.parametrize(("schema", "path"), NOT_FOLLOWED)
def test_what_cannot_be_followed_is_left_out_or_named(
    grammars: Grammars, tokenizer: Tokenizer, schema: dict[str, Any], path: str
) -> None:
    with pytest.raises(SchemaRefused) as refused:
        serve(schema, strict=True)
    assert str(refused.value).startswith(f"{path}: ")
    if schema.get("type", "object") != "object":
        schema, path = {"type": "object", "properties": {"v": schema}}, f"#/properties/v{path[1:]}"
    else:
        schema = {"type": "object", **schema}
    with pytest.raises(InvalidRequest) as caught:
        tools.compiled(grammars, tokenizer, asked(schema, strict=True))
    assert caught.value.param == "tools[1].function.parameters"
    assert "'save'" in caught.value.message and f"{path}: " in caught.value.message
    tools.compiled(grammars, tokenizer, asked(schema))


def test_what_is_left_out_leaves_the_rest(grammars: Grammars, tokenizer: Tokenizer) -> None:
    tags = {"type": "array", "items": TEXT, "uniqueItems": True, "maxItems": 2}
    body = asked({"type": "object", "properties": {"tags": tags}, "required": ["tags"]})
    assert follows(grammars, tokenizer, body, {"tags": ["a", "a"]})
    assert not follows(grammars, tokenizer, body, {"tags": ["a", "a", "a"]})
    assert not follows(grammars, tokenizer, body, {"tags": [1]})
    # "Never", as zod writes it.
    body = asked({"type": "object", "properties": {"a": {"not": {}}, "b": TEXT}})
    assert follows(grammars, tokenizer, body, {"b": "x"})
    assert not follows(grammars, tokenizer, body, {"a": "x"})
    # Not all that a program writes is a schema.
    body = asked({"type": "object", "properties": {"a": None, "b": {"type": "string", "enum": None}}})
    assert follows(grammars, tokenizer, body, {"a": 1, "b": "x"})


@pytest.mark.parametrize(("schema", "path"), MALFORMED)
@pytest.mark.parametrize("strict", [True, False])
def test_what_is_malformed_is_named(schema: Any, path: str, strict: bool) -> None:
    with pytest.raises(SchemaRefused) as refused:
        serve(schema, strict=strict)
    assert str(refused.value).startswith(path) and ": " in str(refused.value)


@pytest.mark.parametrize(
    "schema",
    [
        {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 3, "maximum": 2}},
            "required": ["a"],
        },
        {"type": "object", "properties": {"a": {**TEXT, "pattern": "(a"}}},
        {"type": "object", "patternProperties": {"a": TEXT, "aa": {"type": "integer"}}},
    ],
)
def test_what_only_the_compiler_refuses(
    grammars: Grammars, tokenizer: Tokenizer, schema: dict[str, Any]
) -> None:
    """A tool that was promised nothing takes any arguments then; a strict one is named."""
    assert follows(grammars, tokenizer, asked(schema, beside=3), {"a": "x"})
    with pytest.raises(InvalidRequest, match="'save'") as caught:
        tools.compiled(grammars, tokenizer, asked(schema, strict=True, beside=3))
    assert caught.value.param == "tools[3].function.parameters"


@pytest.mark.parametrize("written", ["object", "OBJECT", ["object"], ["object", "null"], None])
@pytest.mark.parametrize("strict", [True, None])
def test_arguments_are_an_object_however_that_is_written(
    grammars: Grammars, tokenizer: Tokenizer, written: Any, strict: bool | None
) -> None:
    schema = {"type": written, "properties": {"v": TEXT}, "required": ["v"]}
    body = asked(schema, strict=strict)
    assert follows(grammars, tokenizer, body, {"v": "x"})
    assert not follows(grammars, tokenizer, body, None)


@pytest.mark.parametrize("written", ["array", "string", ["string", "null"], 5, 0, [], ""])
def test_arguments_are_nothing_else(written: Any) -> None:
    with pytest.raises(ValidationError, match="arguments are an object"):
        asked({"type": written})


def pet(name: str, **kind: Any) -> dict[str, Any]:
    fields = {"kind": {**TEXT, **kind}, name: TEXT}
    return {"type": "object", "properties": fields, "required": ["kind", name], "additionalProperties": False}


def test_one_of_several_that_are_told_apart(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """As pydantic writes a union with a discriminator: the parts are referenced."""
    defs = {"Cat": pet("meow", const="cat"), "Dog": pet("bark", enum=["dog", "hound"])}
    one = {"oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}], "discriminator": {}}
    schema = {"type": "object", "properties": {"v": one}, "required": ["v"], "$defs": defs}
    body = asked({**schema, "additionalProperties": False}, strict=True)
    assert follows(grammars, tokenizer, body, {"v": {"kind": "cat", "meow": "x"}})
    assert follows(grammars, tokenizer, body, {"v": {"kind": "hound", "bark": "x"}})
    assert not follows(grammars, tokenizer, body, {"v": {"kind": "cat", "bark": "x"}})


@pytest.mark.parametrize(
    "other",
    [
        pet("bark", enum=["dog", "cat"]),
        pet("bark"),
        pet("bark", const="dog") | {"required": ["bark"]},
        {key: value for key, value in pet("bark", const="dog").items() if key != "type"},
    ],
)
def test_one_of_several_that_may_overlap(other: dict[str, Any]) -> None:
    """It is left to the compiler, which refuses it."""
    defs = {"Cat": pet("meow", const="cat"), "Dog": other}
    one = {"oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]}
    assert "oneOf" in json.dumps(serve({**one, "$defs": defs}, strict=True))


@pytest.mark.parametrize("parameters", [{}, None, {"type": "object"}, {"properties": {}}])
def test_a_tool_without_parameters(
    grammars: Grammars, tokenizer: Tokenizer, parameters: dict[str, Any] | None
) -> None:
    assert follows(grammars, tokenizer, asked(parameters), {})  # type: ignore[arg-type]


def test_what_is_compiled_allows_the_same() -> None:
    """Without annotations and with other names, it is the same schema to a validator."""
    for schema, answer in WITHOUT_EFFECT:
        reduced = serve(schema, strict=True)
        jsonschema.Draft202012Validator(reduced).validate(answer)  # type: ignore[arg-type]
        assert not {"title", "default", "$schema", "x-order"} & set(json.dumps(reduced).split('"'))
