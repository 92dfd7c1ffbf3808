"""What the endpoints take: pydantic models that validate requests and describe them in OpenAPI.

Types are strict, as in OpenAI's API: "5" is not a number; and null is as good as leaving a field out.
Fields that would change the answer and are not served are refused by name (`api/unserved.py`); other
unknown fields are ignored, since clients send many that do not matter here. What a conversation with
tools is made of is in `api/messages.py`.

All lists and objects have a longest length, which is looked at before what is in them, and a list is
read to its first fault: a million wrong values would otherwise be a million messages.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from appliance.api.messages import FIRST_FAULT, WHOLE, Body, Message, Name, NamedTool, Tool, at_most
from appliance.api.unserved import refuse

MAX_MESSAGES = 2000
MAX_CHOICES = 8
MAX_TOOLS = 128
MAX_STOPS = 4
MAX_BIASES = 1024
MAX_NAME = 256
"""Characters of the names of models and adapters; they stand in messages of errors."""
Stop = Annotated[str, StringConstraints(min_length=1, max_length=500)]
TokenId = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Stops = Annotated[
    list[Stop],
    FIRST_FAULT,
    at_most(MAX_STOPS, "stop strings"),
    WithJsonSchema(
        {
            "type": "array",
            "maxItems": MAX_STOPS,
            "items": {"type": "string", "minLength": 1, "maxLength": 500},
        }
    ),
]
_TOKENS = "lists of tokens are not served; send the text"
Weight = Literal["normal", "medium", "high"] | Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]


class StreamOptions(Body):
    """Options of a streamed answer."""

    include_usage: bool | None = None


class GenerationBody(Body):
    """What chat and plain completions share."""

    model: str = Field(
        max_length=MAX_NAME, description="`shammah`, or the served model's own name; see `/v1/models`."
    )
    max_tokens: Annotated[int | None, WHOLE] = Field(None, ge=1, description="Longest answer in tokens.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: Annotated[int | None, WHOLE] = Field(None, ge=0, description="Not in OpenAI's API; 0 for all.")
    min_p: float | None = Field(
        None, ge=0, le=1, description="Not in OpenAI's API: cut tokens less likely than this beside the best."
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(
        None, gt=0, le=2, description="Not in OpenAI's API: over prompt and answer; 1 for none."
    )
    logit_bias: Annotated[dict[TokenId, Bias], at_most(MAX_BIASES, "tokens")] | None = Field(
        None, description="Added to the logits of these tokens."
    )
    seed: Annotated[int | None, WHOLE] = Field(None, ge=0, lt=2**63)
    stop: Stop | Stops | None = None
    n: Annotated[int | None, WHOLE] = Field(
        None, ge=1, le=MAX_CHOICES, description="Answers to give to the one prompt."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    store: bool | None = Field(None, description="false: this exchange is not collected for learning.")
    metadata: Any = Field(
        None, description="A `task` in it that front ends set for themselves: not collected."
    )

    @property
    def task(self) -> str:
        """What a front end says it asks this for; empty when it says nothing."""
        named = self.metadata.get("task") if isinstance(self.metadata, dict) else None
        return named[:100] if isinstance(named, str) else ""

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        if isinstance(self.stop, str):
            return (self.stop,)
        return tuple(self.stop or ())

    @property
    def opening(self) -> str:
        """What a conversation began with: the same in each of its turns."""
        raise NotImplementedError


class JsonSchema(Body):
    """The schema that an answer must follow. It is followed to the letter, `strict` or not."""

    name: Name
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """The form of an answer: free text, any JSON object, or JSON of a schema."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"type": {"enum": ["text", "json_object"]}}},
                {"properties": {"json_schema": {"type": "object"}}, "required": ["json_schema"]},
            ]
        }
    )

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(None, validate_default=True)

    @field_validator("json_schema")
    @classmethod
    def _given_when_meant(cls, schema: JsonSchema | None, info: ValidationInfo) -> JsonSchema | None:
        if schema is None and info.data.get("type") == "json_schema":
            raise ValueError("a schema is needed")
        return schema

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """The JSON schema to follow, None for free text."""
        if self.type == "json_schema" and self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class ChatBody(GenerationBody):
    """`POST /v1/chat/completions`."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                {
                    "anyOf": [
                        {"properties": {"top_logprobs": {"type": "null"}}},
                        {"properties": {"logprobs": {"const": True}}, "required": ["logprobs"]},
                    ]
                },
                {
                    "anyOf": [
                        {"properties": {"tool_choice": {"enum": [None, "auto", "none"]}}},
                        {"properties": {"tools": {"type": "array", "minItems": 1}}, "required": ["tools"]},
                    ]
                },
            ]
        }
    )

    messages: Annotated[list[Message], FIRST_FAULT, at_most(MAX_MESSAGES, "messages")] = Field(
        min_length=1, max_length=MAX_MESSAGES
    )
    max_completion_tokens: Annotated[int | None, WHOLE] = Field(None, ge=1)
    logprobs: bool | None = Field(None, description="Report the log probability of each token.")
    top_logprobs: Annotated[int | None, WHOLE] = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], FIRST_FAULT, at_most(MAX_TOOLS, "tools")] | None = Field(
        None, max_length=MAX_TOOLS
    )
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call an answer.")

    @property
    def forced(self) -> bool:
        """Whether the answer must have a form: JSON, or the call of a tool."""
        formatted = self.response_format is not None and self.response_format.schema_of_answer is not None
        return formatted or self.tool_choice not in (None, "auto", "none")

    @property
    def opening(self) -> str:
        """The first message of the user."""
        users = (message for message in self.messages if message.role == "user")
        return next((str(message.plain()["content"]) for message in users), "")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unserved(cls, data: Any) -> Any:
        if isinstance(data, dict):
            refuse(data, chat=True)
        return data

    @field_validator("top_logprobs")
    @classmethod
    def _with_logprobs(cls, count: int | None, info: ValidationInfo) -> int | None:
        if count is not None and not info.data.get("logprobs"):
            raise ValueError("needs logprobs: true")
        return count

    @field_validator("tools")
    @classmethod
    def _different_names(cls, tools: list[Tool] | None) -> list[Tool] | None:
        names = [tool.function.name for tool in tools or []]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two tools are called {twice[0]!r}")
        return tools

    @field_validator("tool_choice")
    @classmethod
    def _of_the_tools(cls, choice: str | NamedTool | None, info: ValidationInfo) -> str | NamedTool | None:
        names = [tool.function.name for tool in info.data.get("tools") or []]
        if not names and choice not in (None, "auto", "none"):
            raise ValueError("needs tools")
        if isinstance(choice, NamedTool) and choice.function.name not in names:
            raise ValueError(f"there is no tool {choice.function.name!r}")
        return choice


class CompletionBody(GenerationBody):
    """`POST /v1/completions`: plain continuation, without the chat template."""

    prompt: Annotated[
        str | list[str],
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string", "minLength": 1},
                    {
                        "type": "array",
                        "minItems": 1,
                        "maxItems": 1,
                        "items": {"type": "string", "minLength": 1},
                    },
                ]
            }
        ),
    ]
    logprobs: Annotated[int | None, WHOLE] = Field(
        None, ge=0, le=5, description="Likely tokens to report in each place."
    )
    max_completion_tokens: Annotated[int | None, WHOLE] = Field(None, ge=1)

    @property
    def opening(self) -> str:
        """There are no turns: the whole prompt."""
        return str(self.prompt)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unserved(cls, data: Any) -> Any:
        if isinstance(data, dict):
            refuse(data, chat=False)
        return data

    @field_validator("prompt", mode="before")
    @classmethod
    def _a_text(cls, prompt: Any) -> Any:
        if isinstance(prompt, list):
            if len(prompt) != 1:
                tokens = len(prompt) > 1 and not isinstance(prompt[0], str)
                raise ValueError(_TOKENS if tokens else "exactly one prompt a request")
            if not isinstance(prompt[0], str):
                raise ValueError(_TOKENS)
        elif prompt is None:
            raise ValueError("a text is needed")
        return prompt

    @field_validator("prompt")
    @classmethod
    def _one_prompt(cls, prompt: str | list[str]) -> str:
        if isinstance(prompt, list):
            prompt = prompt[0]
        if not prompt:
            raise ValueError("the prompt is empty")
        return prompt


class FeedbackBody(Body):
    """`POST /v1/feedback`: what was asked, what was answered, and what a person says of it."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {
                    "properties": {
                        "query": {"type": "string", "pattern": "\\S"},
                        "response": {"type": "string", "pattern": "\\S"},
                    },
                    "required": ["query", "response"],
                },
                {"properties": {"completion_id": {"type": "string"}}, "required": ["completion_id"]},
            ]
        }
    )

    query: str | None = Field(None, max_length=100_000)
    response: str | None = Field(None, max_length=100_000)
    weight: Weight | None = None
    feedback: str | None = Field(None, max_length=10_000, description="A note, e.g. `Wrong. Should be 4`.")
    correction: str | None = Field(
        None, min_length=1, max_length=100_000, description="The answer it should have given."
    )
    rating: Literal["up", "down"] | None = None
    completion_id: str | None = Field(None, max_length=200)


class PromoteBody(Body):
    """`POST /v1/adapters/promote`."""

    name: str = Field(max_length=MAX_NAME, description="An adapter's name, or `base`.")


class PinBody(Body):
    """`POST /v1/adapters/pin`."""

    name: str = Field(max_length=MAX_NAME, description="The adapter in service, or `base` when that is.")
