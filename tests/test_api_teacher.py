"""The teacher behind an API: against a server with every fault, and against a real one."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from faulty import Act, Faulty, completion, error, serving
from saywhy.config import Api, Price, Sampling
from saywhy.records import RequestError, WorkError
from saywhy.teachers import Draft, Question, Teacher
from saywhy.teachers.api import FAILURES_IN_A_ROW, open_api, question_seed

pytest.importorskip("openai")

KEY = "sk-proj-Zq3vX81mLw0RtYbN5cKd"
SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_tokens=20)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().endswith("_PROXY") or name.startswith("OPENAI_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


class Naps:
    """Sleep without waiting, and remember for how long it would have been."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


def teacher(server: Faulty, naps: Naps | None = None, seed: int = 0, **settings: Any) -> Teacher:
    api = Api(**{"base_url": server.url, "model": "m", "concurrency": 4, "timeout": 10.0, **settings})
    return open_api(api, SAMPLING, seed, "Explain.", sleep=naps or Naps())


def questions(count: int) -> list[Question]:
    return [Question(f"r{at}", ("Text ", str(at), ""), 0) for at in range(count)]


def answers(given: list[tuple[int, Draft]]) -> dict[int, str]:
    return {at: draft.reasoning for at, draft in given if not draft.failed}


def taken(write: Teacher, asked: list[Question]) -> tuple[list[tuple[int, Draft]], Exception | None]:
    """What came before the end, and what the end was."""
    given = []
    try:
        for item in write(asked):
            given.append(item)
    except (RequestError, WorkError) as end:
        return given, end
    return given, None


def wait_for(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not there() and time.monotonic() < end:
        time.sleep(0.01)


def text_of(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def test_every_question_is_asked_once_and_answered() -> None:
    asked = questions(30)
    price = Price(input=2.0, output=10.0)
    with serving(lambda body, before: Act(completion(f" {text_of(body)}:\n so  it is "))) as server:
        given = list(teacher(server, price=price, seed=5)(asked))
    assert answers(given) == {at: f"Text {at}: so it is" for at in range(30)}
    assert set(server.asked.values()) == {1}
    assert len(given) == 30
    draft = given[0][1]
    assert (draft.prompt_tokens, draft.tokens, draft.cut) == (7, 3, False)
    assert draft.cost == pytest.approx(7 * 2e-6 + 3 * 10e-6)
    assert draft.seconds > 0
    for body in server.bodies:
        at = int(text_of(body).removeprefix("Text "))
        assert body == {
            "model": "m",
            "messages": [{"role": "system", "content": "Explain."}, {"role": "user", "content": f"Text {at}"}],
            "temperature": 0.7,
            "top_p": 0.9,
            "max_tokens": 20,
            "seed": question_seed(5, asked[at]),
        }
    assert set(server.keys) == {f"Bearer {KEY}"}


def test_a_seed_depends_on_seed_row_and_candidate_alone() -> None:
    seeds = [question_seed(s, Question(row, ("x",), n)) for s in (0, 1) for row in ("a", "b", "\ud83d") for n in (0, 1)]
    assert len(set(seeds)) == 12
    assert all(0 <= one < 2**31 for one in seeds)
    assert question_seed(0, Question("a", ("other",), 1)) == seeds[1]
    assert seeds[0] == 1965236687, "another hash would draw other texts for old runs"


def test_a_text_that_no_request_can_hold_is_mended() -> None:
    with serving(lambda body, before: Act(completion(text_of(body)))) as server:
        given = list(teacher(server)([Question("r", ("half \ud83d and whole ", "\U0001f600", ""), 0)]))
    assert answers(given) == {0: "half � and whole \U0001f600"}


LATER = "a date 300 s from when the test runs"
GARBAGE = bytes(range(256))
FAULTS: dict[str, tuple[Act, str]] = {
    "429": (Act(error("slow down"), 429), "429"),
    "429 and seconds": (Act(error("slow down"), 429, {"Retry-After": "17"}), "slow down"),
    "429 and a date": (Act(error("slow down"), 429, {"Retry-After": LATER}), "429"),
    "500": (Act(b"", 500), "500"),
    "502 in HTML": (Act(b"<html><h1>Bad Gateway</h1></html>", 502, {"Content-Type": "text/html"}), "Bad Gateway"),
    "529": (Act(error("overloaded"), 529), "overloaded"),
    "408": (Act(error("too slow"), 408), "408"),
    "hangs up at once": (Act(hang_up=0), "connection"),
    "hangs up midway": (Act(completion(), hang_up=40), "connection"),
    "half an answer": (Act(completion()[:80]), "half"),
    "bytes": (Act(GARBAGE), "JSON"),
    "bytes for HTTP": (Act(raw=GARBAGE), "connection"),
    "gzip that is none": (Act(GARBAGE, headers={"Content-Encoding": "gzip"}), "connection"),
    "nothing": (Act(b""), "JSON"),
    "deep": (Act(b"[" * 100_000), "JSON"),
    "a list": (Act(b"[1, 2]"), "no message"),
    "an error as a success": (Act(error("upstream died")), "upstream died"),
    "no choices": (Act(b'{"choices": []}'), "no message"),
    "no message": (Act(b'{"choices": [{"message": null}]}'), "no message"),
    "an odd end": (Act(completion("half of", "abort")), "abort"),
    "too slow": (Act(completion(), delay=4.0), "no answer within 1.5 s"),
    "never quite silent": (Act(completion(), trickle=0.1), "no answer within 1.5 s"),
}


@pytest.mark.parametrize(("act", "why"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_told_and_asked_again(act: Act, why: str) -> None:
    naps = Naps()
    asked = act.headers.get("Retry-After")
    if asked == LATER:
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=300), usegmt=True)
        act = replace(act, headers={"Retry-After": date})
    with serving(lambda body, before: act if before == 0 else Act(completion())) as server:
        given = list(teacher(server, naps, timeout=1.5 if act.delay or act.trickle else 10.0)(questions(4)))
    assert answers(given) == dict.fromkeys(range(4), "because")
    failed = [draft for _, draft in given if draft.failed]
    assert len(failed) == 4
    assert all(why in draft.failed and not draft.reasoning for draft in failed)
    assert set(server.asked.values()) == {2}
    assert len(naps.seconds) == 4
    if asked == "17":
        assert all(17 <= one <= 18 for one in naps.seconds)
    elif asked:
        assert all(250 < one <= 301 for one in naps.seconds)
    else:
        assert all(0.5 <= one <= 1 for one in naps.seconds)


def test_pauses_grow_and_attempts_end(said: Callable[[], str]) -> None:
    naps = Naps()
    with serving(lambda body, before: Act(error("broken"), 500)) as server:
        given = list(teacher(server, naps, tries=5, concurrency=1)(questions(2)))
    assert [at for at, _ in given] == [0] * 5 + [1] * 5
    assert all(draft.failed == "status 500: broken" for _, draft in given)
    assert set(server.asked.values()) == {5}
    for at, seconds in enumerate(naps.seconds):
        longest = 2.0 ** (at % 4)
        assert longest / 2 <= seconds <= longest
    assert len(naps.seconds) == 8
    assert said().count("broken") == 1, "one line says that it is tried again, not one an attempt"


@pytest.mark.parametrize("most", [1, 5])
def test_never_more_requests_under_way_than_allowed(most: int) -> None:
    full = threading.Barrier(most)

    def script(body: dict[str, Any], before: int) -> Act:
        at = int(text_of(body).split()[-1])
        if before == 0 and at < most:
            full.wait(10)  # so that the bound is reached
        if before == 0 and at % 3 == 0:
            return Act(error("slow down"), 429, delay=0.005)
        return Act(completion(), delay=0.005 * (at % 4))

    with serving(script) as server:
        given = list(teacher(server, concurrency=most)(questions(60)))
    assert len(answers(given)) == 60
    assert server.most == most
    assert sum(server.asked.values()) == 80


def test_an_answer_is_given_as_soon_as_it_is_there() -> None:
    free = threading.Event()
    with serving(lambda body, before: Act(completion(), until=free if text_of(body) == "Text 0" else None)) as server:
        write = teacher(server)(questions(12))
        first = [next(write)[0] for _ in range(11)]
        assert sorted(first) == list(range(1, 12))
        free.set()
        assert [at for at, _ in write] == [0]


def test_no_more_answers_wait_than_requests_may_be_under_way() -> None:
    with serving(lambda body, before: Act(completion())) as server:
        write = iter(teacher(server, concurrency=3)(questions(40)))
        next(write)
        wait_for(lambda: sum(server.asked.values()) >= 3)
        time.sleep(0.2)
        assert sum(server.asked.values()) == 3
        assert len(list(write)) == 39


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "saywhy-api"]


def test_a_consumer_that_stops_ends_it_at_once() -> None:
    never = threading.Event()
    with serving(lambda body, before: Act(completion(), until=None if text_of(body) == "Text 0" else never)) as server:
        write = teacher(server, timeout=60.0)(questions(40))
        assert next(write)[0] == 0
        began = time.monotonic()
        write.close()  # type: ignore[attr-defined]
        assert time.monotonic() - began < 5
        assert not threads()
        # What was on its way may still arrive, and nothing after it.
        time.sleep(0.2)
        assert sum(server.asked.values()) <= 4
        never.set()


def test_a_consumer_that_stops_does_not_wait_for_a_pause() -> None:
    async def forever(seconds: float) -> None:
        await asyncio.sleep(3600)

    api_faults = Act(error("slow down"), 429)
    with serving(lambda body, before: api_faults) as server:
        api = Api(base_url=server.url, model="m", concurrency=2)
        write = open_api(api, SAMPLING, 0, "Explain.", sleep=forever)(questions(8))
        next(write)
        began = time.monotonic()
        write.close()  # type: ignore[attr-defined]
        assert time.monotonic() - began < 5
    assert not threads()


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to a thread")
def test_an_interrupt_while_waiting_ends_it_at_once() -> None:
    # A test run that was started in the background inherits that SIGINT is ignored.
    before_it = signal.signal(signal.SIGINT, signal.default_int_handler)
    never = threading.Event()
    with serving(lambda body, before: Act(completion(), until=never)) as server:
        main = threading.main_thread().ident
        assert main is not None

        def interrupt() -> None:
            wait_for(lambda: sum(server.asked.values()) >= 4)
            signal.pthread_kill(main, signal.SIGINT)

        interrupter = threading.Thread(target=interrupt)
        with pytest.raises(KeyboardInterrupt):
            interrupter.start()
            list(teacher(server, timeout=60.0)(questions(8)))
        interrupter.join()
        assert not threads()
        assert sum(server.asked.values()) == 4
        never.set()
    signal.signal(signal.SIGINT, before_it)


def test_a_refused_key_ends_it_after_what_was_answered_and_is_shown_nowhere(
    said: Callable[[], str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", KEY)
    busy = Act(error(f"Bearer {KEY} is over its limit"), 429)
    wrong = Act(error(f"Incorrect API key provided: {KEY[:8]}*****{KEY[-4:]}. All of it: {KEY}"), 401)

    def script(body: dict[str, Any], before: int) -> Act:
        if text_of(body) == "Text 2":
            return wrong
        return busy if before == 0 else Act(completion())

    with serving(script) as server:
        given, end = taken(teacher(server, key_env="MY_KEY", concurrency=1), questions(9))
    assert answers(given) == {0: "because", 1: "because"}
    assert isinstance(end, RequestError)
    assert "MY_KEY" in str(end)
    assert "refused the key (401)" in str(end)
    assert given[-1][0] == 2
    assert sum(server.asked.values()) == 5
    everything = f"{given!r} {end} {said()} {caplog.text} {[record.args for record in caplog.records]}"
    assert caplog.records
    for part in (KEY[at : at + 8] for at in range(len(KEY) - 7)):
        assert part not in everything
    assert f"*{KEY[-4:]}" not in everything
    assert end.__cause__ is None
    assert end.__context__ is None


def test_answers_under_way_are_given_before_the_end() -> None:
    free = threading.Event()

    def script(body: dict[str, Any], before: int) -> Act:
        return Act(error("no"), 403) if text_of(body) == "Text 1" else Act(completion(), until=free)

    given = []
    with serving(script) as server, pytest.raises(RequestError, match="forbids"):
        for at, draft in teacher(server, concurrency=3)(questions(50)):
            given.append((at, draft))
            free.set()
    assert given[0][0] == 1
    assert answers(given) == {0: "because", 2: "because"}
    assert sum(server.asked.values()) == 3, "no request starts once the end is known"


def test_the_end_wakes_those_who_pause() -> None:
    pausing = threading.Event()

    async def forever(seconds: float) -> None:
        pausing.set()
        await asyncio.sleep(3600)

    def script(body: dict[str, Any], before: int) -> Act:
        if text_of(body) == "Text 0":
            return Act(error("slow down"), 429)
        return Act(error("no"), 403, until=pausing)

    with serving(script) as server:
        api = Api(base_url=server.url, model="m", concurrency=2)
        given, end = taken(open_api(api, SAMPLING, 0, "Explain.", sleep=forever), questions(9))
    assert isinstance(end, RequestError)
    assert sorted(at for at, _ in given) == [0, 1]


ENDS: dict[str, tuple[Act, type[Exception], str]] = {
    "403": (Act(error("your country is not served"), 403), RequestError, "OPENAI_API_KEY"),
    "404": (Act(error("model 'm' not found"), 404), RequestError, "reasonings.api.model (m)"),
    "no money": (Act(error("Insufficient Balance"), 402), WorkError, "Insufficient Balance"),
    "quota": (Act(error("You exceeded your quota", code="insufficient_quota"), 429), WorkError, "quota"),
    "come back tomorrow": (Act(error("daily limit"), 429, {"Retry-After": "86400"}), WorkError, "86,400 s"),
}


@pytest.mark.parametrize(("act", "kind", "why"), ENDS.values(), ids=ENDS)
def test_what_another_attempt_would_not_mend_ends_it(act: Act, kind: type[Exception], why: str) -> None:
    with serving(lambda body, before: act) as server:
        given, end = taken(teacher(server, concurrency=1), questions(5))
    assert type(end) is kind
    assert why in str(end)
    assert server.url in str(end)
    assert len(given) == 1
    assert len(server.bodies) == 1


REFUSALS: dict[str, tuple[Act, str]] = {
    "400": (Act(error("messages: bad shape"), 400), "bad shape"),
    "422": (Act(json.dumps({"detail": [{"msg": "no such field"}]}).encode(), 422), "no such field"),
    "temperature out of range": (Act(error("temperature must be at most 0.5"), 400), "at most 0.5"),
}


@pytest.mark.parametrize(("act", "why"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_may_be_about_the_question_or_about_all(act: Act, why: str) -> None:
    """Whoever keeps the answers knows whether there ever was one (`reasonings.asking`)."""
    with serving(lambda body, before: act) as server:
        given, end = taken(teacher(server), questions(40))
        assert set(server.asked.values()) == {1}
    assert (end, len(given)) == (None, 40)
    for _, draft in given:
        assert draft.final and draft.doubtful and why in draft.failed and server.url in draft.failed


def test_a_row_that_does_not_fit_is_only_its_own_fault() -> None:
    long = Act(error("This model's maximum context length is 64 tokens; max_tokens is 20", param="messages"), 400)
    filtered = Act(error("The prompt triggered a policy", code="content_filter"), 400)

    def script(body: dict[str, Any], before: int) -> Act:
        return {"Text 1": long, "Text 3": filtered, "Text 4": Act(b"", 413)}.get(text_of(body), Act(completion()))

    with serving(script) as server:
        given = list(teacher(server)(questions(6)))
    assert sorted(answers(given)) == [0, 2, 5]
    assert len(given) == 6
    assert set(server.asked.values()) == {1}
    assert all("max_tokens" in body for body in server.bodies)


OWN_FAULTS = {
    "flagged": Act(error("Your prompt was flagged as potentially violating our usage policy"), 400),
    "moderation": Act(error("gpt requires moderation on OpenInference. Your input was flagged"), 403),
    "risk": Act(error("Content Exists Risk"), 400),
    "too long for TGI": Act(error("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096"), 422),
    "too long": Act(error("Please reduce the length of the messages"), 400),
}


@pytest.mark.parametrize("act", OWN_FAULTS.values(), ids=OWN_FAULTS)
def test_what_a_server_has_against_a_text_is_no_end_even_of_the_first_question(act: Act) -> None:
    with serving(lambda body, before: act if text_of(body) == "Text 0" else Act(completion())) as server:
        given, end = taken(teacher(server, concurrency=1), questions(3))
    assert (end, sorted(answers(given))) == (None, [1, 2])
    assert [draft.final for _, draft in given] == [True, False, False]


def test_a_forbidden_account_is_doubtful_though_it_is_called_flagged() -> None:
    with serving(lambda body, before: Act(error("Your account was flagged"), 403)) as server:
        given, end = taken(teacher(server, concurrency=1), questions(3))
    assert (end, [draft.doubtful for _, draft in given]) == (None, [True] * 3)


def test_a_403_behind_answers_is_about_its_question() -> None:
    strange = Act(error("no, and nobody knows why"), 403)
    with serving(lambda body, before: strange if text_of(body) == "Text 1" else Act(completion())) as server:
        given, end = taken(teacher(server, concurrency=1), questions(4))
    assert (end, sorted(answers(given)), set(server.asked.values())) == (None, [0, 2, 3], {1})


@pytest.mark.parametrize("status", [400, 422])
def test_a_refused_seed_is_left_out_for_the_whole_run(status: int, said: Callable[[], str]) -> None:
    def script(body: dict[str, Any], before: int) -> Act:
        return Act(error("Extra inputs are not permitted: seed"), status) if "seed" in body else Act(completion())

    with serving(script) as server:
        write = teacher(server, concurrency=3)
        first = list(write(questions(20)))
        refused = len(server.bodies) - 20
        second = list(write(questions(20)))
    assert len(answers(first)) == len(answers(second)) == len(first) == 20
    assert 1 <= refused <= 3
    assert len(server.bodies) == 40 + refused
    assert said().count("seed") == 1


def test_a_limit_under_another_name_is_never_left_out(said: Callable[[], str]) -> None:
    def script(body: dict[str, Any], before: int) -> Act:
        if "max_tokens" in body:
            message = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
            return Act(error(message, param="max_tokens", code="unsupported_parameter"), 400)
        if "temperature" in body:
            return Act(error("Unsupported value: 'temperature' does not support 0.7", param="temperature"), 400)
        return Act(completion())

    with serving(script) as server:
        given = list(teacher(server, concurrency=1)(questions(3)))
    assert len(answers(given)) == len(given) == 3
    assert len(server.bodies) == 5
    assert server.bodies[-1]["max_completion_tokens"] == 20
    assert "temperature" not in server.bodies[-1]
    assert len(said().splitlines()) == 2
    with serving(lambda body, before: Act(error("max_tokens, max_completion_tokens: both refused"), 400)) as server:
        given, end = taken(teacher(server, concurrency=1), questions(1))
    assert (end, given[0][1].failed.endswith("both refused")) == (None, True)
    assert len(server.bodies) == 2


def test_a_server_that_is_gone_is_not_hammered() -> None:
    with serving(lambda body, before: Act(error("dead"), 503)) as server:
        given, end = taken(teacher(server, tries=2, concurrency=1), questions(100))
    assert isinstance(end, WorkError)
    assert "20 questions in a row" in str(end)
    assert "dead" in str(end)
    assert len(given) == len(server.bodies) == 2 * FAILURES_IN_A_ROW


def test_failures_are_counted_over_calls_and_an_answer_starts_again() -> None:
    def script(body: dict[str, Any], before: int) -> Act:
        return Act(completion()) if text_of(body) == "Text 15" else Act(error("dead"), 503)

    with serving(script) as server:
        write = teacher(server, tries=1, concurrency=1)
        given, end = taken(write, questions(30))
        assert (len(given), end) == (30, None)
        given, end = taken(write, questions(30))
        assert isinstance(end, WorkError)
        assert len(given) == 6


def test_a_port_where_nobody_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        api = Api(base_url=f"http://127.0.0.1:{held.getsockname()[1]}/v1", model="m", tries=2)
        given, end = taken(open_api(api, SAMPLING, 0, "Explain.", sleep=Naps()), questions(30))
    assert isinstance(end, WorkError)
    assert "connection" in str(end)
    assert all(draft.failed for _, draft in given)


def test_filtered_rows_are_no_doubt_about_the_server_and_empty_answers_are() -> None:
    for act, doubtful in ((completion("", "content_filter"), False), (completion("", "length"), True)):
        with serving(lambda body, before, act=act: Act(act)) as server:
            given, end = taken(teacher(server, concurrency=1), questions(25))
        assert (len(given), end) == (25, None)
        assert all(draft.final and draft.doubtful == doubtful for _, draft in given)
    assert "max_tokens" in given[0][1].failed


def test_a_server_of_ones_own_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving(lambda body, before: Act(completion())) as server:
        assert len(answers(list(teacher(server)(questions(2))))) == 2
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert len(answers(list(teacher(server, base_url=None)(questions(2))))) == 2
    assert set(server.keys) == {"Bearer none"}
    with serving(lambda body, before: Act(error("who are you?"), 401)) as server:
        _, end = taken(teacher(server), questions(1))
    assert "asks for a key" in str(end)
    assert "OPENAI_API_KEY" in str(end)


def test_what_cannot_work_is_refused_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(place: str = "reasonings.api", **settings: Any) -> Teacher:
        return open_api(Api(**settings), SAMPLING, 0, "Explain.", place)

    with pytest.raises(RequestError, match=r"reasonings\.named\.big\.api\.model is not set"):
        opened("reasonings.named.big.api")
    for odd in ("localhost:8000/v1", "ftp://x/v1", "http://", "http://[1/v1"):
        with pytest.raises(RequestError, match="base_url is no address"):
            opened(model="m", base_url=odd)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u201cquoted\u201d")
    with pytest.raises(RequestError, match="OPENAI_API_KEY holds characters"):
        opened(model="m")
    monkeypatch.setenv("OPENAI_API_KEY", " ")
    with pytest.raises(RequestError, match=r"OPENAI_API_KEY holds no key for https://api.openai.com/v1"):
        opened(model="m")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(RequestError, match=r"pip install 'saywhy\[api\]'"):
        opened(model="m")


def test_an_address_with_a_password_is_shown_without_it() -> None:
    with serving(lambda body, before: Act(error("no"), 403)) as server:
        secret = server.url.replace("http://", "http://me:s3cret-word@") + "/?token=s3cret-word"
        _, end = taken(teacher(server, base_url=secret), questions(1))
    assert "s3cret" not in str(end)
    assert server.url in str(end)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def transformers_serve(model: Path, log: Path) -> Iterator[str]:
    """Start the server that comes with transformers, with one model on the CPU."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model)]
    where = ["--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as out, subprocess.Popen([*command, *where], stdout=out, stderr=subprocess.STDOUT) as server:
        try:
            for _ in range(240):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                        break
                except (urllib.error.URLError, ConnectionError):
                    assert server.poll() is None, log.read_text(encoding="utf-8", errors="replace")
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


@pytest.mark.slow
def test_a_real_server_writes(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    folder = Path(os.environ.get("SAYWHY_MODELS", "")) / "stories260k"
    if not os.environ.get("SAYWHY_MODELS") or not folder.is_dir():
        pytest.skip("SAYWHY_MODELS names no folder with stories260k")
    model = tmp_path / "stories"
    model.mkdir()
    for file in folder.iterdir():
        shutil.copyfile(file, model / file.name)
    # It is a base model: without a template the server answers every chat with a 500. It ends here with its first full
    # stop, since left to itself it goes on for hundreds of tokens.
    template = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    stop = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]["."]
    (model / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": stop}), "utf-8")
    asked = [Question(f"r{at}", ("Once upon a time, there was a ", word, " who"), 0) for at, word in enumerate("abcd")]
    with transformers_serve(model, tmp_path / "log") as url:
        api = Api(base_url=url, model=str(model), concurrency=2, price=Price(input=1.0, output=1.0))
        for limit in (3, 100):
            given = dict(open_api(api, Sampling(max_tokens=limit), 0, "Tell a story.")(asked))
            assert sorted(given) == list(range(4))
            for draft in given.values():
                assert draft.reasoning
                assert not draft.failed
                assert draft.cut == (limit == 3), "read from finish_reason: length, stop"
                assert draft.tokens == 3 if draft.cut else 3 < draft.tokens < 100
                assert draft.prompt_tokens > 10
                assert draft.cost == pytest.approx((draft.prompt_tokens + draft.tokens) * 1e-6)
        # It says 400 to another model's name.
        refused, end = taken(open_api(Api(base_url=url, model="other"), SAMPLING, 0, "Tell."), asked)
        assert end is None and all(draft.doubtful and "pinned" in draft.failed for _, draft in refused)
