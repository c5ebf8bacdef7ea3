"""OpenAI's requests and answers, as its own clients send and read them, and what Plaudit adds: a feedback token.

A field that is not here is refused where this process answers, and handed on where a server behind does.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from plaudit.serving.backend import Ask, Unsupported

Text = Annotated[str, Field(max_length=1_000_000)]
MOST_STOPS, MOST_CHOICES, MOST_TOPS = 4, 16, 20


class Wire(BaseModel):
    """What is sent: unknown fields are kept beside."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Out(BaseModel):
    """What is answered."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["text"]
    text: Text


class CalledFunction(Wire):
    name: str
    arguments: Text


class Call(Wire):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Wire):
    """A turn of a conversation. content: text, or parts of text; other parts this server does not take."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | tuple[TextPart, ...] | None = None
    name: str | None = None
    tool_calls: tuple[Call, ...] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise ValueError("a message has neither content nor tool_calls")
        return self


class Function(Wire):
    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_-]+$")]
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None


class Tool(Wire):
    type: Literal["function"]
    function: Function


class NamedFunction(Wire):
    name: str


class ToolChoice(Wire):
    type: Literal["function"]
    function: NamedFunction


class Schema(Wire):
    name: str
    schema_: dict[str, JsonValue] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class Format(Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema stands beside type json_schema, and nowhere else")
        return self


class StreamOptions(Wire):
    include_usage: bool | None = None


class Request(Wire):
    """What both kinds of request have. temperature and the like: None as the server has it."""

    model: str
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    stop: str | tuple[str, ...] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=200)] | None = None
    store: bool | None = None
    """False: this answer is not kept, and no feedback can be given on it."""
    metadata: dict[str, str] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, float] | None = None
    conversation: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    """Which conversation this belongs to; feedback may be on the whole of it."""
    regenerates: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    """The answer that this one is asked for instead of."""

    @model_validator(mode="after")
    def _stops_say_something(self) -> Self:
        if len(self.stops) > MOST_STOPS or not all(self.stops):
            raise ValueError(f"stop is up to {MOST_STOPS} texts, none of them empty")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else self.stop or ()

    def plain(self, seed: int) -> dict[str, Any]:
        """What of an `Ask` both kinds have in common. Unsupported for what changes likelihoods otherwise."""
        if self.presence_penalty or self.frequency_penalty or self.logit_bias:
            raise Unsupported(
                "presence_penalty, frequency_penalty and logit_bias are not to be had here",
                where="request",
                fix="leave them out",
            )
        return {
            "n": self.n or 1,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k or 0,
            "stops": self.stops,
            "seed": seed if self.seed is None else self.seed,
            "extra": self.model_extra or {},
            "handed": {} if self.metadata is None else {"metadata": self.metadata},
        }


class ChatRequest(Request):
    """`POST /v1/chat/completions`."""

    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=2000)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOPS)] | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: Format | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs wants logprobs to be true")
        if self.tool_choice not in (None, "none") and not self.tools:
            raise ValueError("tool_choice wants tools")
        if isinstance(self.tool_choice, ToolChoice) and self.tool_choice.function.name not in {
            tool.function.name for tool in self.tools or ()
        }:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}, which is no tool")
        return self

    def ask(self, seed: int, most: int | None) -> Ask:
        """As a backend takes it. most: new tokens that any answer may have."""
        asked = self.max_completion_tokens or self.max_tokens
        calls: Any = self.tool_choice
        if isinstance(calls, ToolChoice):
            calls = calls.function.name
        elif calls == "auto":
            calls = None
        return Ask(
            prompt=[message.model_dump(exclude_none=True) for message in self.messages],
            most=min(filter(None, (asked, most)), default=None),
            top=(self.top_logprobs or 0) if self.logprobs else 0,
            schema=self._schema(),
            tools=[tool.function.model_dump(exclude_none=True) for tool in self.tools or ()],
            calls=calls,
            **self._handing(self.plain(seed)),
        )

    def _handing(self, given: dict[str, Any]) -> dict[str, Any]:
        """With what a server behind may know of it."""
        if self.parallel_tool_calls is not None:
            given["handed"] = given["handed"] | {"parallel_tool_calls": self.parallel_tool_calls}
        if self.response_format is not None and self.response_format.type != "text":
            told = self.response_format.model_dump(by_alias=True, exclude_none=True)
            given["handed"] = given["handed"] | {"response_format": told}
        return given

    def _schema(self) -> dict[str, JsonValue] | None:
        if self.response_format is None or self.response_format.type == "text":
            return None
        if self.response_format.json_schema is None:
            return {"type": "object"}
        return self.response_format.json_schema.schema_ or {"type": "object"}


class CompletionRequest(Request):
    """`POST /v1/completions`: text to go on with."""

    prompt: Text
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    def ask(self, seed: int, most: int | None) -> Ask:
        """As a backend takes it; 16 new tokens where nobody says how many, as OpenAI has it."""
        if self.echo or self.suffix or self.best_of not in (None, self.n or 1):
            raise Unsupported(
                "echo, suffix and best_of are not to be had here", where="request", fix="leave them out"
            )
        asked = self.max_tokens or 16
        return Ask(
            prompt=self.prompt, most=min(asked, most or asked), top=self.logprobs or 0, **self.plain(seed)
        )


# What is answered


class TopToken(Out):
    token: str
    logprob: float
    bytes: tuple[int, ...] | None


class TokenLogprob(TopToken):
    top_logprobs: tuple[TopToken, ...] = ()


class Logprobs(Out):
    content: tuple[TokenLogprob, ...]
    refusal: None = None


class MadeFunction(Out):
    name: str
    arguments: str


class MadeCall(Out):
    id: str
    type: Literal["function"] = "function"
    function: MadeFunction


class Said(Out):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    tool_calls: tuple[MadeCall, ...] | None = None


class Choice(Out):
    index: int
    message: Said
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]


class Usage(Out):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Handle(Out):
    """What feedback on the answer is sent with: whoever holds it asked. Null where the answer is not kept."""

    token: str
    conversation: str


class ChatCompletion(Out):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Usage | None = None
    system_fingerprint: str | None = None
    feedback: Handle | None = None


class TextLogprobs(Out):
    tokens: tuple[str, ...]
    token_logprobs: tuple[float, ...]
    top_logprobs: tuple[dict[str, float], ...] | None
    text_offset: tuple[int, ...]


class TextChoice(Out):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: Literal["stop", "length", "content_filter"]


class TextCompletion(Out):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: tuple[TextChoice, ...]
    usage: Usage | None = None
    system_fingerprint: str | None = None
    feedback: Handle | None = None


class ModelCard(Out):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(Out):
    object: Literal["list"] = "list"
    data: tuple[ModelCard, ...]


class Fault(Out):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class FaultAnswer(Out):
    """Every refusal, as OpenAI's clients read it."""

    error: Fault
