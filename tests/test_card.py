"""The model card: what it says after training and after evaluation, and that it names no place of a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import toy
from saywhy import card, classifier, store
from saywhy.config import Arm, FromScratch
from saywhy.data import fingerprint, read
from saywhy.records import Task

pytest_plugins = ("runs",)

TASK = Task("mail", "What does\nthe customer want?", ("praise", "complaint"), {"complaint": "something went\nwrong"})
FACTS = {"steps": 40, "best_step": 30, "precision": "bf16"}


def scores(**changes: Any) -> dict[str, Any]:
    told = {"n": 200, "accuracy": 0.915, "accuracy_ci95": (0.868, 0.946), "macro_f1": 0.9, "mean_recall": 0.89}
    return {**told, "nll": 0.2345, "ece": 0.0312, "tokens_per_row": 41.2, **changes}


METRICS = {
    "recommended": {"arm": "reasoned", "mode": "reason"},
    "arms": {
        "reasoned": {
            "modes": {
                "reason": {"test": scores(), "temperature": 1.25},
                "vote": {"test": scores(accuracy=0.5, accuracy_ci95=None, tokens_per_row=300.0), "temperature": 0.9},
            }
        }
    },
    "floors": {"majority": scores(accuracy=0.3, nll=None, ece=None, tokens_per_row=0.0), "linear": None},
}


def known(**changes: Any) -> card.Known:
    told: dict[str, Any] = {"name": "reasoned", "arm": "reason_then_label", "base": "some/base", "rows": 64}
    return card.Known(**{**told, "facts": FACTS, **changes})


def test_after_training_a_card_says_what_is_known_and_that_nothing_was_measured() -> None:
    text = card.write(TASK, known())
    assert text.startswith("---\nlibrary_name: transformers\n")
    assert "# reasoned\n" in text and '("What does the customer want?")' in text
    assert "Modes: `reason`, `vote`." in text
    assert "- `praise`\n- `complaint`: something went wrong\n" in text
    assert "It was not evaluated" in text and "| asked by" not in text
    assert "- Base: some/base\n- 64 rows for 40 steps; the weights after step 30 were kept." in text
    assert "The training rows have the hash" not in text


def test_after_evaluation_a_card_has_every_mode_with_its_interval_beside_the_floors() -> None:
    text = card.write(TASK, known(metrics=METRICS, data_hash="abc123"))
    assert "| `reason` | 200 | 91.5 | 86.8 to 94.6 | 90.0 | 89.0 | 0.234 | 0.031 | 1.25 | 41 |" in text
    assert "| `vote` | 200 | 50.0 | – to – | 90.0 | 89.0 | 0.234 | 0.031 | 0.90 | 300 |" in text
    assert "| majority (floor) | 200 | 30.0 | 86.8 to 94.6 | 90.0 | 89.0 | – | – | – | – |" in text
    assert "linear (floor)" not in text and "It was not evaluated" not in text
    assert "this arm, in the mode `reason`, is the recommended one" in text
    assert "have the hash `abc123`" in text
    others = {**METRICS, "recommended": {"arm": "plain", "mode": "label"}}
    assert "recommends another arm: `plain`, in the mode `label`" in card.write(TASK, known(metrics=others))
    assert "recommend" not in card.write(TASK, known(metrics={**METRICS, "recommended": None}))


def test_a_card_says_what_was_chosen_on_dev() -> None:
    chosen = {"label": {"temperature": 1.0, "abstain_below": 0.6}, "adaptive": {"temperature": 1.0, "threshold": 0.891}}
    text = card.write(TASK, known(metrics=METRICS, calibration=chosen))
    assert "Mode `adaptive` reasons where the calibrated probability of the label alone is below 0.891." in text
    assert "An answer abstains where its label is less likely than 0.6." in text
    never = card.write(TASK, known(metrics=METRICS, calibration={"adaptive": {"temperature": 1.0, "threshold": 0.0}}))
    assert "mode `adaptive` gives what mode `label` gives" in never and "abstains" not in never


def test_every_line_of_the_table_has_as_many_cells() -> None:
    lines = [line for line in card.write(TASK, known(metrics=METRICS)).splitlines() if line.startswith("|")]
    assert len(lines) == 5 and {line.count("|") for line in lines} == {len(card.COLUMNS) + 1}


def test_limits_speak_of_reasonings_where_the_arm_writes_them() -> None:
    said = "The reasoning is written by the model; see the faithfulness figures."
    assert said in card.write(TASK, known())
    assert "was not measured" in card.write(TASK, known(metrics=METRICS))
    assert said not in card.write(TASK, known(arm="label_only"))
    found = {"swap_other": {"followed": {"share": 0.935}}, "mistake": {"changed": {"share": 0.09}}}
    for name, measured in ((known().name, True), ("another", False)):
        probed = {**METRICS, "probes": {"faithfulness": {f"{name}/reason": found}}}
        text = card.write(TASK, known(metrics=probed))
        assert ("93.5% of the answers are that row's" in text) == ("9.0%; the run" in text) == measured
        assert ("was not measured" in text) == (not measured)
    assert "Each row brings its own choices" in card.write(Task("t", "which?", ()), known())
    assert "rating scale" in card.write(Task("t", "which?", ("1", "2"), ordinal=True), known())


@pytest.mark.parametrize("base", ["folder", "scratch"])
def test_a_card_names_its_base_without_a_path(tmp_path: Path, base: str) -> None:
    (tmp_path / "my-model").mkdir()
    store.write_json(tmp_path / "train.json", FACTS)
    named = str(tmp_path / "my-model") if base == "folder" else FromScratch()
    classifier.describe(tmp_path, TASK, Arm(name="label_only", arm="label_only"), named, 5)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert ("the folder my-model" if base == "folder" else "random weights (width 128, layers 4") in text


def test_a_run_leaves_cards_with_the_figures_that_it_measured(quick_run: toy.Done) -> None:
    rows = read(quick_run.config).train
    for name, arm in quick_run.metrics["arms"].items():
        text = (quick_run.folder / name / "README.md").read_text(encoding="utf-8")
        assert fingerprint(rows) in text and f"{len(rows)} rows for" in text
        assert "random weights (width 16" in text and str(quick_run.folder) not in text
        for mode, found in arm["modes"].items():
            low, high = found["test"]["accuracy_ci95"]
            shown = f"| `{mode}` | {found['test']['n']} | {100 * found['test']['accuracy']:.1f} | "
            assert f"{shown}{100 * low:.1f} to {100 * high:.1f} |" in text
        assert "linear (floor)" in text
        assert "README.md" in store.read_json(quick_run.folder / name / "stamp.json")["files"]


def test_a_card_says_that_an_arm_was_taught_a_control() -> None:
    text = card.write(TASK, known(control="corrupt(0.2)"))
    assert "**Trained on a control, not on reasonings:** `corrupt(0.2)` stood in for them" in text
    assert "in 20% of the rows" in text
    assert "do not read it as a reasoning" in text and "faithfulness" not in text
    assert "control" not in card.write(TASK, known(arm="label_only", control="shuffle"))
    assert "control" not in card.write(TASK, known())
