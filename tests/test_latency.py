"""What is counted beside the clock; the clock itself is not tested."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import pytest
import torch

import tiny
from saywhy import probe
from saywhy.predict import answer
from saywhy.records import Prediction, Row, Task

TASK = Task("t", "Which emotion?", ("joy", "sadness"))
ROWS = [Row(f"r{at}", f"a morning of {at} birds", TASK.labels[at % 2]) for at in range(7)]


@pytest.mark.parametrize("mode", ["label", "reason", "adaptive"])
def test_each_size_answers_every_row_and_counts_what_was_right_and_computed(mode: str) -> None:
    classifier = tiny.door(TASK).classifier
    given = answer(classifier, ROWS, mode)
    right = sum(one.label == row.label for one, row in zip(given, ROWS, strict=True))
    found = probe.latency(classifier, ROWS, mode, (1, 3, 64))
    assert [(one["batch"], one["rows"]) for one in found] == [(1, 7), (3, 7), (64, 7)]
    assert {one["right"] for one in found} == {right}
    assert all(one["seconds"] > 0 for one in found)
    assert found[2]["tokens"] == pytest.approx(sum(one.tokens for one in given))
    # What rows share is computed once a call: asked one by one it is computed seven times.
    trunk = len(classifier.lm.encoder.before)
    assert found[0]["tokens"] - found[2]["tokens"] == pytest.approx(6 * trunk)
    assert found[0]["tokens"] - found[1]["tokens"] == pytest.approx(4 * trunk)


def test_rows_come_so_many_at_a_time_after_one_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def noted(_: Any, rows: Sequence[Row], mode: str) -> list[Prediction]:
        calls.append(len(rows))
        return [Prediction("joy", {"joy": 1.0, "sadness": 0.0}, tokens=2.0) for _ in rows]

    monkeypatch.setattr(import_module("saywhy.probe.latency"), "answer", noted)
    monkeypatch.setattr(import_module("saywhy.probe.latency"), "TIMED_ROWS", 6)
    found = probe.latency(tiny.door(TASK).classifier, ROWS, "label", (4, 1))
    assert calls == [4, 4, 2, 1, 1, 1, 1, 1, 1]
    assert [(one["rows"], one["right"], one["tokens"]) for one in found] == [(6, 3, 12.0), (6, 3, 12.0)]


def test_the_machine_is_named() -> None:
    told = probe.machine()
    assert told["threads"] == torch.get_num_threads() and isinstance(told["device"], str)
