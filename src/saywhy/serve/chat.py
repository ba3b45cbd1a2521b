"""Chats in the shape of OpenAI's: which text they ask about, and answers in the shape its clients read."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from saywhy.records import LABEL_CUE, Prediction
from saywhy.serve.contract import About, Piece
from saywhy.serve.shapes import NOT_FOUND, WRONG, ChatRequest, Refusal, event, result


def text_of(asked: ChatRequest) -> tuple[str, str]:
    """Give the last message of the user, and where it stands. Raises Refusal where there is none, or no text in it."""
    if asked.n not in (None, 1):
        raise Refusal(422, f"n: {asked.n} answers were asked for; a text has one", WRONG, "n")
    for at, message in reversed(list(enumerate(asked.messages))):
        if message.role != "user":
            continue
        place = f"messages.{at}.content"
        if isinstance(message.content, str):
            return message.content, place
        texts = [part.text for part in message.content or () if part.type == "text" and part.text is not None]
        if not texts or len(texts) != len(message.content or ()):
            raise Refusal(422, f"{place}: it should be a text, or parts of the type text", WRONG, place)
        return "\n".join(texts), place
    raise Refusal(422, "messages: none is the user's; the last of them is the text to classify", WRONG, "messages")


def mode_of(asked: ChatRequest, about: About) -> str:
    """Give the mode that is asked, by its own field or else behind the model's name.

    Raises Refusal for another model.
    """
    if asked.model == about.name:
        return about.recommended if asked.mode is None else asked.mode
    name, _, mode = asked.model.rpartition(":")
    if name != about.name or mode not in about.modes:
        known = ", ".join([about.name, *(f"{about.name}:{one}" for one in about.modes)])
        raise Refusal(404, f"model: there is no such model; there are {known}", NOT_FOUND, "model")
    return mode if asked.mode is None else asked.mode


def content(found: Prediction) -> str:
    """Write an answer as text: the reasoning where there is one, and a last line with the label."""
    return f"{found.reasoning}\n{LABEL_CUE} {found.label}" if found.reasoning else f"{LABEL_CUE} {found.label}"


def completion(asked: ChatRequest, found: Prediction, mode: str) -> dict[str, Any]:
    """Write an answer as a chat completion; `saywhy` has what /v1/classify gives."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content(found), "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    return {
        **_head(asked, "chat.completion"),
        "choices": [choice],
        "usage": _usage(found),
        "saywhy": {"mode": mode, **result(found)},
    }


def chunks(asked: ChatRequest, mode: str) -> Callable[[Piece | Prediction], list[bytes]]:
    """Make what writes a streamed completion: events for each piece of its reasoning, and the last for its answer."""
    head = _head(asked, "chat.completion.chunk")
    usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
    told: list[str] = []

    def chunk(delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event(None, {**head, "choices": [choice], **({"usage": None} if usage else {}), **more})

    def write(one: Piece | Prediction) -> list[bytes]:
        first = [] if told else [chunk({"role": "assistant", "content": ""})]
        if isinstance(one, Piece):
            told.append(one.text)
            return [*first, chunk({"content": one.text})]
        rest = content(one).removeprefix("".join(told)) if told else content(one)
        last = [chunk({"content": rest}), chunk({}, "stop", saywhy={"mode": mode, **result(one)})]
        if usage:
            last.append(event(None, {**head, "choices": [], "usage": _usage(one)}))
        return [*first, *last]

    return write


def _head(asked: ChatRequest, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": asked.model,
        "system_fingerprint": None,
    }


def _usage(found: Prediction) -> dict[str, int]:
    """Count computed tokens: those before the first cue, and all others."""
    prompt, whole = round(found.prompt_tokens), round(found.tokens)
    return {"prompt_tokens": prompt, "completion_tokens": max(0, whole - prompt), "total_tokens": max(prompt, whole)}
