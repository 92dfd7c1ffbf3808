"""What the endpoints take: pydantic models that validate requests and describe them in OpenAPI.

Types are strict, as in OpenAI's API: "5" is not a number. Fields of OpenAI's API that would change
the answer and are not served yet are refused by name; other unknown fields are ignored, since
clients send many that do not matter here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from appliance.errors import InvalidRequest

MAX_MESSAGES = 2000
Stop = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Weight = Literal["normal", "medium", "high"] | Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]


class Body(BaseModel):
    """A JSON request body."""

    model_config = ConfigDict(strict=True, extra="ignore")


class ContentPart(Body):
    """One part of a message; text is the only kind this model reads."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]
    name: str | None = None

    def plain(self) -> dict[str, Any]:
        """The message as the chat template takes it: text content, OpenAI's `developer` as `system`."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(Body):
    """Options of a streamed answer."""

    include_usage: bool = False


class GenerationBody(Body):
    """What chat and plain completions share."""

    model: str = Field(description="`shammah`, or the served model's own name; see `/v1/models`.")
    max_tokens: int | None = Field(None, ge=1, description="Longest answer in tokens.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, description="Not in OpenAI's API; 0 for all.")
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: Stop | list[Stop] | None = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    store: bool | None = Field(None, description="false: this exchange is not collected for learning.")

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if isinstance(stop, list) and len(stop) > 4:
            raise ValueError("at most 4 stop strings")
        return stop

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        if isinstance(self.stop, str):
            return (self.stop,)
        return tuple(self.stop or ())


class ChatBody(GenerationBody):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unserved(cls, data: Any) -> Any:
        if isinstance(data, dict):
            _refuse(data, ("tools", "functions", "logprobs", "logit_bias", "audio"))
            wanted = data.get("response_format")
            if wanted is not None and wanted != {"type": "text"}:
                raise InvalidRequest(
                    "response_format: only {'type': 'text'} is served.",
                    param="response_format",
                    code="unsupported_parameter",
                )
        return data


class CompletionBody(GenerationBody):
    """`POST /v1/completions`: plain continuation, without the chat template."""

    prompt: str | list[str]

    @model_validator(mode="before")
    @classmethod
    def _refuse_unserved(cls, data: Any) -> Any:
        if isinstance(data, dict):
            _refuse(data, ("logprobs", "logit_bias", "suffix", "echo"))
        return data

    @field_validator("prompt")
    @classmethod
    def _one_prompt(cls, prompt: str | list[str]) -> str:
        if isinstance(prompt, list):
            if len(prompt) != 1:
                raise ValueError("exactly one prompt a request")
            prompt = prompt[0]
        if not prompt:
            raise ValueError("the prompt is empty")
        return prompt


class FeedbackBody(Body):
    """`POST /v1/feedback`: what was asked, what was answered, and what a person says of it."""

    query: str | None = Field(None, max_length=100_000)
    response: str | None = Field(None, max_length=100_000)
    weight: Weight = "normal"
    feedback: str | None = Field(None, max_length=10_000, description="A note, e.g. `Wrong. Should be 4`.")
    correction: str | None = Field(
        None, min_length=1, max_length=100_000, description="The answer it should have given."
    )
    rating: Literal["up", "down"] | None = None
    completion_id: str | None = Field(None, max_length=200)


class PromoteBody(Body):
    """`POST /v1/adapters/promote`."""

    name: str = Field(description="An adapter's name, or `base`.")


def _refuse(data: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if data.get(name):
            raise InvalidRequest(f"{name} is not served.", param=name, code="unsupported_parameter")
