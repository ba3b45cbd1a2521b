"""The description at /openapi.json: what a request may hold on this server, and what every answer looks like."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from saywhy.serve.contract import About
from saywhy.serve.shapes import ChatRequest, ClassifyRequest, ErrorBody, Limits

REFERENCE = "#/components/schemas/{model}"
OBJECT: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
TEXT: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
# Each event; `data` is JSON, or [DONE] at the end of a chat.
_EVENT = {"event": {"type": "string"}, "data": {"type": "string"}}
EVENTS: dict[str, Any] = {
    "text/event-stream": {"schema": {"type": "object", "properties": _EVENT, "required": ["data"]}}
}
_WHY = {
    400: "No JSON, or a host that this server does not answer to",
    401: "No key, or a wrong one",
    404: "No such model",
    408: "The body did not come to an end",
    413: "The body is too large",
    415: "The body does not say that it is JSON",
    422: "A field is not as it should be; `param` names it",
    429: "Too many texts are waiting; Retry-After says when to ask again",
    500: "The server failed",
    503: "The server is stopping",
    504: "No answer came in time",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": why} for status, why in _WHY.items()
}


def takes(shape: type[BaseModel]) -> dict[str, Any]:
    """Describe the body that a route reads by itself."""
    schema = {"$ref": REFERENCE.format(model=shape.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI, about: About, limits: Limits, key: bool) -> None:
    """Put into the app's description what FastAPI cannot see: bodies with their limits, model, modes, and the key."""
    described = app.openapi()
    schemas = described["components"]["schemas"]
    for shape in (ClassifyRequest, ChatRequest):
        made = shape.model_json_schema(ref_template=REFERENCE)
        schemas.update(made.pop("$defs", {}))
        schemas[shape.__name__] = made
    modes = list(about.modes)
    asked = schemas["ClassifyRequest"]["properties"]
    asked["texts"] |= {"maxItems": limits.texts, "items": {"type": "string", "maxLength": limits.characters}}
    asked["mode"]["anyOf"][0]["enum"] = modes
    chat = schemas["ChatRequest"]["properties"]
    chat["model"]["enum"] = [about.name, *(f"{about.name}:{mode}" for mode in modes)]
    chat["mode"]["anyOf"][0]["enum"] = modes
    chat["n"]["anyOf"][0]["enum"] = [1]
    chat["messages"]["contains"] = {
        "type": "object",
        "properties": {"role": {"const": "user"}, "content": {"type": "string", "maxLength": limits.characters}},
        "required": ["role", "content"],
    }
    if key:
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path in described["paths"]:
            if path.startswith("/v1/") or path == "/metrics":
                for operation in described["paths"][path].values():
                    operation["security"] = [{"key": []}]
