"""What the report's explorer is given: every answer once, calibrated and rounded, and never too much of it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from reported import FULL, LABEL, REASON, bare, check_sound, run
from saywhy import report
from saywhy.report import explorer, story


def held(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="explorer-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def made(metrics: dict[str, Any], predictions: dict[str, Any]) -> explorer.Explorer:
    found = explorer.explore(metrics["task"], story.systems(metrics), (), predictions)
    assert found is not None
    return found


def test_every_system_answers_every_row_side_by_side_with_calibrated_probabilities() -> None:
    metrics, predictions = run(FULL, n=60)
    page = report.render(metrics, predictions)
    data = held(page)
    main = "/".join(metrics["recommended"][part] for part in ("arm", "mode"))
    keys = [one["key"] for one in data["head"]["systems"]]
    assert set(keys) == set(FULL) and keys[0] == main
    assert [keys[place] for place in data["head"]["first"]] == [main, LABEL]
    assert len(data["rows"]) == 60 and "All 60 test rows." in page
    labels = metrics["task"]["labels"]
    by_id = {key: {row["id"]: row for row in predictions[key.replace("/", "-")]} for key in FULL}
    known = {one.key: one for one in story.systems(metrics)}
    moved = 0
    for text, gold, key, answers in data["rows"]:
        for name, answer in zip(keys, answers, strict=True):
            row = by_id[name][key]
            label, flat, *rest = answer
            assert (row["text"], row["gold"], row["label"]) == (text, labels[gold], labels[label])
            assert (rest[0] if rest else "") == (row["reasoning"] or "")
            assert bool(rest[1] if len(rest) > 1 else 0) == row["forced"]
            shares = explorer.calibrated(labels, known[name], row) or []
            expected = {place: round(1000 * p) for place, p in enumerate(shares) if p >= 0.0005}
            assert dict(zip(flat[::2], flat[1::2], strict=True)) == expected
            moved += any(abs(a - b) > 0.01 for a, b in zip(shares, row["probabilities"], strict=True))
    assert moved > 20, "temperatures that change nothing test nothing"


def test_rows_are_drawn_by_hash_whatever_their_order_and_a_limit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, predictions = run({LABEL: 0.6, REASON: 0.7}, n=90)
    whole = made(metrics, predictions)
    turned = {key: rows[::-1] for key, rows in predictions.items()}
    assert made(metrics, turned).data == whole.data
    monkeypatch.setattr(explorer, "ROWS", 25)
    few = made(metrics, predictions)
    assert (few.held, few.of) == (25, 90) and "25 of the 90 test rows, drawn by the hash of their ids" in few.names
    assert json.loads(few.data)["rows"] == json.loads(whole.data)["rows"][:25]
    monkeypatch.setattr(explorer, "SIZE", 5000)
    small = made(metrics, predictions)
    assert 5 < small.held < 25 and len(small.data) < 5500


def test_long_texts_and_small_probabilities_are_left_out() -> None:
    metrics = bare({LABEL: 0.6}, LABEL)
    metrics["task"]["labels"] = ["a", "b", "c"]
    row = {"id": "1", "text": "t" * 900, "gold": "a", "label": "b", "probabilities": [0.0004, 0.9, 0.0996],
           "reasoning": "r " * 900, "forced": True}  # fmt: skip
    (kept,) = json.loads(made(metrics, {"label_only-label": [row]}).data)["rows"]
    text, gold, _, ((label, flat, reasoning, forced),) = kept
    assert (len(text), gold, label, flat, len(reasoning), forced) == (600, 0, 1, [1, 900, 2, 100], 600, 1)


def test_rows_with_their_own_choices_and_missing_rows_work() -> None:
    metrics = bare({LABEL: 0.6, REASON: 0.7}, REASON)
    metrics["task"]["labels"] = []
    row = {"text": "t", "gold": "x", "label": "y", "choices": ["y", "x"], "probabilities": [0.75, 0.25],
           "reasoning": None, "forced": False}  # fmt: skip
    other = {**row, "id": "2", "choices": ["p", "q", "x"], "probabilities": [0.5, 0.25, 0.25], "label": "p"}
    predictions = {"label_only-label": [{**row, "id": "1"}, other], "reason_then_label-reason": [{**row, "id": "1"}]}
    page = report.render(metrics, predictions)
    check_sound(page)
    rows = {one[2]: one for one in held(page)["rows"]}
    assert rows["1"] == ["t", 1, "1", [[0, [0, 750, 1, 250]]] * 2, ["y", "x"]]
    assert rows["2"] == ["t", 2, "2", [None, [0, [0, 500, 1, 250, 2, 250]]], ["p", "q", "x"]]
    assert "Gold label" not in page


def test_nothing_in_the_data_can_end_it() -> None:
    metrics, predictions = run({LABEL: 0.6}, labels=("</script><script>x", "<!--", "\u2028&amp;"), n=30, ordinal=False)
    for row in predictions["label_only-label"]:
        row["text"] = "</script x><script>alert(1)</script> <!-- \x00"
    page = report.render(metrics, predictions)
    check_sound(page)
    assert page.count("</script>") == 2
    assert not set("<>&") & set(page[page.index('id="explorer-data">') + 19 :].partition("</script>")[0])
    assert held(page)["rows"][0][0] == "</script x><script>alert(1)</script> <!-- \x00"
    assert held(page)["head"]["labels"][:2] == ["</script><script>x", "<!--"]


def test_without_predictions_there_is_no_explorer() -> None:
    page = report.render(bare({LABEL: 0.6}, LABEL), {})
    assert 'id="explorer"' not in page and 'href="#explorer' not in page
