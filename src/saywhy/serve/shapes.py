"""What goes over the wire in either direction, as pydantic checks it and as OpenAPI describes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, StrictBool, StrictInt, StrictStr, ValidationError

from saywhy.records import Prediction
from saywhy.serve.contract import About

BODY = "body"
# Kinds of error, as OpenAI names them.
WRONG = "invalid_request_error"
NO_KEY = "authentication_error"
NOT_FOUND = "not_found_error"
TOO_MANY = "rate_limit_error"
TOO_LATE = "timeout_error"
UNAVAILABLE = "unavailable_error"
BROKEN = "server_error"

Shape = TypeVar("Shape", bound=BaseModel)


@dataclass(frozen=True)
class Limits:
    """What one request may hold: bytes of its body, texts, and characters of each; and the seconds it may take."""

    body: int = 2 * 2**20
    texts: int = 256
    characters: int = 20_000
    seconds: float = 60.0


class Refusal(Exception):
    """A request that is answered with an error; `param` names the field that is wrong."""

    def __init__(
        self, status: int, message: str, kind: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.headers = status, message, kind, param, headers

    def body(self) -> dict[str, Any]:
        """Give the body of the answer."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param}}


class ErrorDetail(BaseModel):
    """What is wrong with a request: `param` is the field, null where it is none of them."""

    message: str
    type: str
    param: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is not 200."""

    error: ErrorDetail


class ClassifyRequest(BaseModel):
    """Texts to classify. `mode` null asks as the server recommends."""

    # What is unknown is refused by `read`: pydantic would note a hundred thousand mistakes where one is told.
    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": False})

    texts: Annotated[list[StrictStr], FailFast()] = Field(min_length=1, description="one text, or several")
    mode: StrictStr | None = Field(None, description="one of the modes that /v1/models lists; null: the recommended")
    reasoning: StrictBool = Field(True, description="whether results carry the reasoning, where the mode writes one")
    probabilities: StrictBool = Field(True, description="whether results carry the probabilities of all labels")
    stream: StrictBool = Field(False, description="whether to answer with server-sent events")


class Result(BaseModel):
    """The answer about one text."""

    label: str
    probability: float
    probabilities: dict[str, float] | None
    reasoning: str | None
    expected: float | None
    abstained: bool
    tokens: float
    forced: bool


class Usage(BaseModel):
    """What a request cost: computed tokens, and seconds from its arrival."""

    tokens: float
    seconds: float


class ClassifyResponse(BaseModel):
    """Results in the order of the texts."""

    model: str
    mode: str
    results: list[Result]
    usage: Usage


class Figures(BaseModel):
    """What a mode gave and cost on the test rows of its run; null where that is not known."""

    tokens_per_row: float | None
    rows_per_second: float | None
    accuracy: float | None


class Described(BaseModel):
    """The task of a model and the ways to ask it."""

    task: str
    instruction: str
    labels: list[str]
    descriptions: dict[str, str]
    ordinal: bool
    modes: dict[str, Figures]
    recommended: str


class Model(BaseModel):
    """A model as OpenAI lists it, described in `saywhy`."""

    id: str
    object: str
    created: int
    owned_by: str
    saywhy: Described


class ModelList(BaseModel):
    """All models: this one."""

    object: str
    data: list[Model]


class Part(BaseModel):
    """A part of a message; a text."""

    type: StrictStr
    text: StrictStr | None = None


class Message(BaseModel):
    """A turn of a chat."""

    role: StrictStr
    content: StrictStr | Annotated[list[Part], Field(max_length=256)] | None = None


class StreamOptions(BaseModel):
    """Whether a last chunk tells the usage."""

    include_usage: StrictBool | None = None


class ChatRequest(BaseModel):
    """A chat as OpenAI's clients send it: the last message of the user is the text, and what is unknown is ignored."""

    model: StrictStr
    messages: Annotated[list[Message], FailFast()] = Field(min_length=1)
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    n: StrictInt | None = None
    mode: StrictStr | None = None


def read(shape: type[Shape], body: bytes) -> Shape:
    """Read a request's body.

    Raises Refusal: 400 for what is no JSON, 422 with the field for what is not as it should be.
    """
    try:
        found = shape.model_validate_json(body)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            message = f"the body is no JSON that can be read: {first['msg']}"
            raise Refusal(400, message, WRONG, BODY) from None
        # Of a field that may be several things only its own name is of use.
        place = [str(step) for step in first["loc"] if not (isinstance(step, str) and ("[" in step or step == "str"))]
        param = ".".join(place) or BODY
        raise Refusal(422, f"{param}: {first['msg']}", WRONG, param) from None
    for unknown in found.model_extra or ():
        raise Refusal(422, f"{unknown:.40}: there is no such field", WRONG, unknown[:40])
    return found


def result(found: Prediction, reasoning: bool = True, probabilities: bool = True) -> dict[str, Any]:
    """Write a prediction as `Result`."""
    return {
        "label": found.label,
        "probability": found.probabilities[found.label],
        "probabilities": dict(found.probabilities) if probabilities else None,
        "reasoning": found.reasoning if reasoning else None,
        "expected": found.expected,
        "abstained": found.abstained,
        "tokens": found.tokens,
        "forced": found.forced,
    }


def model_entry(about: About, created: int) -> dict[str, Any]:
    """Write what is served as `Model`."""
    task = about.task
    return {
        "id": about.name,
        "object": "model",
        "created": created,
        "owned_by": "saywhy",
        "saywhy": {
            "task": task.name,
            "instruction": task.instruction,
            "labels": list(task.labels),
            "descriptions": dict(task.descriptions),
            "ordinal": task.ordinal,
            "modes": {mode: asdict(figures) for mode, figures in about.modes.items()},
            "recommended": about.recommended,
        },
    }


def event(name: str | None, data: Mapping[str, Any] | str) -> bytes:
    """Write one server-sent event; JSON holds no line break, so it is one line."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, allow_nan=False)
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {text}\n\n".encode()
