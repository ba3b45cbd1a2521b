"""What a server's reply means, and what asking will cost."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faulty import completion, error
from saywhy.config import Api, Price, Sampling
from saywhy.teachers import Question
from saywhy.teachers.cost import estimate
from saywhy.teachers.replies import Address, read_completion, read_refusal, redacted, refused_parameter, retry_after

KEY = "sk-proj-Zq3vX81mLw0RtYbN5cKd"
SAMPLING = Sampling(max_tokens=20)
USAGE = {"prompt_tokens": 5, "completion_tokens": 3}
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


REPLIES: dict[str, tuple[bytes, str, str, bool]] = {
    "stop": (completion("so it is"), "so it is", "", False),
    "length": (completion("so it", "length"), "so it", "", True),
    "TGI's end": (completion("so it is", "eos_token"), "so it is", "", False),
    "another limit": (completion("so it", "MAX_TOKENS"), "so it", "", True),
    "an error": (completion("so it", "error"), "", "finish_reason 'error'", False),
    "no choice": (json.dumps({"choices": [], "usage": USAGE}).encode(), "", "no message", False),
    "no end, short": (completion("so it is", None, (5, 3)), "so it is", "", False),
    "no end, at the limit": (completion("so it", None, (5, 20)), "so it", "", True),
    "no usage": (completion("so it is", "stop", None), "so it is", "", False),
    "content filter": (completion("so", "content_filter"), "", "content filter", False),
    "refusal": (completion(None, "stop", message={"refusal": "I will not."}), "", "refused: I will not.", False),
    "tool": (completion("", "tool_calls"), "", "tool", False),
    "empty": (completion(" \n "), "", "empty answer", False),
    "null": (completion(None), "", "empty answer", False),
    "only thoughts": (completion(None, "length", message={"reasoning_content": "hm"}), "", "thoughts", False),
    "thoughts beside": (completion("so", message={"reasoning_content": "hm"}), "so", "", False),
    "thoughts before": (completion("<think>hm</think>\n\nso"), "so", "", False),
    "thoughts begun in the prompt": (completion("hm\n</think>so"), "so", "", False),
    "thoughts without end": (completion("<think>hm", "length"), "", "thoughts", False),
    "parts": (completion([{"type": "thinking"}, {"type": "text", "text": "so"}, 3]), "so", "", False),
    "a number": (completion(3), "", "empty answer", False),
}


def test_half_a_character_is_written_out() -> None:
    found = read_completion(completion("so \ud83d it is"), 20, None).draft
    assert found.reasoning == "so \\ud83d it is" and found.reasoning.encode()


@pytest.mark.parametrize(("body", "text", "failed", "cut"), REPLIES.values(), ids=REPLIES)
def test_how_an_answer_is_read(body: bytes, text: str, failed: str, cut: bool) -> None:
    draft = read_completion(body, 20, Price(input=1.0, output=1.0)).draft
    assert (draft.reasoning, draft.cut) == (text, cut)
    assert failed in draft.failed
    assert bool(draft.failed) == bool(failed)
    has_usage = b"usage" in body
    assert (draft.cost is not None) == has_usage, "what failed has its cost too"
    assert (draft.tokens > 0) == has_usage


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "finish_reason", "usage", "prompt_tokens", "error", "refusal", "text"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)
CHOICE = st.fixed_dictionaries({"choices": st.lists(st.fixed_dictionaries({"message": JSON, "finish_reason": JSON}))})
BODIES = (JSON | CHOICE).map(lambda value: json.dumps(value).encode()) | st.binary()


def test_what_a_server_repeats_of_a_question_is_no_bill() -> None:
    """FastAPI repeats what it was sent."""
    told = {"detail": [{"msg": "no such field", "input": {"content": "my card says insufficient balance"}}]}
    address = Address("http://x", "reasonings.api", Api(model="m"), "http://x", KEY)
    assert read_refusal(422, {}, json.dumps(told).encode(), address, NOW).fate == "nothing"
    assert read_refusal(500, {}, json.dumps(told).encode(), address, NOW).fate == "again"
    bills = ({"error": {"code": "insufficient_quota"}}, {"error": "Insufficient Balance"}, {"detail": "credit_limit"})
    for bill in bills:
        assert read_refusal(429, {}, json.dumps(bill).encode(), address, NOW).fate == "end"


@given(BODIES, st.sampled_from([200, 302, 400, 401, 403, 404, 409, 422, 429, 500, 503]))
def test_no_body_can_break_the_reading(body: bytes, status: int) -> None:
    reply = read_completion(body, 20, None)
    assert bool(reply.draft.failed) == (reply.fate != "answer")
    assert bool(reply.draft.reasoning) == (reply.fate == "answer")
    address = Address("http://x", "reasonings.api", Api(model="m"), "http://x", KEY)
    refusal = read_refusal(status, {}, body, address, NOW)
    assert refusal.draft.failed
    assert refusal.error is not None or refusal.fate != "end"
    assert refusal.error is None or refusal.fate in ("end", "nothing")
    refused_parameter(status, body, ("seed", "max_tokens"))


KEYS = st.text(st.sampled_from("abcdefghijkXYZ0123456789-_"), min_size=8, max_size=40)


@given(KEYS, st.text(max_size=20), st.integers(0, 39), st.integers(0, 39))
def test_no_longer_stretch_of_a_key_is_shown(key: str, before: str, start: int, size: int) -> None:
    shown = redacted(f"{before} {key[start : start + size]} and {key}.", key)
    assert not any(shown[at : at + 8] in key for at in range(len(shown) - 7))
    assert shown.endswith("[key].")


def test_what_is_no_key_is_shown() -> None:
    assert redacted("the limit is 3 requests", KEY) == "the limit is 3 requests"
    assert redacted("the limit is 3 requests", "") == "the limit is 3 requests"
    assert redacted("token abc!", "abc") == "token [key]!"
    assert redacted("yours ends ('sk-live-99…x') or ab****yz.", "") == "yours ends ('[key]') or [key]"


def test_retry_after_is_read() -> None:
    def read(value: str) -> float | None:
        return retry_after({"retry-after": value}, NOW)

    assert read("12") == 12
    assert read(" 1.5 ") == 1.5
    assert read("-3") == 0
    assert read(format_datetime(NOW + timedelta(seconds=90), usegmt=True)) == 90
    assert read("Sun, 01 Mar 2026 12:01:00 -0000") == 60
    assert read(format_datetime(NOW - timedelta(seconds=90), usegmt=True)) == 0
    assert [read(odd) for odd in ("", "soon", "nan", "inf", "Mon, 99 Foo 2026 99:00:00 GMT")] == [None] * 5
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}, NOW) == 0.25
    assert retry_after({}, NOW) is None


@given(st.text())
def test_no_retry_after_breaks_the_reading(value: str) -> None:
    seconds = retry_after({"retry-after": value}, NOW)
    assert seconds is None or seconds >= 0


def test_which_parameter_is_refused() -> None:
    names = ("seed", "top_p", "temperature", "max_tokens")
    assert refused_parameter(400, error("seed?"), names) == "seed"
    assert refused_parameter(400, b"unknown field top_p", names) == "top_p"
    assert refused_parameter(400, error("seeds are dear"), names) is None
    assert refused_parameter(400, error("see seed", param="messages"), names) is None
    assert refused_parameter(404, error("seed"), names) is None
    assert refused_parameter(400, error("temperature and top_p cannot both be set"), names) == "top_p"
    assert refused_parameter(400, error("top_p must lie between 0 and 1"), names) is None


def test_what_it_will_take_is_said_before() -> None:
    asked = [Question("r", ("abcd", "efgh", "i"), 0)] * 3
    found = estimate(asked, "Explain.", SAMPLING, Price(input=1e6, output=2e6))
    assert (found.requests, found.prompt_tokens, found.tokens) == (3, 3 * (2 + 3), 60)
    assert found.cost == 15 + 120
    assert found.sentence() == (
        "3 requests, about 15 tokens of prompts (four characters a token), at most 60 tokens written, "
        "at most 135.00 in the currency of the price"
    )
    counted = estimate(iter(asked), "Explain.", SAMPLING, None, count=len)
    assert (counted.prompt_tokens, counted.cost) == (3 * (8 + 9), None)
    assert "about" not in counted.sentence()
    assert "no price is set" in counted.sentence()
