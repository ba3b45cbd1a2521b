"""The journal keeps every attempt and gives back the first answer to a key, whatever else is tried."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saywhy import journal
from saywhy.journal import Attempt
from saywhy.records import RequestError, WorkError

ANSWER = Attempt(b"k", "r1", "reasoner", 0, "because", True, 3, 9, 0.5, 0.01, prompt_cut=True)


def test_an_answer_is_found_by_its_key_with_all_it_has(tmp_path: Path) -> None:
    path = tmp_path / journal.FILE
    with journal.opened(path) as book:
        journal.keep(book, [ANSWER, replace(ANSWER, key=b"other", reasoning="else", cut=False, cost=None)])
    with journal.opened(path) as book:
        found = journal.answers(book, [b"k", b"other", b"unknown"])
    assert found[b"k"] == ANSWER and found[b"k"].cut is True
    assert found[b"other"].reasoning == "else" and found[b"other"].cost is None
    assert set(found) == {b"k", b"other"}


def test_failures_are_kept_and_stand_in_nobodys_way(tmp_path: Path) -> None:
    failed = replace(ANSWER, reasoning="", failed="timeout")
    with journal.opened(tmp_path / "j") as book:
        journal.keep(book, [failed, failed, replace(failed, failed="429")])
        assert journal.answers(book, [b"k"]) == {}
        assert journal.failures(book) == {"timeout": 2, "429": 1}
        journal.keep(book, [ANSWER])
        journal.keep(book, [replace(ANSWER, reasoning="a second answer")])
        assert journal.answers(book, [b"k"])[b"k"].reasoning == "because"
        spent = journal.spent(book)["reasoner"]
    assert (spent["attempts"], spent["answers"], spent["tokens"]) == (4, 1, 12)
    assert spent["cost"] == pytest.approx(0.04)


def test_more_keys_than_one_statement_takes(tmp_path: Path) -> None:
    many = [replace(ANSWER, key=n.to_bytes(4, "big"), reasoning=str(n)) for n in range(3 * journal.AT_ONCE + 7)]
    with journal.opened(tmp_path / "j") as book:
        journal.keep(book, many)
        found = journal.answers(book, [one.key for one in many])
    assert {int.from_bytes(key, "big"): one.reasoning for key, one in found.items()} == {
        n: str(n) for n in range(len(many))
    }


@given(texts=st.lists(st.text(), min_size=1, max_size=8))
def test_any_text_comes_back(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    with journal.opened(tmp_path_factory.mktemp("j") / "j") as book:
        journal.keep(book, [replace(ANSWER, key=bytes([n]), reasoning=text) for n, text in enumerate(texts)])
        found = journal.answers(book, [bytes([n]) for n in range(len(texts))])
    assert [found[bytes([n])].reasoning for n in range(len(texts))] == texts


def test_half_a_character_is_no_reason_to_lose_an_answer(tmp_path: Path) -> None:
    with journal.opened(tmp_path / "j") as book:
        journal.keep(book, [replace(ANSWER, reasoning="half \ud83d")])
        assert journal.answers(book, [b"k"])[b"k"].reasoning == "half \\ud83d"


def test_figures_are_kept_once(tmp_path: Path) -> None:
    with journal.opened(tmp_path / "j") as book:
        journal.keep_figures(book, {b"a": {"support": 0.1 + 0.2, "wins": "joy"}})
        journal.keep_figures(book, {b"a": {"support": 7.0}, b"b": {"support": -1.0}})
        found = journal.figures(book, [b"a", b"b", b"c"])
    assert found == {b"a": {"support": 0.1 + 0.2, "wins": "joy"}, b"b": {"support": -1.0}}


def test_a_set_aside_journal_keeps_its_answers_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / journal.FILE
    for number in (1, 2):
        with journal.opened(path) as book:
            journal.keep(book, [replace(ANSWER, reasoning=f"attempt {number}")])
        journal.set_aside(path)
        assert not path.exists()
    journal.set_aside(path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["answers.kept-1.sqlite", "answers.kept-2.sqlite"]
    with journal.opened(tmp_path / "answers.kept-2.sqlite") as book:
        assert journal.answers(book, [b"k"])[b"k"].reasoning == "attempt 2"


def test_answers_are_taken_over_from_another_run_for_nothing(tmp_path: Path) -> None:
    with journal.opened(tmp_path / "one") as book:
        journal.keep(book, [ANSWER, replace(ANSWER, key=b"l", reasoning="", failed="busy")])
        journal.keep_figures(book, {b"f": {"support": 0.5}})
    (tmp_path / "none").write_bytes(b"no journal at all" * 99)
    sqlite3.connect(tmp_path / "empty").close()
    with journal.opened(tmp_path / "two") as book:
        journal.keep(book, [replace(ANSWER, key=b"own", cost=2.0)])
        for name in ("none", "one", "empty", "one"):
            journal.take_over(book, tmp_path / name)
        found = journal.answers(book, [b"k", b"l", b"own"])
        assert found[b"k"] == replace(ANSWER, seconds=0.0, cost=0.0) and set(found) == {b"k", b"own"}
        assert journal.figures(book, [b"f"]) == {b"f": {"support": 0.5}} and journal.failures(book) == {}
        assert journal.spent(book)["reasoner"]["cost"] == 2.0


def test_a_journal_of_the_version_before_is_read_and_goes_on(tmp_path: Path) -> None:
    for name in ("old", "other"):
        with journal.opened(tmp_path / name) as book:
            journal.keep(book, [replace(ANSWER, key=name.encode())])
            book.execute("ALTER TABLE attempts DROP COLUMN prompt_cut")
            book.execute("PRAGMA user_version = 1")
            book.commit()
    for _ in range(2):
        with journal.opened(tmp_path / "old") as book:
            journal.keep(book, [replace(ANSWER, key=b"new")])
            journal.take_over(book, tmp_path / "other")
            found = journal.answers(book, [b"old", b"new", b"other"])
    cut = {key: one.prompt_cut for key, one in found.items()}
    assert cut == {b"old": False, b"new": True, b"other": False}
    assert {one.reasoning for one in found.values()} == {"because"}


def test_what_is_no_journal_is_refused_and_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "notes"
    other.write_text("these are notes, and many of them\n" * 100)
    with pytest.raises(RequestError, match="notes: is no journal of answers"), journal.opened(other):
        pass
    assert other.read_text().startswith("these are notes")
    newer = tmp_path / "newer"
    with sqlite3.connect(newer) as book:
        book.execute("PRAGMA user_version = 99")
    book.close()
    with pytest.raises(RequestError, match=r"another version \(99\)"), journal.opened(newer):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere" / "j"
    with pytest.raises(WorkError, match=r"nowhere.*what was answered is kept"), journal.opened(missing):
        pass


def test_a_killed_process_loses_nothing_that_was_kept(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from saywhy import journal
from saywhy.journal import Attempt
with journal.opened(Path({str(tmp_path / "j")!r})) as book:
    for n in range(20):
        journal.keep(book, [Attempt(bytes([n]), "r", "t", n, f"text {{n}}")])
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    with journal.opened(tmp_path / "j") as book:
        assert len(journal.answers(book, [bytes([n]) for n in range(30)])) == 20
