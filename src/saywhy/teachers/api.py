"""A server that speaks OpenAI's protocol writes: OpenAI's own, vLLM, SGLang, Ollama, llama.cpp and many others."""

from __future__ import annotations

import asyncio
import hashlib
import os
import queue
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from saywhy.config import Api, Sampling
from saywhy.progress import say
from saywhy.records import RequestError, WorkError
from saywhy.teachers.replies import Address, Reply, again, read_completion, read_refusal, redacted, refused_parameter
from saywhy.teachers.shape import Draft, Question, Teacher, paragraph

if TYPE_CHECKING:
    import openai

OPENAI_URL = "https://api.openai.com/v1"
# What is sent where a server wants no key: the client will not work without any.
NO_KEY = "none"
FAILURES_IN_A_ROW = 20
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0

Sleep = Callable[[float], Awaitable[None]]
# What comes from the thread that asks: a draft with its place, a question that is done with, the end.
News = tuple[int, Draft] | Literal["done", "over"]


@dataclass
class _Manner:
    """What a teacher has learnt about its server: it outlives a call, since rows come in portions.

    `names` leads from our parameters to the server's, without those that it will not have. `failing` counts the
    questions in a row to which nothing came back, `answers` says that there was an answer.
    """

    names: dict[str, str]
    failing: int = 0
    answers: bool = False
    warned: bool = False
    dice: random.Random = field(default_factory=random.Random)


@dataclass(frozen=True)
class _Call:
    """One call of a teacher: its settings, where its news go, and what ends it early."""

    address: Address
    sampling: Sampling
    seed: int
    instruction: str
    sleep: Sleep
    manner: _Manner
    news: queue.SimpleQueue[News]
    end: asyncio.Future[RequestError | WorkError]


def open_api(
    api: Api,
    sampling: Sampling,
    seed: int,
    instruction: str,
    place: str = "reasonings.api",
    sleep: Sleep = asyncio.sleep,
) -> Teacher:
    """Let a server write: `instruction` is the system message, a question's joined pieces the user's.

    At most `api.concurrency` requests are under way, and no more than as many answers wait to be taken. A server that
    is busy, failing or silent is asked again after a growing pause, or when it says; what it refuses for good ends the
    work once the answers under way have been given. A consumer that stops ends it at once. `place` is where the
    settings stand, for messages; `sleep` waits for seconds.

    Raises RequestError: the client is not installed, there is no model or no key, or the server refuses what it is
    asked. WorkError: nothing comes from the server, or it wants to be paid.
    """
    address = address_of(api, place)
    names = ("seed", "top_p", "temperature", "max_tokens")
    manner = _Manner({name: name for name in names})

    def write(questions: Sequence[Question]) -> Iterator[tuple[int, Draft]]:
        loop = asyncio.new_event_loop()
        news: queue.SimpleQueue[News] = queue.SimpleQueue()
        call = _Call(address, sampling, seed, instruction, sleep, manner, news, loop.create_future())
        slots = asyncio.Semaphore(api.concurrency)
        asking = loop.create_task(_ask_all(call, questions, slots))
        asking.add_done_callback(lambda _: news.put("over"))
        # A thread of its own: requests go on while the consumer writes, and notebooks have a loop running already.
        thread = threading.Thread(target=_turn, args=(loop, asking), name="saywhy-api", daemon=True)
        thread.start()
        try:
            while (item := news.get()) != "over":
                if item == "done":
                    loop.call_soon_threadsafe(slots.release)
                else:
                    yield item
        finally:
            loop.call_soon_threadsafe(asking.cancel)
            thread.join()
            loop.close()
        asking.result()

    return write


def question_seed(seed: int, question: Question) -> int:
    """Give the seed sent with a question, 0 to 2**31 - 1: it depends on seed, row and candidate alone."""
    key = "\x1f".join(map(str, (seed, question.row_id, question.index)))
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:4], "little") >> 1


def base_url(api: Api) -> str | None:
    """Give a server's address, None for OpenAI's own: where the config is silent the client reads a variable.

    One address has one form, since answers are kept under it.
    """
    given = (api.base_url or os.environ.get("OPENAI_BASE_URL", "")).strip().rstrip("/")
    return None if given in ("", OPENAI_URL) else given


def address_of(api: Api, place: str) -> Address:
    """Find server, model and key.

    Raises RequestError: the client is not installed, there is no model or no key, or no address.
    """
    try:
        import openai  # noqa: F401
    except ImportError:
        raise RequestError("a teacher behind an API needs OpenAI's client: pip install 'saywhy[api]'") from None
    if api.model is None:
        raise RequestError(f"{place}.model is not set: name the model as the server calls it")
    own = base_url(api)
    try:
        parts = urlsplit(own or OPENAI_URL)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        url = f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path.rstrip('/')}"
    except ValueError:
        raise RequestError(f"{place}.base_url is no address: it should be like http://localhost:8000/v1") from None
    if parts.scheme not in ("http", "https") or not host:
        raise RequestError(f"{place}.base_url is no address: it should be like http://localhost:8000/v1")
    key = os.environ.get(api.key_env, "").strip()
    if not key and not own:
        raise RequestError(
            f"the environment variable {api.key_env} holds no key for {url}: put it there, or name another variable in "
            f"{place}.key_env; for a server of your own set {place}.base_url"
        )
    if not (key.isascii() and key.isprintable()):
        raise RequestError(f"the environment variable {api.key_env} holds characters that no key has")
    return Address(url, place, api, own or OPENAI_URL, key)


def _turn(loop: asyncio.AbstractEventLoop, asking: asyncio.Task[None]) -> None:
    """Keep a loop going until nothing is under way."""
    loop.run_until_complete(asyncio.wait({asking}))
    if not asking.cancelled():
        asking.exception()  # looked at, so that nobody is told of an error that the consumer did not wait for
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())


async def _ask_all(call: _Call, questions: Sequence[Question], slots: asyncio.Semaphore) -> None:
    """Ask every question, each once there is a slot for it; the consumer gives a slot back when it took the answer."""
    import openai

    api = call.address.api
    async with (
        openai.AsyncOpenAI(
            api_key=call.address.key or NO_KEY, base_url=call.address.base_url, timeout=api.timeout, max_retries=0
        ) as client,
        asyncio.TaskGroup() as group,
    ):
        for at, question in enumerate(questions):
            await slots.acquire()
            if call.end.done():
                break
            group.create_task(_ask(call, client, at, question))
    if call.end.done():
        raise call.end.result()


async def _ask(call: _Call, client: openai.AsyncOpenAI, at: int, question: Question) -> None:
    """Ask one question until there is an answer, or no more attempts."""
    tries = call.address.api.tries
    for tried in range(1, tries + 1):
        began = time.monotonic()
        reply = await _attempt(call, client, question)
        final, doubtful = reply.fate in ("row", "nothing"), reply.fate == "nothing"
        draft = replace(reply.draft, seconds=time.monotonic() - began, final=final, doubtful=doubtful)
        call.news.put((at, draft))
        if reply.error is not None and not call.end.done():
            call.end.set_result(reply.error)
        if reply.fate != "again" or tried == tries or call.end.done():
            _count(call, reply)
            break
        pause = _pause(call.manner.dice, tried, reply.wait)
        if not call.manner.warned:
            call.manner.warned = True
            say(f"{call.address.url}: {draft.failed}; again in {pause:.1f} s, {tries} attempts at each question")
        await _rest(call, pause)
        if call.end.done():
            break
    call.news.put("done")


def _count(call: _Call, reply: Reply) -> None:
    """Count questions in a row to which nothing came back, and end the work when they are too many."""
    call.manner.answers = call.manner.answers or reply.fate == "answer"
    call.manner.failing = call.manner.failing + 1 if reply.fate == "again" else 0
    if call.manner.failing >= FAILURES_IN_A_ROW and not call.end.done():
        call.end.set_result(
            WorkError(
                f"{call.address.url} gave no answer to {call.manner.failing} questions in a row, the last time because "
                f"of this: {reply.draft.failed}. Answers so far are kept: run again once it works"
            )
        )


async def _attempt(call: _Call, client: openai.AsyncOpenAI, question: Question) -> Reply:
    """Send one question, without the parameters that the server turns out to refuse."""
    import openai

    api, names = call.address.api, call.manner.names
    while True:
        sent = dict(names)
        try:
            async with asyncio.timeout(api.timeout):
                content = await _send(call, client, question, sent)
        except (TimeoutError, openai.APITimeoutError):
            return again(f"no answer within {api.timeout:g} s")
        except openai.APIStatusError as error:
            content, headers = error.response.content, error.response.headers
            refused = refused_parameter(error.status_code, content, sent.values())
            if refused is None or not _leave_out(call, refused):
                now, answers = datetime.now(UTC), call.manner.answers
                return read_refusal(error.status_code, headers, content, call.address, now, answers)
        except openai.APIConnectionError as error:
            why = redacted(paragraph(f"{type(error.__cause__).__name__}: {error.__cause__}"), call.address.key)
            return again(f"the connection failed ({why})")
        else:
            return read_completion(content, call.sampling.max_tokens, api.price, call.address.key)


async def _send(call: _Call, client: openai.AsyncOpenAI, question: Question, names: dict[str, str]) -> bytes:
    """Send one request and give the body of the answer; `names` are the parameters that go with it."""
    from openai import omit

    sampling = call.sampling
    sent = names.values()
    answer = await client.chat.completions.with_raw_response.create(
        model=call.address.api.model or "",
        messages=[
            {"role": "system", "content": _sendable(call.instruction)},
            {"role": "user", "content": _sendable("".join(question.pieces))},
        ],
        seed=question_seed(call.seed, question) if "seed" in sent else omit,
        top_p=sampling.top_p if "top_p" in sent else omit,
        temperature=sampling.temperature if "temperature" in sent else omit,
        max_tokens=sampling.max_tokens if "max_tokens" in sent else omit,
        max_completion_tokens=sampling.max_tokens if "max_completion_tokens" in sent else omit,
    )
    return answer.content


def _leave_out(call: _Call, refused: str) -> bool:
    """Send a parameter under its other name, or no more, and say so once; False where neither would help.

    The limit has two names and is never left out: without it an answer could cost anything.
    """
    names = call.manner.names
    if refused == "max_completion_tokens":
        return False
    if names.get(refused) != refused:
        return True  # another request has found out while this one was under way
    if refused == "max_tokens":
        names[refused] = "max_completion_tokens"
        say(f"{call.address.url} refuses max_tokens: max_completion_tokens is sent instead")
    else:
        names.pop(refused, None)  # the threads of a worker share them
        say(f"{call.address.url} refuses {refused}: it is sent no more, the server's own choice holds")
    return True


def _pause(dice: random.Random, tried: int, asked: float | None) -> float:
    """Give the seconds to wait after an attempt: what the server asks for, else twice as long each time.

    Both are spread, so that requests refused together do not come back together.
    """
    if asked is not None:
        return asked + dice.random()
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(tried - 1, 16))
    return float(longest * (1 + dice.random()) / 2)


async def _rest(call: _Call, seconds: float) -> None:
    """Wait, but no longer than the work goes on."""
    pause = asyncio.ensure_future(call.sleep(seconds))
    try:
        either: set[asyncio.Future[Any]] = {pause, call.end}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        pause.cancel()


def _sendable(text: str) -> str:
    """Replace halves of surrogate pairs, which JSON files may bring and no request can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
