"""The HTTP side with an engine that has no model: shapes, mistakes, limits, keys, and what is said where."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from saywhy import cli
from saywhy.records import RequestError
from saywhy.serve import app as room
from saywhy.serve import asking, shapes
from saywhy.serve import run as running
from saywhy.serve.app import make_app
from saywhy.serve.guard import LOCAL, counters
from saywhy.serve.run import bind, make_server, read_key, write_log
from saywhy.serve.shapes import Limits
from serving import ABOUT, Fake, answer, served

KEY = "a-key-of-more-than-16-characters"
SMALL = Limits(body=2000, texts=3, characters=50, seconds=0.3)
# What the test client calls the server.
HOSTS = LOCAL | {"testserver"}
JSON = {"content-type": "application/json"}


@pytest.fixture
def engine() -> Fake:
    return Fake()


@pytest.fixture
def client(engine: Fake) -> TestClient:
    return TestClient(make_app(engine, SMALL, hosts=HOSTS))


def events(body: str) -> list[tuple[str, Any]]:
    """Read server-sent events: name ("" where there is none) and data."""
    found = []
    for block in body.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            data = lines["data"]
            found.append((lines.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found


def chat(text: Any = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "mail", "messages": [{"role": "user", "content": text}], **more}


# /v1/classify


def test_texts_are_answered_in_their_order(client: TestClient, engine: Fake) -> None:
    said = client.post("/v1/classify", json={"texts": ["", "hello", "unsure"]})
    told = said.json()
    assert said.status_code == 200 and list(told) == ["model", "mode", "results", "usage"]
    assert (told["model"], told["mode"]) == ("mail", "reason")
    for text, one in zip(["", "hello", "unsure"], told["results"], strict=True):
        wanted = answer(text, "reason")
        assert one == {
            "label": wanted.label,
            "probability": wanted.probabilities[wanted.label],
            "probabilities": wanted.probabilities,
            "reasoning": wanted.reasoning,
            "expected": None,
            "abstained": text == "unsure",
            "tokens": wanted.tokens,
            "forced": False,
        }
    assert told["usage"]["tokens"] == 41 and 0 < told["usage"]["seconds"] < 60
    assert engine.handles[0].cancelled.is_set()


def test_what_is_not_wanted_is_left_out(client: TestClient, engine: Fake) -> None:
    asked = {"texts": ["hello"], "mode": "explain", "reasoning": False, "probabilities": False}
    (one,) = client.post("/v1/classify", json=asked).json()["results"]
    assert one["reasoning"] is None and one["probabilities"] is None and one["probability"] > 0.5
    assert engine.asked == [(["hello"], "explain", False)]


def test_a_stream_tells_pieces_then_results_then_the_cost(client: TestClient) -> None:
    said = client.post("/v1/classify", json={"texts": ["", "hello"], "stream": True})
    assert said.headers["content-type"].startswith("text/event-stream")
    whole = client.post("/v1/classify", json={"texts": ["", "hello"]}).json()
    told = events(said.text)
    assert [name for name, _ in told] == [
        "reasoning",
        "reasoning",
        "result",
        "reasoning",
        "reasoning",
        "result",
        "done",
    ]
    for at, wanted in enumerate(whole["results"]):
        pieces = [data["text"] for name, data in told if name == "reasoning" and data["index"] == at]
        assert "".join(pieces) == wanted["reasoning"]
        assert [data for name, data in told if name == "result" and data["index"] == at] == [{"index": at, **wanted}]
    done = told[-1][1]
    assert (done["model"], done["mode"], done["usage"]["tokens"]) == ("mail", "reason", whole["usage"]["tokens"])


def test_a_stream_without_reasoning_has_none(client: TestClient) -> None:
    for asked in ({"mode": "label"}, {"reasoning": False}):
        told = events(client.post("/v1/classify", json={"texts": ["hello"], "stream": True, **asked}).text)
        assert [name for name, _ in told] == ["result", "done"] and told[0][1]["reasoning"] is None


@pytest.mark.parametrize(("text", "kind"), [("fails", "server_error"), ("ends", "unavailable_error")])
def test_a_stream_that_fails_ends_with_the_error(client: TestClient, text: str, kind: str) -> None:
    told = events(client.post("/v1/classify", json={"texts": [text], "stream": True}).text)
    assert told == [("error", {"error": {"message": "the model failed", "type": kind, "param": None}})]


def test_a_stream_that_takes_too_long_says_so(client: TestClient, engine: Fake) -> None:
    told = events(client.post("/v1/classify", json={"texts": ["never"], "stream": True}).text)
    assert [name for name, _ in told] == ["reasoning", "error"] and told[1][1]["error"]["type"] == "timeout_error"
    assert engine.handles[0].cancelled.is_set()


# Mistakes

WRONG: list[tuple[str, str, Any, int, str | None]] = [
    ("no JSON", "/v1/classify", b"{", 400, "body"),
    ("no UTF-8", "/v1/classify", b'{"texts": ["\xff"]}', 400, "body"),
    ("half a character", "/v1/classify", b'{"texts": ["\\ud800"]}', 400, "body"),
    ("nested too deep", "/v1/classify", b"[" * 1900, 400, "body"),
    ("no object", "/v1/classify", [], 422, "body"),
    ("nothing", "/v1/classify", {}, 422, "texts"),
    ("no texts", "/v1/classify", {"texts": []}, 422, "texts"),
    ("one text bare", "/v1/classify", {"texts": "hello"}, 422, "texts"),
    ("a number", "/v1/classify", {"texts": ["a", 7]}, 422, "texts.1"),
    ("null", "/v1/classify", {"texts": [None]}, 422, "texts.0"),
    ("too many", "/v1/classify", {"texts": ["a"] * 4}, 422, "texts"),
    ("too long", "/v1/classify", {"texts": ["a", "b" * 51]}, 422, "texts.1"),
    ("too large", "/v1/classify", {"texts": ["b" * 2000]}, 413, "body"),
    ("no such mode", "/v1/classify", {"texts": ["a"], "mode": "vote"}, 422, "mode"),
    ("an empty mode", "/v1/classify", {"texts": ["a"], "mode": ""}, 422, "mode"),
    ("an unknown field", "/v1/classify", {"texts": ["a"], "temperature": 1}, 422, "temperature"),
    ("no truth", "/v1/classify", {"texts": ["a"], "stream": "yes"}, 422, "stream"),
    ("what the engine refuses", "/v1/classify", {"texts": ["odd"]}, 422, "texts.0"),
    ("a full queue", "/v1/classify", {"texts": ["full"]}, 429, None),
    ("a full queue for a stream", "/v1/classify", {"texts": ["full"], "stream": True}, 429, None),
    ("a stopping server", "/v1/classify", {"texts": ["stopped"]}, 503, None),
    ("a failing model", "/v1/classify", {"texts": ["a", "fails"]}, 500, None),
    ("a dead engine", "/v1/classify", {"texts": ["ends"]}, 503, None),
    ("no answer", "/v1/classify", {"texts": ["never"]}, 504, None),
    ("no messages", "/v1/chat/completions", {"model": "mail", "messages": []}, 422, "messages"),
    ("nobody asks", "/v1/chat/completions", {"model": "mail", "messages": [{"role": "system"}]}, 422, "messages"),
    ("no content", "/v1/chat/completions", chat(None), 422, "messages.0.content"),
    ("a picture", "/v1/chat/completions", chat([{"type": "image_url"}]), 422, "messages.0.content"),
    ("a number for a text", "/v1/chat/completions", chat(7), 422, "messages.0.content"),
    ("a long message", "/v1/chat/completions", chat("b" * 51), 422, "messages.0.content"),
    ("two answers", "/v1/chat/completions", chat(n=2), 422, "n"),
    ("another model", "/v1/chat/completions", chat(model="gpt"), 404, "model"),
    ("another mode of it", "/v1/chat/completions", chat(model="mail:vote"), 404, "model"),
    ("an unknown mode", "/v1/chat/completions", chat(mode="vote"), 422, "mode"),
]


@pytest.mark.parametrize(("path", "body", "status", "param"), [one[1:] for one in WRONG], ids=[one[0] for one in WRONG])
def test_a_mistake_is_told_with_its_field(
    client: TestClient, path: str, body: Any, status: int, param: str | None
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    said = client.post(path, content=content, headers=JSON)
    error = said.json()["error"]
    assert (said.status_code, error["param"]) == (status, param)
    assert set(error) == {"message", "type", "param"} and error["message"] and error["type"].endswith("_error")
    if param is not None and status == 422 and param != "body":
        assert param in error["message"] or "odd" in error["message"]
    assert said.headers["content-security-policy"] and said.headers["cache-control"] == "no-store"
    assert ("retry-after" in said.headers) == (status == 429 or "stopped" in str(body))
    if status == 429:
        assert said.headers["retry-after"] == "7"


def test_paths_and_methods_that_are_not_there(client: TestClient) -> None:
    for path in ("/v1/classify/", "/docs", "/../etc/passwd", "/%2e%2e/app.py", "/page/page.js", "/app.py"):
        assert client.get(path).json()["error"]["type"] == "not_found_error"
    said = client.get("/v1/classify")
    assert said.status_code == 405 and said.headers["allow"] == "POST" and said.json()["error"]["param"] is None


def test_a_body_that_is_not_said_to_be_json_is_refused(client: TestClient, engine: Fake) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        said = client.post("/v1/classify", content=b'{"texts": ["a"]}', headers={"content-type": kind})
        assert said.status_code == 415 and said.json()["error"]["param"] == "content-type"
    assert not engine.asked
    good = {"content-type": "Application/JSON; charset=utf-8"}
    assert client.post("/v1/classify", content=b'{"texts": ["a"]}', headers=good).status_code == 200


def test_a_bug_is_told_without_what_it_says(engine: Fake) -> None:
    client = TestClient(make_app(engine, SMALL, hosts=HOSTS), raise_server_exceptions=False)
    said = client.post("/v1/classify", json={"texts": ["bug"]})
    assert said.status_code == 500 and said.json()["error"]["type"] == "server_error" and "a bug" not in said.text
    assert said.headers["content-security-policy"]


HOSTILE = TestClient(make_app(Fake(), SMALL, hosts=HOSTS))


@settings(max_examples=200)
@given(
    st.sampled_from(["/v1/classify", "/v1/chat/completions"]),
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["texts", "mode", "model", "messages", "role", "content", "n"]), inner)
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode()),
)
def test_whatever_is_sent_is_answered_with_what_is_wrong(path: str, body: bytes) -> None:
    said = HOSTILE.post(path, content=body, headers=JSON)
    assert said.status_code in (200, 400, 404, 422, 413)
    assert said.status_code == 200 or set(said.json()["error"]) == {"message", "type", "param"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/classify", {"texts": [1] * 50_000}, "texts.0"),
        ("/v1/classify", {"texts": ["a"], **dict.fromkeys(map(str, range(50_000)), 1)}, "0"),
        ("/v1/chat/completions", {"model": "mail", "messages": [1] * 50_000}, "messages.0"),
        (
            "/v1/chat/completions",
            {"model": "mail", "messages": [{"role": "user", "content": [1] * 50_000}]},
            "messages.0.content",
        ),
    ],
)
def test_of_many_mistakes_in_a_body_few_are_noted(engine: Fake, path: str, body: dict[str, Any], param: str) -> None:
    """A mistake that is noted takes a hundred times as long as a text that is right, and nobody else is answered."""
    said = TestClient(make_app(engine, hosts=HOSTS)).post(path, json=body)
    assert said.status_code == 422 and said.json()["error"]["param"] == param
    shape = shapes.ClassifyRequest if "classify" in path else shapes.ChatRequest
    noted = 0
    try:
        shape.model_validate_json(json.dumps(body))
    except ValidationError as problem:
        noted = problem.error_count()
    assert noted < 300


def test_a_body_is_not_read_beyond_its_limit(engine: Fake) -> None:
    with served(engine, SMALL) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as line:
            line.sendall(
                b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100000000000\r\n\r\n" + b"a" * 5000
            )
            assert line.recv(1000).startswith(b"HTTP/1.1 413")


def test_a_body_that_never_ends_is_given_up(engine: Fake) -> None:
    with served(engine, SMALL) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as line:
            line.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            line.sendall(b"Content-Length: 100\r\n\r\n{")
            assert line.recv(1000).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_not_worked_for(engine: Fake, stream: bool) -> None:
    body = json.dumps({"texts": ["never"], "stream": stream}).encode()
    with served(engine, Limits(seconds=60)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as line:
            line.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            line.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            if stream:
                assert line.recv(1000).startswith(b"HTTP/1.1 200")
            until = time.monotonic() + 20
            while not engine.handles and time.monotonic() < until:
                time.sleep(0.01)
            assert not engine.handles[0].cancelled.is_set()
        assert engine.handles[0].cancelled.wait(20)


# Chats


def test_a_chat_is_answered_with_reasoning_and_label(client: TestClient, engine: Fake) -> None:
    asked = {"model": "mail", "temperature": 0.3, "max_tokens": 5, "messages": [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "the first"},
        {"role": "assistant", "content": "Label: praise"},
        {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
    ]}  # fmt: skip
    told = client.post("/v1/chat/completions", json=asked).json()
    assert engine.asked == [(["hel\nlo"], "reason", False)]
    (choice,) = told["choices"]
    assert (
        choice["message"]["content"] == "It has 6 characters.\nLabel: complaint" and choice["finish_reason"] == "stop"
    )
    classified = client.post("/v1/classify", json={"texts": ["hel\nlo"]}).json()["results"][0]
    assert told["saywhy"] == {"mode": "reason", **classified}
    assert told["usage"] == {"prompt_tokens": 6, "completion_tokens": 10, "total_tokens": 16}


@pytest.mark.parametrize("way", [{"model": "mail:label"}, {"mode": "label"}, {"model": "mail:reason", "mode": "label"}])
def test_the_mode_of_a_chat_stands_behind_the_model_or_alone(client: TestClient, way: dict[str, str]) -> None:
    told = client.post("/v1/chat/completions", json=chat(**way)).json()
    assert told["choices"][0]["message"]["content"] == "Label: complaint" and told["saywhy"]["mode"] == "label"
    assert told["model"] == way.get("model", "mail")


def test_a_streamed_chat_says_the_same(client: TestClient) -> None:
    whole = client.post("/v1/chat/completions", json=chat()).json()
    told = events(client.post("/v1/chat/completions", json=chat(stream=True)).text)
    chunks = [data for _, data in told[:-1]]
    assert told[-1] == ("", "[DONE]") and {name for name, _ in told} == {""}
    content = "".join(one["choices"][0]["delta"].get("content", "") for one in chunks)
    assert content == whole["choices"][0]["message"]["content"]
    assert len({one["id"] for one in chunks}) == 1 and all("usage" not in one for one in chunks)
    assert chunks[-1]["saywhy"] == whole["saywhy"] and chunks[-1]["choices"][0]["finish_reason"] == "stop"
    failed = events(client.post("/v1/chat/completions", json=chat("fails", stream=True)).text)
    assert failed[-1][0] == "error" and failed[-1][1]["error"]["type"] == "server_error"


def test_openais_own_client_is_answered(engine: Fake) -> None:
    with served(engine, key=KEY) as address:
        asked = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=20)
        messages: Any = [{"role": "user", "content": "hello"}]
        assert [one.id for one in asked.models.list()] == ["mail"]
        assert asked.models.retrieve("mail:label").id == "mail:label"
        told = asked.chat.completions.create(model="mail", messages=messages)
        assert told.choices[0].message.content == "It has 5 characters.\nLabel: complaint"
        assert told.model_extra is not None and told.model_extra["saywhy"]["label"] == "complaint"
        more = {"mode": "label"}
        assert asked.chat.completions.create(model="mail", messages=messages, extra_body=more).usage is not None
        options: Any = {"include_usage": True}
        stream = asked.chat.completions.create(model="mail", messages=messages, stream=True, stream_options=options)
        chunks = list(stream)
        assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices).endswith("Label: complaint")
        assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 15
        with pytest.raises(openai.NotFoundError):
            asked.chat.completions.create(model="gpt", messages=messages)
        with pytest.raises(openai.UnprocessableEntityError) as wrong:
            asked.chat.completions.create(model="mail", messages=[])
        assert wrong.value.param == "messages"
        with pytest.raises(openai.RateLimitError):
            asked.chat.completions.create(model="mail", messages=[{"role": "user", "content": "full"}])
        with pytest.raises(openai.APIError):
            list(
                asked.chat.completions.create(
                    model="mail", messages=[{"role": "user", "content": "fails"}], stream=True
                )
            )
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{address}/v1", api_key="another", max_retries=0).models.list()
        asked.close()
    assert engine.closed


# What is served, and how it is


def test_the_model_is_described(client: TestClient) -> None:
    told = client.get("/v1/models").json()
    assert told["object"] == "list"
    (one,) = told["data"]
    assert one["id"] == "mail" and one["object"] == "model"
    assert one["saywhy"] == {
        "task": "mail",
        "instruction": "What is it about?",
        "labels": ["praise", "complaint"],
        "descriptions": {"praise": "thanks, joy"},
        "ordinal": False,
        "modes": {
            "label": {"tokens_per_row": 17.0, "rows_per_second": 90.5, "accuracy": 0.86},
            "reason": {"tokens_per_row": None, "rows_per_second": None, "accuracy": None},
            "explain": {"tokens_per_row": None, "rows_per_second": None, "accuracy": None},
        },
        "recommended": "reason",
    }
    assert client.get("/v1/models/mail:label").json() == {**one, "id": "mail:label"}
    named = TestClient(make_app(Fake(replace(ABOUT, name="acme/mail")), hosts=HOSTS))
    assert named.get("/v1/models/acme/mail:label").json()["id"] == "acme/mail:label"
    assert client.get("/v1/models/gpt").json()["error"]["param"] == "model"


def test_health_and_readiness(client: TestClient, engine: Fake) -> None:
    assert client.get("/ready").json() == {"status": "ready"}
    engine.is_ready = False
    assert client.get("/ready").status_code == 503 and client.get("/health").json() == {"status": "ok"}


def test_the_engine_is_closed_with_the_app(engine: Fake) -> None:
    with TestClient(make_app(engine, hosts=HOSTS)) as client:
        assert client.get("/health").status_code == 200 and not engine.closed
    assert engine.closed


def test_what_prometheus_is_told(client: TestClient) -> None:
    client.post("/v1/classify", json={"texts": ["hello", ""]})
    client.post("/v1/classify", json={"texts": ["full"]})
    client.get("/somewhere/secret")
    told = client.get("/metrics").text
    for line in (
        'saywhy_requests_total{route="/v1/classify",status="200"} 1.0',
        'saywhy_requests_total{route="/v1/classify",status="429"} 1.0',
        'saywhy_requests_total{route="other",status="404"} 1.0',
        'saywhy_answers_total{label="complaint",mode="reason"} 2.0',
        'saywhy_tokens_total{mode="reason"} 25.0',
        "saywhy_waiting_texts 3.0",
        'saywhy_request_seconds_count{route="/v1/classify"} 2.0',
    ):
        assert line in told
    assert "secret" not in told


def test_the_page_is_served_from_memory(engine: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("<p>hello", encoding="utf-8")
    (tmp_path / "page" / "page.js").write_text("hello()", encoding="utf-8")
    (tmp_path / "page" / "notes.txt").write_text("notes", encoding="utf-8")
    monkeypatch.setattr(room, "files", lambda _: tmp_path)
    client = TestClient(make_app(engine, key=KEY))
    (tmp_path / "page" / "index.html").unlink()
    said = client.get("/")
    assert said.text == "<p>hello" and said.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src 'self'" in said.headers["content-security-policy"]
    assert "unsafe" not in said.headers["content-security-policy"]
    assert client.get("/page.js").headers["content-type"] == "text/javascript; charset=utf-8"
    assert client.head("/page.js").status_code == 200
    assert client.get("/notes.txt").status_code == 401 and client.get("/style.css").status_code == 401


# Keys, hosts and logs


@pytest.mark.parametrize("given_key", [None, "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer ü"])
def test_without_the_key_nothing_is_answered(engine: Fake, given_key: str | None) -> None:
    client = TestClient(make_app(engine, key=KEY))
    headers = {} if given_key is None else {"authorization": given_key.encode("latin-1")}
    asked = [
        ("POST", "/v1/classify"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/mail"),
    ]
    for method, path in [*asked, ("GET", "/metrics"), ("GET", "/elsewhere"), ("GET", "/health/")]:
        said = client.request(method, path, headers=headers)  # type: ignore[arg-type]
        assert said.status_code == 401 and said.headers["www-authenticate"] == "Bearer"
        assert said.json()["error"]["type"] == "authentication_error" and said.headers["x-frame-options"] == "DENY"
    for path in ("/health", "/ready", "/openapi.json"):
        assert client.get(path).status_code == 200
    assert not engine.asked


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_with_the_key_all_is_answered(engine: Fake, scheme: str) -> None:
    client = TestClient(make_app(engine, key=KEY), headers={"authorization": f"{scheme} {KEY}"})
    assert client.post("/v1/classify", json={"texts": ["a"]}).status_code == 200
    assert client.get("/metrics").status_code == 200


def test_a_local_server_answers_to_local_names_alone(engine: Fake) -> None:
    client = TestClient(make_app(engine))
    for host in ("localhost", "127.0.0.1:8000", "[::1]", "[::1]:8000", "LOCALHOST:1"):
        assert client.get("/health", headers={"host": host}).status_code == 200
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", ""):
        assert client.get("/health", headers={"host": host}).json()["error"]["param"] == "host"


@pytest.mark.parametrize("key", ["", "short", "with spaces in between"])
def test_a_key_that_is_none_is_refused_by_the_app_itself(engine: Fake, key: str) -> None:
    with pytest.raises(RequestError, match="16 or more ASCII characters"):
        make_app(engine, key=key)


def test_a_deadline_counts_from_the_arrival(engine: Fake) -> None:
    """What reading the body took is not given a second time."""

    async def late() -> None:
        desk = asking.Desk(engine, Limits(seconds=1000), counters(engine.waiting), False)
        assert 990 < desk.until() - time.monotonic() <= 1000
        taken = desk.take(["never"], ["texts.0"], "label", False, time.monotonic() - 1)
        with pytest.raises(shapes.Refusal) as refused:
            _ = [one async for one in taken.events()]
        assert refused.value.status == 504

    asyncio.run(late())


@pytest.mark.parametrize(("key", "status"), [(None, 400), (KEY, 200)])
def test_behind_a_proxy_with_a_name_of_its_own_it_needs_a_key(engine: Fake, key: str | None, status: int) -> None:
    app = make_server(engine, key, Limits(), False).config.app
    assert TestClient(app, base_url="http://classify.example.org").get("/ready").status_code == status


@pytest.mark.parametrize("log_texts", [False, True])
def test_logs_hold_no_texts_keys_or_paths_unless_asked(
    engine: Fake, caplog: pytest.LogCaptureFixture, log_texts: bool
) -> None:
    client = TestClient(make_app(engine, SMALL, KEY, log_texts=log_texts), raise_server_exceptions=False)
    headers = {"authorization": f"Bearer {KEY}"}
    with caplog.at_level(logging.DEBUG):
        for texts in (["my\nsecret"], ["my secret", "odd"], ["my secret", "fails"], ["my secret", 7]):
            client.post("/v1/classify", json={"texts": texts}, headers=headers)
        client.post("/v1/chat/completions", json=chat("my secret", user="my secret"), headers=headers)
        client.get("/my%0asecret?my=secret", headers=headers)
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith(("saywhy", "uvicorn")))
    assert "POST /v1/classify 200" in ours and "GET other 404" in ours and KEY not in caplog.text
    assert ("secret" in ours) == log_texts and "my\nsecret" not in ours


def test_an_error_is_logged_without_what_it_says(monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    for name, handlers in (("root", []), ("saywhy", None)):
        logger = logging.getLogger(None if name == "root" else name)
        monkeypatch.setattr(logger, "level", logger.level)
        if handlers is not None:
            monkeypatch.setattr(logger, "handlers", handlers)
    write_log()

    def fail() -> None:
        raise ValueError("my " + "secret")

    thread = threading.Thread(target=fail, name="saywhy-engine")
    thread.start()
    thread.join()
    try:
        fail()
    except ValueError:
        logging.getLogger("uvicorn.error").exception("failed")
    told = said()
    assert "saywhy-engine ended: ValueError" in told and told.count("in fail") == 2 and "my secret" not in told


def test_who_may_ask_decides_whether_a_key_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_key("127.0.0.1", None) is None and read_key("localhost", None) is None
    with pytest.raises(RequestError, match="lets other machines ask, so a key is needed"):
        read_key("0.0.0.0", None)
    monkeypatch.setenv("A_KEY", KEY)
    assert read_key("0.0.0.0", "A_KEY") == read_key("127.0.0.1", "A_KEY") == KEY
    for short in ("", "short", "with a space in between it", "é" * 20, "line\n" * 5):
        monkeypatch.setenv("A_KEY", short)
        with pytest.raises(RequestError, match="A_KEY") as refused:
            read_key("127.0.0.1", "A_KEY")
        assert not short or short not in str(refused.value)


def test_nobody_is_let_in_before_the_model_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that finds a port but nobody behind it waits, and takes a slow load for a hang."""
    engine, seen = Fake(), list[str]()

    def load() -> Fake:
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            pass
        return engine

    class Server:
        def run(self, sockets: list[socket.socket]) -> None:
            with socket.create_connection(sockets[0].getsockname()):
                seen.append("let in")

    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(running, "make_server", lambda *_: Server())
    monkeypatch.setattr(running, "write_log", lambda: None)
    running.serve(load, "127.0.0.1", port, None, Limits(), False, seen.append)
    assert seen[-1] == "let in"


@pytest.mark.skipif(sys.platform == "win32", reason="there a port has one owner from the start")
def test_a_port_that_is_taken_while_the_model_loads_is_told() -> None:
    engine = Fake()
    with bind("127.0.0.1", 0) as other:

        def load() -> Fake:
            other.listen()
            return engine

        with pytest.raises(RequestError, match="cannot be bound"):
            running.serve(load, "127.0.0.1", other.getsockname()[1], None, Limits(), False, print)
    assert engine.closed


def test_a_port_that_is_taken_is_told() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(RequestError, match=r"cannot be bound .*name another --port"):
            bind("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "a key is needed"),
        (["--api-key-env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE"),
        (["--max-queue", "5"], "--max-queue 5"),
        (["--port", "0"], "there is no such folder"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "nowhere", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_the_extra_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "saywhy.serve.run")
    monkeypatch.delattr("saywhy.serve.run")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert cli.main(["serve", "nowhere"]) == 2
    assert "serving needs uvicorn; install it with: pip install 'saywhy[serve]'" in capsys.readouterr().err


# The description


@pytest.fixture
def described(client: TestClient) -> Iterator[Any]:
    yield client.get("/openapi.json").json()


def test_the_description_has_the_limits_and_the_errors(described: Any, engine: Fake) -> None:
    shape = described["components"]["schemas"]["ClassifyRequest"]["properties"]
    assert shape["texts"]["maxItems"] == 3 and shape["texts"]["items"]["maxLength"] == 50
    assert shape["mode"]["anyOf"][0]["enum"] == list(ABOUT.modes)
    operation = described["paths"]["/v1/classify"]["post"]
    assert set(operation["responses"]) == {
        "200", "400", "401", "404", "408", "413", "415", "422", "429", "500", "503", "504"
    }  # fmt: skip
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert "security" not in operation and "HTTPValidationError" not in described["components"]["schemas"]
    locked = TestClient(make_app(engine, key=KEY)).get("/openapi.json").json()
    assert locked["paths"]["/v1/models"]["get"]["security"] == [{"key": []}]
    assert "security" not in locked["paths"]["/health"]["get"]
