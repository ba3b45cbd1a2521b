"""What a server's reply means: an answer, a failure of this one row, one worth another attempt, or the end."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import groupby
from typing import Literal

from saywhy.config import Api, Price
from saywhy.records import RequestError, WorkError
from saywhy.teachers.shape import Draft, paragraph

# Seconds; a server that asks for a longer pause is not waited for.
LONGEST_WAIT = 600.0
LONGEST_MESSAGE = 300
# Characters of a key that may stand in a message at the most.
SHOWN_OF_KEY = 7
# What servers call an answer that came to its end, and one that met its limit.
FINISHED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "completed")
CUT = ("length", "max_tokens", "max_length", "model_length")
AGAIN = (408, 409, 425, 429)
TOO_LONG = re.compile(
    r"context[ _-]?(length|size|window)|(prompt|input|message)s? (is|are) too long|reduce the length"
    r"|`inputs`.*must (be|have less)",
    re.IGNORECASE,
)
FILTERED = re.compile(
    r"content_filter|content_policy|content management policy|ResponsibleAI|invalid_prompt|usage polic(y|ies)|flagged"
    r"|requires moderation|data_inspection_failed|content exists risk",
    re.IGNORECASE,
)
SPENT = re.compile(r"insufficient_quota|billing_hard_limit|insufficient[ _]balance|credit_limit", re.IGNORECASE)
UNSUPPORTED = re.compile(
    r"support|unknown|unrecogni[sz]ed|unexpected|extra|permitted|allowed|cannot|can't", re.IGNORECASE
)

# "row": only this row is the matter. "nothing": that, or the server is asked wrongly. "again": worth another attempt.
Fate = Literal["answer", "row", "nothing", "again", "end"]


@dataclass(frozen=True)
class Reply:
    """One attempt as a draft, and what follows from it.

    `wait` is how many seconds the server asks to be left alone, None where it says nothing. `error` ends the work.
    """

    draft: Draft
    fate: Fate
    wait: float | None = None
    error: RequestError | WorkError | None = None


@dataclass(frozen=True)
class Address:
    """A server and its key; `url` is its address, and `place` where its settings stand, as messages show them."""

    url: str
    place: str
    api: Api
    base_url: str = field(repr=False)
    key: str = field(repr=False)


def again(why: str, wait: float | None = None) -> Reply:
    """A failed attempt that another one may mend."""
    return Reply(Draft("", failed=why), "again", wait)


def read_completion(content: bytes, limit: int, price: Price | None, key: str = "") -> Reply:
    """Read the body of a chat completion, whatever a server has put there; `limit` tokens were asked for at most.

    A reasoning model's thoughts (`reasoning_content`, or `<think>` in the text) are not what it says.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return again("the answer is no JSON, or half of one")
    choice = _first(_get(body, "choices"))
    message = _get(choice, "message")
    usage = _get(body, "usage")
    prompt_tokens, tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    draft = Draft(
        # Half a surrogate pair is a character for nobody: neither a tokenizer nor a file takes it.
        paragraph(_said(_get(message, "content")).encode("utf-8", "backslashreplace").decode()),
        tokens=tokens or 0,
        prompt_tokens=prompt_tokens or 0,
        cost=None if prompt_tokens is None or tokens is None else cost_of(price, prompt_tokens, tokens),
    )
    if isinstance(message, dict):
        reply = _judged(draft, message, _get(choice, "finish_reason"), limit)
    else:
        # What it took may have to be paid all the same.
        reply = Reply(_failed(draft, f"the answer holds no message: {_message(body)}"), "again")
    return replace(reply, draft=replace(reply.draft, failed=redacted(reply.draft.failed, key)))


def _judged(draft: Draft, message: Mapping[str, object], reason: object, limit: int) -> Reply:
    ended = reason.lower() if isinstance(reason, str) else ""
    refusal = message.get("refusal")
    if ended == "content_filter":
        return Reply(_failed(draft, "the server's content filter stopped it"), "row")
    if isinstance(refusal, str) and refusal.strip():
        return Reply(_failed(draft, f"refused: {_short(refusal)}"), "row")
    if ended in ("tool_calls", "function_call"):
        return Reply(_failed(draft, "the model called a tool instead of answering"), "row")
    if ended not in ("", *CUT, *FINISHED):
        return Reply(_failed(draft, f"ended with finish_reason {_short(ended)!r}"), "again")
    # Where a server does not say why it ended, its count of tokens does.
    cut = ended in CUT or (not ended and draft.tokens >= limit)
    if not draft.reasoning:
        why = "empty answer" + (f": its {limit} tokens (sampling.max_tokens) went into thoughts" if cut else "")
        return Reply(_failed(draft, why), "nothing")
    return Reply(replace(draft, cut=cut), "answer")


def read_refusal(
    status: int, headers: Mapping[str, str], content: bytes, address: Address, now: datetime, answers: bool = False
) -> Reply:
    """Read an answer whose HTTP status is no success. No message holds the key; `now` is an aware time.

    Of a server that `answers` other questions a 403 is about this one, whatever it says.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = content.decode("utf-8", "replace")
    text = _whole(body)
    said = redacted(_message(body), address.key)
    url, place = address.url, address.place
    if status == 401:
        # A message of this kind repeats the key, or half of it: it is not shown at all.
        wrong = "refused the key" if address.key else "asks for a key"
        env = address.api.key_env
        return _end(RequestError(f"{url} {wrong} (401): put a valid one into the environment variable {env}"))
    if status == 402 or SPENT.search(_named(body)):
        return _end(WorkError(f"{url} wants to be paid first ({status}): {said}; run again then, answers are kept"))
    if status in AGAIN or status >= 500:
        wait = retry_after(headers, now)
        if wait is not None and wait > LONGEST_WAIT:
            return _end(WorkError(f"{url} asks to wait {wait:,.0f} s ({said}); run again then, answers are kept"))
        return again(f"status {status}: {said}", wait)
    if status == 413 or TOO_LONG.search(text):
        return Reply(Draft("", failed=f"too long for the model: {said}"), "row")
    if FILTERED.search(text):
        # Whether a text or an account is forbidden, only the next questions tell.
        fate: Fate = "nothing" if status == 403 else "row"
        return Reply(Draft("", failed=f"the server's content filter refused the prompt: {said}"), fate)
    if status in (400, 422) or (answers and status == 403):
        # Whether the question or the settings are wrong, only the next questions tell.
        return Reply(Draft("", failed=f"{url} refused the question ({status}): {said}"), "nothing")
    if status == 403:
        env = address.api.key_env
        return _end(RequestError(f"{url} forbids this (403): {said}; the key is the one in {env}"))
    if status == 404:
        hint = f"check {place}.model ({address.api.model}) and {place}.base_url, which mostly ends in /v1"
        return _end(RequestError(f"{url} has no such model or address (404): {said}; {hint}"))
    return _end(RequestError(f"{url} answers with status {status}: {said}; check {place}.base_url"))


def refused_parameter(status: int, content: bytes, sent: Iterable[str]) -> str | None:
    """Give the parameter of those sent that a server will not have, None where the refusal is about something else.

    Being named is enough for `seed` and `max_tokens`. Temperature and top_p decide what is written, so that they are
    refused only where the message says that they are not supported, not where their value is out of range.
    """
    if status not in (400, 422):
        return None
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = content.decode("utf-8", "replace")
    text = _whole(body)
    if TOO_LONG.search(text):
        return None
    named = _get(_get(body, "error"), "param")
    for name in sent:
        here = named == name if isinstance(named, str) and named else re.search(rf"\b{name}\b", text) is not None
        if here and (name not in ("temperature", "top_p") or UNSUPPORTED.search(text)):
            return name
    return None


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Give the seconds that a server asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as an HTTP date."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        written = headers.get(name, "").strip()
        try:
            seconds = float(written) / unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    aware = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return max((aware - now).total_seconds(), 0.0)


def redacted(text: str, key: str) -> str:
    """Hide a key in a message: every longer stretch of it, and words that look like a key or like half of one."""
    size = min(SHOWN_OF_KEY + 1, len(key))
    starts = [at for at in range(len(text) - size + 1) if size and text[at : at + size] in key]
    hidden = {at + step for at in starts for step in range(size)}
    stretches = groupby(range(len(text)), key=hidden.__contains__)
    seen = "".join("[key]" if of_key else "".join(text[at] for at in places) for of_key, places in stretches)
    return re.sub(r"\bsk-[^\s\"',;)]+|[^\s\"',;(]*\*{2,}[^\s\"',;)]*", "[key]", seen)


def cost_of(price: Price | None, prompt_tokens: int, tokens: int) -> float | None:
    """Reckon what tokens cost, in the currency of the price; None without one."""
    if price is None:
        return None
    return (prompt_tokens * price.input + tokens * price.output) / 1e6


def _failed(draft: Draft, why: str) -> Draft:
    return replace(draft, reasoning="", failed=why)


def _end(error: RequestError | WorkError) -> Reply:
    return Reply(Draft("", failed=str(error)), "end", error=error)


def _get(value: object, key: str) -> object:
    return value.get(key) if isinstance(value, dict) else None


def _first(value: object) -> object:
    return value[0] if isinstance(value, list) and value else None


def _count(usage: object, key: str) -> int | None:
    value = _get(usage, key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _said(content: object) -> str:
    """What the model says, without the thoughts that some servers leave in the text; content may come in parts."""
    if isinstance(content, list):
        texts = [_get(part, "text") for part in content if _get(part, "type") == "text"]
        content = "".join(text for text in texts if isinstance(text, str))
    if not isinstance(content, str):
        return ""
    _, closed, answer = content.rpartition("</think>")
    return "" if not closed and content.lstrip().startswith("<think>") else answer


def _message(body: object) -> str:
    """Find the sentence in an error's body: OpenAI's, vLLM's, FastAPI's and others' shapes; else the body itself."""
    error = _get(body, "error")
    for found in (_get(error, "message"), error, _get(body, "message"), _get(body, "detail")):
        if isinstance(found, str) and found.strip():
            return _short(found)
    return _short(_whole(body)) or "no message"


def _named(body: object) -> str:
    """What a server calls its error: its code, type and message, without what it repeats of the question."""
    if isinstance(body, str):
        return body
    error = _get(body, "error")
    found = [error, *(_get(part, key) for part in (error, body) for key in ("code", "type", "message", "detail"))]
    return " ".join(one for one in found if isinstance(one, str))


def _whole(body: object) -> str:
    return body if isinstance(body, str) else json.dumps(body)


def _short(text: str) -> str:
    words = paragraph(text)
    return words if len(words) <= LONGEST_MESSAGE else words[:LONGEST_MESSAGE] + "…"
