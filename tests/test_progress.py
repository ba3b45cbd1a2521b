"""What is told of long work: rates and the time left are those of this run."""

from __future__ import annotations

import sys

import pytest

from saywhy import progress
from saywhy.reasonings import spent_line


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_what_another_run_did_is_in_no_rate(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.track("written", 1_000_000, "rows") as advance:
        advance(900_000, 0, "", before=True)
        clock[0] = 20.0
        advance(1_000, 4_000, "kept 90%")
    assert capsys.readouterr().err == (
        "written: 901000 of 1000000 rows, 50.0/s, 200 tokens/s, 20 s, 1980 s left kept 90%\n"
    )


def test_neither_is_it_in_the_time_left_of_a_bar(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    with progress.track("written", 1_000_000, "rows") as advance:
        advance(900_000, 0, "", before=True)
        clock[0] = 20.0
        advance(1_000, 4_000, "kept 90%")
    shown = capsys.readouterr().err
    assert "901000/1000000" in shown and "50.0/s" in shown and "kept 90%" in shown and "0:33:00 left" in shown


def test_nothing_is_said_to_be_left_before_anything_is_done(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.track("written", 10, "rows") as advance:
        clock[0] = 16.0
        advance(4, 0, "", before=True)
        advance(6, 0, "", before=True)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "written: 4 of 10 rows, 0.0/s, 16 s"
    assert last == "written: 10 of 10 rows, 0.0/s, 16 s, 0 s left"


def test_work_without_an_end_has_no_time_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.track("read", None, "rows") as advance:
        clock[0] = 16.0
        advance(4_000, 0, "")
    assert capsys.readouterr().err == "read: 4000 rows, 250/s, 16 s\n"


def test_what_a_teacher_took_is_said() -> None:
    taken = {"attempts": 12, "answers": 10, "tokens": 1500, "prompt_tokens": 20000, "seconds": 61.4, "cost": 0.456}
    assert spent_line("api", taken) == (
        "api: 12 attempts, 2 of them failed, 20,000 tokens read and 1,500 written, 61 s together, at a cost of 0.46"
    )
    assert spent_line("reasoner", {**taken, "cost": None}).endswith("61 s together")


def test_the_end_is_said_once(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.track("label: api", 2, "answers") as advance:
        advance(2, 0, "")
        for _ in range(5):
            advance(0, 9, "")
        clock[0] = 16.0
        advance(0, 9, "")
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == ["label: api: 2 of 2 answers"] * 2
