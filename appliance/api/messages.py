"""Messages, and the tools and calls in them: what a conversation is made of, as pydantic models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.config import JsonDict

from appliance.api.unserved import refuse_in_message
from appliance.errors import InvalidRequest
from appliance.reading import read_json

MAX_PARTS = 1000
MAX_CALLS = 128
"""In one message."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 4.0 is a whole one, and some clients write it so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)


FIRST_FAULT = Field(fail_fast=True)
"""Of a list: it is not read on."""


def at_most(count: int, what: str) -> BeforeValidator:
    """Refuses a longer list or object before anything in it is looked at."""

    def few(value: Any) -> Any:
        if isinstance(value, list | dict) and len(value) > count:
            raise ValueError(f"at most {count} {what}")
        return value

    return BeforeValidator(few)


class Body(BaseModel):
    """A JSON request body, or a part of one."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Function(Body):
    """What a tool does and takes."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = Field(
        None,
        description="JSON schema of the arguments, an object.",
        json_schema_extra={
            "properties": {
                "type": {
                    "anyOf": [
                        {"enum": ["object", "OBJECT", None]},
                        {"type": "array", "contains": {"const": "object"}},
                    ]
                }
            }
        },
    )
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _an_object(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        kind = (parameters or {}).get("type")
        # Some write OBJECT, or a list of types, and mean the same.
        if kind not in (None, "object", "OBJECT") and not (isinstance(kind, list) and "object" in kind):
            raise ValueError("arguments are an object")
        return parameters


class Tool(Body):
    """A function that the client can call for the model."""

    type: Literal["function"]
    function: Function


class FunctionName(Body):
    """A function by its name."""

    name: Name


class NamedTool(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class FunctionCall(Body):
    """Which function was called, and with what."""

    name: Name
    arguments: str = Field(description="A JSON object as text.")


class Call(Body):
    """A call that the model made earlier in the conversation."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall

    def plain(self) -> dict[str, Any]:
        """The call as chat templates take it: arguments as an object where they are one."""
        arguments: Any = self.function.arguments
        try:
            parsed = read_json(arguments.encode())
        except InvalidRequest:
            parsed = None  # cut off by a token limit, say
        if isinstance(parsed, dict):
            arguments = parsed
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": "function", "function": function}


class ContentPart(Body):
    """One part of a message; text is the only kind this model reads. A refusal is one, too."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"type": {"const": kind}, kind: {"type": "string"}}, "required": [kind]}
                for kind in ("text", "refusal")
            ]
        }
    )

    type: Annotated[str, WithJsonSchema({"enum": ["text", "refusal"]})]
    text: str | None = Field(None, validate_default=True)
    refusal: str | None = Field(None, validate_default=True)

    @field_validator("type")
    @classmethod
    def _is_text(cls, kind: str) -> str:
        if kind not in ("text", "refusal"):
            raise ValueError(f"{kind[:64]} is not served; this model reads text only")
        return kind

    @field_validator("text", "refusal")
    @classmethod
    def _of_its_type(cls, text: str | None, info: ValidationInfo) -> str | None:
        if text is None and info.data.get("type") == info.field_name:
            raise ValueError("Field required")
        return text

    @property
    def words(self) -> str:
        """What it says."""
        return (self.text if self.type == "text" else self.refusal) or ""


_SAYS: JsonDict = {"content": {"type": ["string", "array"]}}
_CALLS_NOTHING: JsonDict = {"tool_calls": {"maxItems": 0}}


class Message(Body):
    """One message of a conversation."""

    # What the validators below ask for, in the document.
    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {
                    "properties": {
                        "role": {"enum": ["system", "developer", "user"]},
                        **_SAYS,
                        **_CALLS_NOTHING,
                    },
                    "required": ["content"],
                },
                {"properties": {"role": {"const": "assistant"}, **_SAYS}, "required": ["content"]},
                {
                    "properties": {
                        "role": {"const": "assistant"},
                        "tool_calls": {"type": "array", "minItems": 1},
                    },
                    "required": ["tool_calls"],
                },
                {
                    "properties": {
                        "role": {"const": "tool"},
                        "tool_call_id": {"type": "string"},
                        **_SAYS,
                        **_CALLS_NOTHING,
                    },
                    "required": ["content", "tool_call_id"],
                },
            ]
        }
    )

    role: Literal["system", "developer", "user", "assistant", "tool"]
    name: str | None = None
    tool_calls: Annotated[list[Call], FIRST_FAULT, at_most(MAX_CALLS, "calls")] | None = Field(
        None, description="What the assistant called."
    )
    tool_call_id: str | None = Field(
        None, validate_default=True, description="Which call a `tool` message answers."
    )
    refusal: str | None = Field(None, description="What the assistant said instead of an answer.")
    content: str | Annotated[list[ContentPart], FIRST_FAULT, at_most(MAX_PARTS, "parts")] | None = Field(
        None, validate_default=True, description="Only an assistant may say nothing."
    )

    @model_validator(mode="before")
    @classmethod
    def _as_it_was_given(cls, data: Any) -> Any:
        """An answer that comes back has null where nothing was said: after a call, or a refusal."""
        if not isinstance(data, dict) or data.get("role") != "assistant":
            return data
        refuse_in_message(data)
        silent = data.get("content") is None and any(
            name in data for name in ("content", "tool_calls", "refusal")
        )
        return {**data, "content": data.get("refusal") or ""} if silent else data

    @field_validator("tool_calls")
    @classmethod
    def _by_the_assistant(cls, calls: list[Call] | None, info: ValidationInfo) -> list[Call] | None:
        if calls and info.data.get("role", "assistant") != "assistant":
            raise ValueError("only the assistant calls tools")
        return calls

    @field_validator("tool_call_id")
    @classmethod
    def _answers_a_call(cls, ident: str | None, info: ValidationInfo) -> str | None:
        if ident is None and info.data.get("role") == "tool":
            raise ValueError("needed in a tool's message")
        return ident

    @field_validator("content")
    @classmethod
    def _says_something(
        cls, content: str | list[ContentPart] | None, info: ValidationInfo
    ) -> str | list[ContentPart] | None:
        if content is None and not info.data.get("tool_calls"):
            raise ValueError("Field required")
        return content

    @property
    def with_tools(self) -> bool:
        """Whether it calls tools or answers a call."""
        return self.role == "tool" or bool(self.tool_calls)

    def plain(self) -> dict[str, Any]:
        """The message as the chat template takes it: text content, OpenAI's `developer` as `system`."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.words for part in content)
        plain: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": text,
        }
        if self.tool_calls:
            plain["tool_calls"] = [call.plain() for call in self.tool_calls]
        if self.role == "tool":
            plain["tool_call_id"] = self.tool_call_id
        return plain
