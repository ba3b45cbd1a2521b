"""Killed at any moment, stage 2 goes on: a local teacher writes the same bytes, a remote one is not paid twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from random import Random

import pytest

import tiny
from saywhy import journal, reasonings
from saywhy.checks import Limits, by_name
from saywhy.config import Reasonings, Sampling
from saywhy.lm import bind
from saywhy.lm.encode import make_encoder, render
from saywhy.reasonings import Job, Measured, begun_once, writing
from saywhy.records import Figures, Row, Task
from saywhy.teachers import Draft, Question, Teacher, Writer, local

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")

TASK = Task("t", "Which one?", ("alone", "morning"))
WORDS = ("so", "alone", "tonight", "a", "lovely", "morning", "birds", "are", "singing", "nobody", "calls")
ROWS = [Row(f"r{n}", " ".join(Random(n).choices(WORDS, k=3 + n % 9)), TASK.labels[n % 2]) for n in range(90)]
KILLS = 20


@cache
def model() -> Teacher:
    tokenizer = tiny.byte_level(tiny.TURNS, tiny.CHATML, end="<|im_end|>")
    lm = bind(tiny.model("llama"), make_encoder(tokenizer, render(tokenizer, "Explain.")))
    return local(lm, Sampling(temperature=1.0, max_tokens=10), 0, 10**5)


def remote(server: Path, name: str) -> Writer:
    """A server that never says the same twice, takes its time, and notes in a file of its own what it is asked."""

    def write(questions: Sequence[Question]) -> Iterator[tuple[int, Draft]]:
        for at, question in enumerate(questions):
            with server.open("a", encoding="utf-8") as notes:
                notes.write(f"{name} {question.row_id} {question.index}\n")
            time.sleep(0.002)
            yield at, Draft(f"{name} {question.row_id} {question.index} {os.urandom(8).hex()}", cost=1.0)

    return Writer(name, {"model": name}, lambda: write, remote=True)


def by_length() -> Measured:
    """What stands for models that measure: its figures go into the journal as theirs do."""

    def measure(pairs: Sequence[tuple[Row, str]]) -> list[Figures]:
        return [Figures(support=float(len(text)), likelihood=-float(len(row.text))) for row, text in pairs]

    return Measured("lengths", lambda: measure)


def write(folder: Path, writers: Sequence[Writer], merger: Writer | None = None) -> None:
    writing.ROWS_PER_PART = 24
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    checks = by_name(("empty", "too_short", "cut_off"), Limits(256, 2, 10**6, 0.0))
    several = [begun_once(writer) for writer in writers]
    job = Job(TASK, ROWS, several, checks, Reasonings(candidates=2, max_tries=2), merger and begun_once(merger))
    with journal.opened(folder / journal.FILE) as book:
        reasonings.write(folder / "parts", job, book, by_length)


def killed(
    folder: Path, writers: Sequence[Writer], moments: Sequence[float], merger: Writer | None = None
) -> Iterator[int]:
    """Begin stage 2 in a process of its own, again and again, kill it after so many seconds, and count its answers."""
    for seconds in moments:
        child = multiprocessing.get_context("fork").Process(target=write, args=(folder, writers, merger))
        child.start()
        child.join(seconds)
        if child.is_alive():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        if (folder / journal.FILE).exists():
            with journal.opened(folder / journal.FILE) as book:
                yield sum(int(one["answers"] or 0) for one in journal.spent(book).values())


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "parts").glob("part-*"))}


def moments_within(seconds: float, seed: int) -> list[float]:
    rng = Random(seed)
    return [rng.uniform(0, seconds) for _ in range(KILLS)]


@pytest.fixture(autouse=True)
def _a_few_rows_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "ROWS_PER_PART", 24)


def test_killed_at_twenty_moments_the_parts_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    teacher = Writer("reasoner", {"model": "tiny"}, model, at_once=8)
    model()
    began = time.monotonic()
    write(tmp_path / "never", [teacher])
    took = time.monotonic() - began
    # Each attempt goes a little further, so each is killed within what a whole run would take for a few groups.
    counts = list(killed(tmp_path / "killed", [teacher], moments_within(took / 6, 0)))
    write(tmp_path / "killed", [teacher])
    with journal.opened(tmp_path / "killed" / journal.FILE) as book:
        (spent,) = journal.spent(book).values()
    assert any(0 < count < int(spent["answers"] or 0) for count in counts), "no kill fell into the writing"
    assert parts(tmp_path / "killed") == parts(tmp_path / "never")
    assert len(parts(tmp_path / "never")) == 4


@pytest.mark.parametrize("merges", [False, True])
def test_killed_at_twenty_moments_no_answer_of_a_server_is_asked_for_twice(tmp_path: Path, merges: bool) -> None:
    server, folder = tmp_path / "server", tmp_path / "run"
    server.touch()
    writers = [remote(server, name) for name in (("one", "two") if merges else ("one",))]
    merger = remote(server, "merger") if merges else None
    held: dict[bytes, str] = {}
    heard = 0
    for count in killed(folder, writers, moments_within(0.3 if merges else 0.12, 1), merger):
        asked = server.read_text(encoding="utf-8").splitlines()
        answered = {" ".join(text.split()[:3]) for text in held.values()}
        assert not answered & set(asked[heard:]), "the server was asked for what the journal held"
        heard = len(asked)
        known = in_journal(folder)
        assert held.items() <= known.items(), "an answer was lost or replaced"
        assert len(known) == count
        held = known
    assert held, "every kill came before the first answer"
    write(folder, writers, merger)
    known = in_journal(folder)
    assert held.items() <= known.items()
    each = 2 * len(ROWS)
    with journal.opened(folder / journal.FILE) as book:
        for spent in journal.spent(book).values():
            assert spent["attempts"] == spent["answers"] == spent["cost"] == each
    # Nothing is asked twice but what was under way when a kill came.
    asked = server.read_text(encoding="utf-8").splitlines()
    assert len(set(asked)) == len(known) == each * (3 if merges else 1)
    assert len(asked) <= len(known) + KILLS
    said = {text for some in reasonings.read_kept(folder / "parts").values() for text in some}
    assert said <= set(known.values()) and len(said) == len(ROWS)
    assert {text.split()[0] for text in said} == {"merger" if merges else "one"}


def in_journal(folder: Path) -> dict[bytes, str]:
    with journal.opened(folder / journal.FILE) as book:
        return dict(book.execute("SELECT key, reasoning FROM attempts WHERE failed = ''").fetchall())
