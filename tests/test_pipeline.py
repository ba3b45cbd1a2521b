"""The whole method on a toy task whose fixtures disagree with themselves: some gold labels are wrong on purpose."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toy
from saywhy import classifier, evaluate, metrics, pipeline, predict, report, store
from saywhy.lm.generate import Leaving
from saywhy.pipeline import judging
from saywhy.prompts import MODES
from saywhy.records import Candidate, Prediction, RequestError, Row, Task, WorkError

pytest_plugins = ("runs",)

MODEL_FILES = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "prompt.json", "train.json", "trained_on.parquet", "README.md", "stamp.json",
}  # fmt: skip
S = {
    "n", "accuracy", "accuracy_ci95", "macro_f1", "mean_recall", "per_class", "confusion", "nll", "brier", "ece",
    "reliability", "aurc", "coverage", "recall_at_fpr", "forced", "accuracy_unforced", "rows_per_second",
    "tokens_per_row",
}  # fmt: skip
SYSTEMS = {
    "both/adaptive",
    "label_only/label", "reason_then_label/reason", "label_then_reason/label", "label_then_reason/explain",
    "both/label", "both/reason",
}  # fmt: skip


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def trained_on(folder: Path) -> dict[str, list[str]]:
    """Targets by row id."""
    found: dict[str, list[str]] = {}
    for row in store.read_table(folder / "trained_on.parquet").to_pylist():
        found.setdefault(row["id"], []).append(row["target"])
    return found


def answers(done: toy.Done, system: str, split: str = "test") -> evaluate.Answers:
    arm, _, mode = system.partition("/")
    task = predict.read_task(done.folder / arm)
    return evaluate.load_answers(done.folder / "predictions" / f"{arm}-{mode}-{split}.parquet", task)


def test_a_run_leaves_the_files_of_the_contract(finished: toy.Done) -> None:
    run = finished.folder
    assert names(run) == {
        ".saywhy", "config.yaml", "journal.jsonl", "answers.sqlite", "base", "reasoner", "reasonings", *toy.ARMS,
        "predictions", "metrics.json", "report.html",
    }  # fmt: skip
    assert names(run / "reasoner") == MODEL_FILES
    for arm in toy.ARMS:
        assert names(run / arm) == MODEL_FILES | {"task.json", "calibration.json"}, arm
    assert names(run / "reasonings") == {"part-00000.parquet", "stamp.json"}
    split_files = {f"{s.replace('/', '-')}-{split}.parquet" for s in SYSTEMS for split in ("dev", "test")}
    floors = {f"floors-{name}-{split}.parquet" for name in ("majority", "linear") for split in ("dev", "test")}
    assert names(run / "predictions") == (split_files | floors) - {"label_then_reason-explain-dev.parquet"}
    assert store.read_json(run / "reasoner" / "prompt.json")["conditional_on_gold_label"] is True
    assert "conditional on the gold label" in (run / "reasoner" / "README.md").read_text("utf-8").lower()


def test_the_config_that_a_run_leaves_gives_the_same_run(finished: toy.Done) -> None:
    from saywhy.config import load

    assert load(finished.folder / "config.yaml") == finished.config


def test_metrics_have_the_schema_of_the_contract(finished: toy.Done) -> None:
    found = finished.metrics
    assert {"task", "recommended", "arms", "floors", "comparisons", "audit", "versions", "seed"} <= found.keys()
    assert found["task"] == {"name": "animals", "labels": list(toy.LABELS), "ordinal": False}
    assert found["recommended"].keys() == {"arm", "mode", "metric", "why"}
    assert {f"{arm}/{mode}" for arm, facts in found["arms"].items() for mode in facts["modes"]} == SYSTEMS
    for arm in found["arms"].values():
        facts = arm["train"]
        assert {"steps", "rows", "tokens", "target_tokens", "label_tokens", "seconds", "curve"} <= facts.keys()
        assert facts["tokens"] > facts["target_tokens"] >= facts["label_tokens"] > 0
        assert [step for step, _ in facts["curve"]] == sorted({step for step, _ in facts["curve"]})
        for name, mode in arm["modes"].items():
            assert mode.keys() == {"dev", "test", "temperature"}
            assert mode["temperature"] > 0
            assert mode["test"].keys() == S
            assert (mode["dev"] is None) == (name == "explain")
    assert found["floors"].keys() == {"majority", "linear"}
    assert all(floor.keys() == S and floor["n"] == toy.TEST for floor in found["floors"].values())
    for row in found["comparisons"]:
        assert row.keys() == {
            "a", "b", "metric", "difference", "ci95", "p_mcnemar", "p_holm", "a_only", "b_only", "mde", "n",
        }  # fmt: skip
    assert found["reasonings"]["rows"] == 60


def test_predictions_hold_the_rows_of_the_split_and_the_columns_of_the_contract(finished: toy.Done) -> None:
    for path in (finished.folder / "predictions").iterdir():
        table = store.read_table(path)
        columns = ["id", "text", "gold", "label", "probabilities", "reasoning", "tokens"]
        assert table.column_names == [*columns, "prompt_tokens", "forced", "strict", "pruned", "choices"]
        arm, mode, split = path.stem.split("-")
        gold = lines(finished.data / f"{split}.jsonl")
        rows = table.to_pylist()
        expected = gold[:6] if mode == "explain" else gold
        assert [(row["id"], row["text"], row["gold"]) for row in rows] == [
            (row["id"], row["text"], row["label"]) for row in expected
        ]
        # Adaptive reasons about some rows only.
        silent = mode == "label" or arm == "floors"
        assert mode == "adaptive" or all((row["reasoning"] is None) == silent for row in rows), (arm, mode)


def test_probabilities_stand_in_the_order_of_the_labels(finished: toy.Done) -> None:
    for system in SYSTEMS:
        found = answers(finished, system)
        for label, shares in zip(found.labels, found.probabilities, strict=True):
            assert sum(shares) == pytest.approx(1)
            assert toy.LABELS[int(np.argmax(shares))] == label


def test_answers_are_those_of_the_folder_as_written(finished: toy.Done) -> None:
    """A classifier loaded from the folder alone gives the saved answers, at the temperatures of metrics.json."""
    for arm, mode in (("both", "reason"), ("label_then_reason", "label")):
        saved = answers(finished, f"{arm}/{mode}")
        loaded = predict.load(finished.folder / arm)
        again = predict.answer(loaded, [Row(*pair) for pair in zip(saved.ids, saved.texts, strict=True)], mode)
        assert [one.label for one in again] == list(saved.labels)
        assert [one.reasoning for one in again] == list(saved.reasonings)
        given = np.array([[one.probabilities[label] for label in toy.LABELS] for one in again])
        assert given == pytest.approx(np.array(saved.probabilities), abs=1e-5)
        assert loaded.temperatures[mode] == finished.metrics["arms"][arm]["modes"][mode]["temperature"]


def test_the_figures_are_those_of_the_predictions(finished: toy.Done) -> None:
    for system in SYSTEMS - {"label_then_reason/explain"}:
        arm, _, mode = system.partition("/")
        for split in ("dev", "test"):
            found = answers(finished, system, split)
            right = sum(label == gold for label, gold in zip(found.labels, found.gold, strict=True))
            assert finished.metrics["arms"][arm]["modes"][mode][split]["accuracy"] == pytest.approx(
                right / len(found.ids)
            )


def test_nobody_is_right_where_the_key_is_wrong(finished: toy.Done) -> None:
    """Scored on the training file, or on another one, somebody would be; who reads the texts cannot."""
    # Not every row is explained, and those with a wrong key may not be among them.
    asked = SYSTEMS - {"label_then_reason/explain"}
    scores = {s: finished.metrics["arms"][s.split("/")[0]]["modes"][s.split("/")[1]]["test"]["accuracy"] for s in asked}
    scores["floors/linear"] = finished.metrics["floors"]["linear"]["accuracy"]
    assert max(scores.values()) >= 0.8, "nothing was learnt, so the next line says nothing"
    # One of two may be hit by a mistake, which depends on rounding.
    assert len(toy.WRONG_IN_TEST) == 2 and max(scores.values()) <= 1 - 1 / toy.TEST
    best = answers(finished, max(asked, key=lambda s: scores[s]))
    for number in toy.WRONG_IN_TEST:
        assert best.gold[number] == lines(finished.data / "test.jsonl")[number]["label"]


def test_the_report_names_the_winner(finished: toy.Done) -> None:
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert finished.metrics["recommended"]["arm"] in page
    assert f"{100 * finished.metrics['floors']['linear']['accuracy']:.1f}" in page
    report.write(finished.folder)
    assert (finished.folder / "report.html").read_text(encoding="utf-8") == page
    assert not re.search(r"""(src|href)=["']?(https?:)?//|url\((?!["']?#)|@import""", page)


def test_label_only_never_sees_a_reasoning(finished: toy.Done) -> None:
    for row in lines(finished.data / "train.jsonl"):
        assert trained_on(finished.folder / "label_only")[row["id"]] == [f"Label: {row['label']}<eos>"]


def test_reasoned_arms_are_taught_what_was_kept(finished: toy.Done) -> None:
    kept = {
        row["id"]: row["reasoning"]
        for row in store.read_table(finished.folder / "reasonings" / "part-00000.parquet").to_pylist()
        if row["kept"]
    }
    assert len(kept) == 59
    found = {arm: trained_on(finished.folder / arm) for arm in toy.ARMS}
    for row in lines(finished.data / "train.jsonl"):
        name, plain = row["id"], f"Label: {row['label']}<eos>"
        if name == toy.DROPPED_ROW:
            # All arms see the same rows: without a reasoning a row is taught its label.
            assert all(found[arm][name] == [plain] for arm in toy.ARMS)
            continue
        reasoned = f"Reasoning: {kept[name]}\nLabel: {row['label']}<eos>"
        assert found["reason_then_label"][name] == [reasoned]
        assert found["label_then_reason"][name] == [f"Label: {row['label']}\nReasoning: {kept[name]}<eos>"]
        assert found["both"][name] == [plain, reasoned]


def test_a_dropped_candidate_keeps_its_row_and_its_reason(finished: toy.Done) -> None:
    rows = store.read_table(finished.folder / "reasonings" / "part-00000.parquet").to_pylist()
    of_row = [row for row in rows if row["id"] == toy.DROPPED_ROW]
    assert [row["dropped_because"] for row in of_row] == ["about_one_row"] * 6
    assert all(row["reasoning"] for row in of_row)
    told = finished.metrics["reasonings"]
    assert told["candidates"] == len(rows) == 2 * 60 + 4
    assert told["kept"] + sum(told["dropped"].values()) == told["candidates"]
    assert told["kept"] == sum(row["kept"] for row in rows) == 59
    assert told["dropped"] == Counter(row["dropped_because"] for row in rows if not row["kept"])
    assert told["rows_without"] == 1
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert "about_one_row" in page or "about one row" in page


def test_all_arms_see_the_same_rows_for_the_same_number_of_steps(finished: toy.Done) -> None:
    facts = {arm: store.read_json(finished.folder / arm / "train.json") for arm in toy.ARMS}
    assert {(one["steps"], one["rows"]) for one in facts.values()} == {(200, 3200)}
    assert len({tuple(sorted(trained_on(finished.folder / arm))) for arm in toy.ARMS}) == 1
    assert facts["label_only"]["tokens"] < facts["reason_then_label"]["tokens"] < facts["both"]["tokens"]
    assert facts["label_only"]["target_tokens"] == facts["label_only"]["label_tokens"]


def test_an_answer_is_scored_after_its_own_reasoning(finished: toy.Done, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = predict.load(finished.folder / "reason_then_label")
    rows = [Row(str(i), f"still by the lake it {verb}") for i, verb in enumerate(("purrs", "barks", "sings"))]
    own = predict.answer(classifier, rows, "reason")
    write = predict.modes.write

    def swapped(reading: Any, drawn: Any, rules: Any, leave: Callable[[Leaving], None]) -> None:
        """Let each row have the text of the next one."""
        texts: dict[int, tuple[int, ...]] = {}
        start = reading.part(range(len(drawn)))
        write(reading, drawn, rules, lambda gone: texts.update(zip(gone.rows, gone.ids, strict=True)))
        count = len(drawn)
        ids = tuple(texts[(row + 1) % count] for row in range(count))
        leave(Leaving(tuple(range(count)), ids, (True,) * count, start.spent, lambda: start))

    monkeypatch.setattr(predict.modes, "write", swapped)
    other = predict.answer(classifier, rows, "reason")
    assert sorted(str(one.reasoning) for one in other) == sorted(str(one.reasoning) for one in own)
    assert all(one.reasoning != two.reasoning for one, two in zip(own, other, strict=True))
    for before, after in zip(own, other, strict=True):
        moved = sum(abs(before.probabilities[label] - after.probabilities[label]) for label in toy.LABELS)
        # How much it moves is the toy model's affair; scored without its reasoning it would not move at all.
        assert moved > 1e-5, "the label does not depend on the reasoning that stands before it"


def test_comparisons_are_between_the_systems_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every system is wrong on rows of its own, so that no two can be exchanged unseen."""
    systems = sorted(SYSTEMS - {"label_then_reason/explain"})

    def wrong(system: str, i: int) -> bool:
        return i % (2 + systems.index(system)) == 0

    def fake(classifier: predict.Classifier, rows: Sequence[Row], mode: str, *_: Any) -> list[Prediction]:
        found = []
        for i, row in enumerate(rows):
            system = f"{classifier.arm}/{mode.replace('explain', 'label')}"
            label = toy.LABELS[(toy.LABELS.index(row.label or "") + wrong(system, i)) % 3]
            shares = {one: 0.8 if one == label else 0.1 for one in toy.LABELS}
            found.append(Prediction(label, shares, tokens=1.0))
        return found

    monkeypatch.setattr(judging, "answer", fake)
    done = toy.run(toy.write_data(tmp_path / "data"), tmp_path / "run", **toy.quick(classifier__arms=toy.ARMS))
    rows = [row for row in done.metrics["comparisons"] if row["metric"] == "accuracy"]
    # Every pair once, and each against the linear floor.
    assert len({frozenset((row["a"], row["b"])) for row in rows}) == len(rows) == 15 + 6
    right = {s: np.array([not wrong(s, i) for i in range(toy.TEST)]) for s in systems}
    floor = evaluate.load_answers(
        done.folder / "predictions" / "floors-linear-test.parquet", predict.read_task(done.folder / "both")
    )
    right["floors/linear"] = np.array(floor.labels) == np.array(floor.gold)
    for row in rows:
        a, b = right[row["a"]], right[row["b"]]
        assert (row["a_only"], row["b_only"]) == (int((a & ~b).sum()), int((b & ~a).sum())), (row["a"], row["b"])
        assert row["difference"] == pytest.approx(a.mean() - b.mean())
        assert row["ci95"][0] - 1e-9 <= row["difference"] <= row["ci95"][1] + 1e-9
    for system in systems:
        arm, _, mode = system.partition("/")
        told = done.metrics["arms"][arm]["modes"][mode]["test"]["accuracy"]
        assert told == pytest.approx(right[system].mean()), system


def test_modes_are_those_that_an_arm_was_taught(finished: toy.Done) -> None:
    found = {arm: set(facts["modes"]) for arm, facts in finished.metrics["arms"].items()}
    assert found == {
        "label_only": {"label"},
        "reason_then_label": {"reason"},
        "label_then_reason": {"label", "explain"},
        "both": {"label", "reason", "adaptive"},
    }
    assert {arm: set(modes) - {"vote", "ensemble"} for arm, modes in MODES.items()} == found
    lacking = {"label_only": "reason", "reason_then_label": "label", "label_then_reason": "vote", "both": "explain"}
    for arm, mode in lacking.items():
        classifier = predict.load(finished.folder / arm)
        with pytest.raises(RequestError, match=f"{mode!r} was not taught to {arm}; it has {', '.join(MODES[arm])}"):
            predict.check_mode(classifier, mode)


def test_adaptive_reasons_below_the_threshold_that_dev_chose(finished: toy.Done) -> None:
    saved = store.read_json(finished.folder / "both" / "calibration.json")
    task = predict.read_task(finished.folder / "both")
    of_dev = [answers(finished, f"both/{mode}", "dev") for mode in ("label", "reason")]
    threshold = saved["adaptive"]["threshold"]
    assert threshold == evaluate.threshold_of(task, *of_dev, finished.config.recommend_by, evaluate.Budget())
    label, reason, adaptive = (answers(finished, f"both/{mode}") for mode in ("label", "reason", "adaptive"))
    sure = metrics.apply_temperature(np.array(label.probabilities), saved["label"]["temperature"]).max(1)
    for at, confident in enumerate(sure):
        chosen = label if confident >= threshold else reason
        assert adaptive.labels[at] == chosen.labels[at] and adaptive.reasonings[at] == chosen.reasonings[at]
    notes = [note for note in finished.metrics["notes"] if "its mode adaptive is its mode label" in note]
    assert len(notes) == (threshold == 0)


def test_the_probability_to_abstain_below_is_kept_beside_every_mode(finished: toy.Done, tmp_path: Path) -> None:
    """Adaptive too, whose answers depend on what was fitted, is not asked again for it."""
    shutil.copytree(finished.folder, tmp_path / "run")
    before = events(tmp_path / "run")
    asking = finished.config.evaluate.model_copy(update={"abstain_below": 0.6})
    pipeline.run(finished.config.model_copy(update={"evaluate": asking}), tmp_path / "run", [toy.about_one_row])
    assert events(tmp_path / "run") == before
    metrics_ = store.read_json(tmp_path / "run" / "metrics.json")
    for arm in toy.ARMS:
        old, new = (store.read_json(run / arm / "calibration.json") for run in (finished.folder, tmp_path / "run"))
        assert new == {mode: {**entry, "abstain_below": 0.6} for mode, entry in old.items()}
        loaded = predict.load(tmp_path / "run" / arm)
        assert loaded.abstain_below == dict.fromkeys(new, 0.6)
        assert predict.load(finished.folder / arm).abstain_below == {}
        for mode, scores in metrics_["arms"][arm]["modes"].items():
            saved = answers(finished, f"{arm}/{mode}")
            rows = [Row(*pair) for pair in zip(saved.ids, saved.texts, strict=True)]
            asked = predict.open_classifier(tmp_path / "run" / arm, mode).rows(rows)
            assert scores["test"]["abstained"] == pytest.approx(np.mean([one.abstained for one in asked]))
            kept = [one.label == gold for one, gold in zip(asked, saved.gold, strict=True) if not one.abstained]
            assert scores["test"]["accuracy_answered"] == (pytest.approx(np.mean(kept)) if kept else None)


def test_explain_gives_the_label_of_the_mode_label_and_a_reasoning_after_it(finished: toy.Done) -> None:
    explained, plain = answers(finished, "label_then_reason/explain"), answers(finished, "label_then_reason/label")
    assert explained.labels == plain.labels[:6]
    assert np.array(explained.probabilities) == pytest.approx(np.array(plain.probabilities[:6]), abs=1e-5)
    assert all(explained.reasonings)


# What runs again after a change, and what stands. All below copy a finished run and change one thing.


def events(run: Path) -> Counter[str]:
    return Counter(event["stage"] for event in store.read_journal(run / "journal.jsonl") if event["event"] == "done")


def again(
    done: toy.Done, where: Path, change: Callable[[Path], None] | None = None, *checks: Any, **changes: Any
) -> set[str]:
    """Repeat a run on a copy of its folder and its data with one change; give the stages that were done again."""
    shutil.copytree(done.data, where / "data")
    shutil.copytree(done.folder, where / "run")
    before = events(where / "run")
    if change is not None:
        change(where / "data")
    toy.run(where / "data", where / "run", *checks, **changes)
    return set((events(where / "run") - before).keys())


LABEL_ONLY = {"label_only", "label_only-label-dev", "label_only-label-test"}
REASONED = {"reason_then_label", "reason_then_label-reason-dev", "reason_then_label-reason-test"}
EVERYTHING = {"base", "reasoner", "reasonings", *LABEL_ONLY, *REASONED}
OF_TEST = {"label_only-label-test", "reason_then_label-reason-test"}


def test_floors_are_asked_again_where_what_they_learn_from_changed_only(
    quick_run: toy.Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    makes = {"majority": evaluate.majority, "linear": evaluate.linear}

    def noted(name: str, *given: Any) -> Any:
        made.append(name)
        return makes[name](*given)

    for name in makes:
        monkeypatch.setattr(evaluate, name, partial(noted, name))
    assert again(quick_run, tmp_path / "1", **toy.with_reasoner(evaluate__bootstrap=101)) == set()
    assert made == []
    again(quick_run, tmp_path / "2", relabel("dev"), **toy.with_reasoner())
    assert made == ["majority", "linear"], "the majority is no other, but its answers are about other rows"
    shutil.copytree(tmp_path / "2", tmp_path / "3")
    stale = tmp_path / "3" / "run" / "predictions" / "floors-linear-test.parquet"
    made.clear()
    shutil.copy(quick_run.folder / "predictions" / "floors-linear-test.parquet", stale)
    toy.run(tmp_path / "3" / "data", tmp_path / "3" / "run", **toy.with_reasoner())
    assert made == ["linear"]
    assert stale.read_bytes() != (quick_run.folder / "predictions" / stale.name).read_bytes()


def relabel(name: str) -> Callable[[Path], None]:
    """Give every row of a split the next label."""

    def change(data: Path) -> None:
        rows = lines(data / f"{name}.jsonl")
        for row in rows:
            row["label"] = toy.LABELS[(toy.LABELS.index(row["label"]) + 1) % 3]
        toy.write_lines(data / f"{name}.jsonl", rows)

    return change


def reword(data: Path) -> None:
    rows = lines(data / "train.jsonl")
    rows[7]["text"] += " now"
    toy.write_lines(data / "train.jsonl", rows)


def other_case(data: Path) -> None:
    cases = lines(data / "worked.jsonl")
    cases[3]["reasoning"] = "'barks' is loud and rough indeed."
    toy.write_lines(data / "worked.jsonl", cases)


def arm_rate(rate: float) -> list[Any]:
    arm = "reason_then_label"
    return ["label_only", {"name": arm, "arm": arm, "train": {"learning_rate": rate}}]


@pytest.mark.parametrize(
    ("change", "changes", "repeated"),
    [
        (None, {}, set()),
        (None, {"evaluate__bootstrap": 150}, set()),
        (None, {"evaluate__abstain_below": 0.5}, set()),
        (relabel("test"), {}, OF_TEST),
        (relabel("dev"), {}, {*LABEL_ONLY, *REASONED}),
        (None, {"classifier__arms": arm_rate(5e-3)}, REASONED),
        (None, {"classifier__train__steps": 5}, {*LABEL_ONLY, *REASONED}),
        (None, {"reasonings__sampling": {"max_tokens": 9}}, {"reasonings", *REASONED}),
        (None, {"reasoner__train__steps": 5}, {"reasoner", "reasonings", *REASONED}),
        (reword, {}, EVERYTHING),
        (other_case, {}, EVERYTHING),
        (None, {"seed": 1}, EVERYTHING),
    ],
    ids=[
        "nothing",
        "bootstrap",
        "abstain",
        "test",
        "dev",
        "one-arm",
        "arms",
        "sampling",
        "reasoner",
        "text",
        "case",
        "seed",
    ],
)
def test_what_changed_is_done_again_with_everything_downstream_and_nothing_else(
    quick_run: toy.Done,
    tmp_path: Path,
    change: Callable[[Path], None] | None,
    changes: Mapping[str, Any],
    repeated: set[str],
) -> None:
    assert again(quick_run, tmp_path, change, **toy.with_reasoner() | changes) == repeated


def test_a_check_that_says_something_else_under_the_same_name_is_another_check(
    quick_run: toy.Done, tmp_path: Path
) -> None:
    from saywhy.pipeline import _identity

    def first() -> Any:
        def rule(task: Task, row: Row, candidate: Candidate) -> bool:
            return row.id == "train-1"

        return rule

    def second() -> Any:
        def rule(task: Task, row: Row, candidate: Candidate) -> bool:
            return row.id == "train-2"

        return rule

    assert first().__name__ == second().__name__
    assert again(quick_run, tmp_path / "1", None, first(), **toy.with_reasoner()) == {"reasonings", *REASONED}
    once = toy.Done(quick_run.config, tmp_path / "1" / "data", tmp_path / "1" / "run", {})
    assert again(once, tmp_path / "2", None, first(), **toy.with_reasoner()) == set()
    assert again(once, tmp_path / "3", None, second(), **toy.with_reasoner()) == {"reasonings", *REASONED}
    assert _identity(first()) != _identity(second())


def test_test_rows_choose_nothing(finished: toy.Done, tmp_path: Path) -> None:
    """With every label of test exchanged, what was chosen stays as it was, and only the figures of test move."""
    shutil.copytree(finished.data, tmp_path / "data")
    shutil.copytree(finished.folder, tmp_path / "run")
    before = {arm: store.read_json(finished.folder / arm / "calibration.json") for arm in toy.ARMS}
    relabel("test")(tmp_path / "data")
    changes = {
        "reasonings__teacher": "reasoner",
        "reasoner__worked_cases": {"data": "worked.jsonl"},
        "classifier__arms": toy.ARMS,
    }
    done = toy.run(tmp_path / "data", tmp_path / "run", toy.about_one_row, **changes)
    assert {arm: store.read_json(done.folder / arm / "calibration.json") for arm in toy.ARMS} == before
    assert done.metrics["recommended"] == finished.metrics["recommended"]
    for arm in toy.ARMS:
        for mode, found in done.metrics["arms"][arm]["modes"].items():
            was = finished.metrics["arms"][arm]["modes"][mode]
            assert found["temperature"] == was["temperature"]
            assert found["dev"] == was["dev"]
    assert done.metrics["arms"]["both"]["modes"]["reason"]["test"]["accuracy"] < 0.5
    assert done.metrics["floors"]["linear"]["accuracy"] < finished.metrics["floors"]["linear"]["accuracy"]


# Short runs of other kinds.


def test_without_any_reasoning_kept_the_work_fails_and_stays(tmp_path: Path) -> None:
    def nothing(task: Task, row: Row, candidate: Candidate) -> bool:
        return True

    data = toy.write_data(tmp_path / "data")
    with pytest.raises(WorkError, match=r"no reasoning is kept for any row \(nothing 60\)"):
        toy.run(data, tmp_path / "run", nothing, **toy.quick())
    rows = store.read_table(tmp_path / "run" / ".reasonings.partial" / "part-00000.parquet").to_pylist()
    assert {row["dropped_because"] for row in rows} == {"nothing"}
    began = {".saywhy", "config.yaml", "journal.jsonl", "answers.sqlite", "base", ".reasonings.partial"}
    assert names(tmp_path / "run") == began
    # Mended, the same folder goes on.
    toy.run(data, tmp_path / "run", **toy.quick())
    assert ".reasonings.partial" not in names(tmp_path / "run")


def test_no_training_reads_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = classifier.answer

    def watched(model: Any, rows: Sequence[Row], *rest: Any) -> list[Prediction]:
        asked.extend(row.id for row in rows)
        return real(model, rows, *rest)

    monkeypatch.setattr(classifier, "answer", watched)
    changes = toy.quick(classifier__arms=["label_only", "both"])
    made = []
    for name in ("one", "other"):
        data = toy.write_data(tmp_path / name)
        if name == "other":
            rows = [{"id": f"test-{at}", "text": f"it sleeps {at}", "label": "cat"} for at in range(5)]
            toy.write_lines(data / "test.jsonl", rows)
        run = pipeline.run(toy.load(data, **changes), tmp_path / f"run-{name}", until="train")
        made.append({path.parent.name: path.read_bytes() for path in run.glob("*/model.safetensors")})
    assert asked and {one.partition("-")[0] for one in asked} == {"dev"}
    assert set(made[0]) == {"base", "label_only", "both"} and made[0] == made[1]


def test_without_teacher_label_only_meets_the_floors_and_the_rest_is_said_to_be_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matched = {"name": "longer", "arm": "label_only", "match": "tokens", "to": "reason_then_label"}
    arms = ["label_only", "reason_then_label", matched]
    changes = toy.quick(reasonings__teacher=[], classifier__arms=arms)
    done = toy.run(toy.write_data(tmp_path / "data"), tmp_path / "run", **changes)
    assert set(done.metrics["arms"]) == {"label_only"}
    assert "reasonings" not in done.metrics
    (note,) = done.metrics["notes"]
    for word in ("reason_then_label", "longer", "reasoner.worked_cases", "reasonings.teacher"):
        assert word in note
    assert note in capsys.readouterr().err
    assert "reasoner.worked_cases" in (done.folder / "report.html").read_text(encoding="utf-8")
    assert {(row["a"], row["b"]) for row in done.metrics["comparisons"]} == {("label_only/label", "floors/linear")}


@pytest.mark.parametrize(
    ("changes", "teachers"),
    [
        ({"reasonings__teacher": "column"}, {"column"}),
        ({"reasonings__teacher": "file", "reasonings__file": {"path": "why.jsonl"}}, {"file"}),
        ({"reasonings__teacher": "base", "reasonings__candidates": 1}, {"base"}),
        ({"reasonings__teacher": ["file", "base"], "reasonings__file": {"path": "why.jsonl"}}, {"file", "base"}),
    ],
    ids=["column", "file", "base", "two"],
)
def test_teachers(tmp_path: Path, changes: Mapping[str, Any], teachers: set[str]) -> None:
    data = toy.write_data(tmp_path / "data")
    rows = lines(data / "train.jsonl")
    toy.write_lines(data / "why.jsonl", [{"id": r["id"], "reasoning": f"so {r['reasoning']}"} for r in rows[:40]])
    settings = toy.quick(reasonings__checks=["empty"], classifier__arms=["reason_then_label"], task__ordinal=True)
    done = toy.run(data, tmp_path / "run", **settings | changes)
    written = store.read_table(done.folder / "reasonings" / "part-00000.parquet").to_pylist()
    assert {row["teacher"] for row in written} == teachers
    targets = trained_on(done.folder / "reason_then_label")
    brought = {"column": lambda r: r["reasoning"], "file": lambda r: f"so {r['reasoning']}"}
    for name in teachers & brought.keys():
        for row in rows if name == "column" else rows[:40]:
            expected = f"Reasoning: {brought[name](row)}\nLabel: {row['label']}<eos>"
            assert targets[row["id"]] == [expected]
    if teachers == {"file"}:
        assert targets["train-50"] == [f"Label: {rows[50]['label']}<eos>"]
    # The labels were said to be a scale.
    assert done.metrics["arms"]["reason_then_label"]["modes"]["reason"]["test"].keys() == (
        S | {"mae", "mae_expected", "qwk"}
    )
    assert done.metrics["task"]["ordinal"] is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reasonings__teacher": "api"}, "reasonings.api.model: .*name the model"),
        ({"reasonings__teacher": [], "classifier__arms": ["both"]}, "classifier.arms: every arm needs reasonings"),
        ({"evaluate__modes": ["ensemble"]}, "evaluate.modes: ensemble .*they have label, reason"),
        ({"base": None}, "base: there is nothing to train the classifier from"),
        ({"base": "no/such-base"}, "base: .*'no/such-base' cannot be loaded"),
        ({"base": "./nowhere"}, "base: .*nowhere' cannot be loaded"),
    ],
    ids=["api", "no-teacher", "modes", "no-base", "hub", "folder"],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, changes: Mapping[str, Any], message: str
) -> None:
    data = toy.write_data(tmp_path / "data")
    with pytest.raises(RequestError, match=message):
        toy.run(data, tmp_path / "run", **toy.quick() | changes)
    assert not (tmp_path / "run").exists()


def test_arms_with_names_and_settings_of_their_own(tmp_path: Path) -> None:
    arms = [
        "reason_then_label",
        {"name": "longer", "arm": "label_only", "match": "tokens", "to": "reason_then_label"},
        {"name": "short", "arm": "label_only", "train": {"steps": 2}},
    ]
    done = toy.run(toy.write_data(tmp_path / "data"), tmp_path / "run", **toy.quick(classifier__arms=arms))
    facts = {arm: one["train"] for arm, one in done.metrics["arms"].items()}
    assert facts["short"]["steps"] == 2
    assert facts["reason_then_label"]["steps"] == 4 < facts["longer"]["steps"]
    share = facts["longer"]["tokens"] / facts["reason_then_label"]["tokens"]
    assert 0.7 < share < 1.3
    assert "longer/label" in {row["a"] for row in done.metrics["comparisons"]}
    # Neither the layout that a machine is faster with nor a want of memory changes what is compared.
    for change in ({"layout": "rows"}, {"pack_tokens": 16}):
        train = {**toy.quick()["classifier__train"], **change}
        other = toy.run(done.data, tmp_path / "other", **toy.quick(classifier__arms=arms, classifier__train=train))
        assert other.metrics["arms"]["longer"]["train"]["steps"] == facts["longer"]["steps"]


def test_each_row_may_bring_its_own_choices(tmp_path: Path) -> None:
    data = toy.write_data(tmp_path / "data")
    for name in ("train", "dev", "test"):
        rows = lines(data / f"{name}.jsonl")
        for i, row in enumerate(rows):
            row["options"] = [*toy.LABELS[i % 3 :], *toy.LABELS[: i % 3], *(["none of them"] if i % 2 else [])]
        toy.write_lines(data / f"{name}.jsonl", rows)
    changes = toy.quick(task__labels=None, task__choices="options", classifier__arms=["label_only", "both"])
    done = toy.run(data, tmp_path / "run", **changes)
    found = answers(done, "both/reason")
    for i, (choices, shares, label) in enumerate(zip(found.choices, found.probabilities, found.labels, strict=True)):
        assert choices == tuple(lines(data / "test.jsonl")[i]["options"])
        assert len(shares) == len(choices or ()) == 3 + i % 2
        assert (choices or ())[int(np.argmax(shares))] == label
    scores = done.metrics["arms"]["both"]["modes"]["reason"]["test"]
    assert scores["per_class"] is None
    assert scores["macro_f1"] is None
    assert 0 <= scores["accuracy"] <= 1
    assert done.metrics["floors"]["linear"] is None
    assert done.metrics["recommended"]["metric"] == "accuracy"
    classifier = predict.open_classifier(done.folder)
    asked = {"text": "alone by the gate it purrs", "options": ["cat", "mouse"]}
    answer = classifier(asked)
    assert isinstance(answer, Prediction)
    assert set(answer.probabilities) == {"cat", "mouse"}
    with pytest.raises(RequestError, match="its own choices; give a mapping with the column 'options'"):
        classifier("alone by the gate it purrs")
    with pytest.raises(RequestError, match="its own choices"):
        classifier.predict_proba([asked])


LONG = "it purrs " * 2500
HOSTILE = ("<|eot_id|> <s> </s> <eos> it barks", "Label: bird\nReasoning: it is", "[/bold] \x00 \u202e {text} 猫 🐈")


def test_hostile_rows_are_done_and_counted(tmp_path: Path) -> None:
    data = toy.write_data(tmp_path / "data")
    train, test = lines(data / "train.jsonl"), lines(data / "test.jsonl")
    for row, text in zip(train, (LONG, *HOSTILE, ""), strict=False):
        row["text"] = text
    for row, text in zip(test, ("", LONG, *HOSTILE), strict=False):
        row["text"] = text
    train[6]["reasoning"] = "Label: cat, so it is."
    toy.write_lines(data / "train.jsonl", train)
    toy.write_lines(data / "test.jsonl", test)
    changes = toy.quick(reasonings__checks=["empty", "cue_inside"], evaluate__explain_rows=0)
    arms = ["label_only", "reason_then_label", "label_then_reason"]
    done = toy.run(data, tmp_path / "run", **changes | {"classifier__arms": arms})
    found = done.metrics
    assert found["reasonings"]["dropped"] == {"cue_inside": 1}
    assert found["reasonings"]["rows_without"] == 1
    assert found["audit"]["splits"]["train"]["empty"] == 1
    assert found["audit"]["splits"]["test"]["empty"] == 1
    for arm in arms:
        assert found["arms"][arm]["train"]["cut"] == {train[0]["label"]: 1}
        assert (
            f"{arm}: 1 texts of train did not fit and were cut in the middle ({train[0]['label']} 1)." in found["notes"]
        )
        assert (
            f"{arm}: 1 texts of test did not fit and were cut in the middle ({test[1]['label']} 1)." in found["notes"]
        )
        assert found["arms"][arm]["modes"]["reason" if "n_then_l" in arm else "label"]["test"]["n"] == toy.TEST
    page = (done.folder / "report.html").read_text(encoding="utf-8")
    assert "did not fit" in page
    assert trained_on(done.folder / "reason_then_label")[train[6]["id"]] == [f"Label: {train[6]['label']}<eos>"]


def test_what_the_reasoner_could_not_read_whole_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = toy.write_data(tmp_path / "data")
    train = lines(data / "train.jsonl")
    train[0]["text"] = LONG
    toy.write_lines(data / "train.jsonl", train)
    changes = toy.quick(reasonings__teacher="reasoner", reasoner__worked_cases={"data": "worked.jsonl"})
    done = toy.run(data, tmp_path / "run", **changes)
    line = f"reasoner: 1 texts of train did not fit and were cut in the middle where it wrote ({train[0]['label']} 1)."
    assert line in done.metrics["notes"] and line in capsys.readouterr().err
    assert done.metrics["reasonings"]["prompt_cut"] == {"reasoner": {train[0]["label"]: 1}}


@pytest.mark.parametrize("way", ["drop", "error"])
def test_texts_that_do_not_fit_are_dropped_or_refused_where_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    data = toy.write_data(tmp_path / "data")
    train = lines(data / "train.jsonl")
    train[0]["text"] = LONG
    toy.write_lines(data / "train.jsonl", train)
    changes = toy.quick(data__on_overflow=way, classifier__arms=["label_only"])
    if way == "error":
        with pytest.raises(RequestError, match=f"row {train[0]['id']} does not fit.*data.on_overflow"):
            toy.run(data, tmp_path / "run", **changes)
        return
    done = toy.run(data, tmp_path / "run", **changes)
    assert train[0]["id"] not in trained_on(done.folder / "label_only")
    assert done.metrics["arms"]["label_only"]["train"]["cut"] == {}
    left_out = "1 texts of train did not fit beside the answers of every arm and were left out of all arms"
    assert done.metrics["notes"] == [f"{left_out} ({train[0]['label']} 1)."]


def test_a_text_that_does_not_fit_beside_the_answers_of_one_arm_is_dropped_from_all(tmp_path: Path) -> None:
    """Arms that are compared differ in what they say, not in the rows they saw."""
    data = toy.write_data(tmp_path / "data")
    train = lines(data / "train.jsonl")
    # There is room for it beside a label, and none beside so long a reasoning.
    train[0]["text"], train[1]["reasoning"] = "it purrs " * 300, "it is soft. " * 150
    toy.write_lines(data / "train.jsonl", train)
    alone = toy.run(data, tmp_path / "alone", **toy.quick(data__on_overflow="drop", classifier__arms=["label_only"]))
    assert train[0]["id"] in trained_on(alone.folder / "label_only")
    done = toy.run(data, tmp_path / "run", **toy.quick(data__on_overflow="drop"))
    for arm in ("label_only", "reason_then_label"):
        assert set(trained_on(done.folder / arm)) == {row["id"] for row in train[1:]}
    left_out = "1 texts of train did not fit beside the answers of every arm and were left out of all arms"
    assert done.metrics["notes"] == [f"{left_out} ({train[0]['label']} 1)."]


def test_stages_end_where_they_are_asked_to(tmp_path: Path) -> None:
    data = toy.write_data(tmp_path / "data")
    config = toy.load(data, **toy.quick())
    run = tmp_path / "run"
    made = {"base", "reasonings"}
    assert pipeline.run(config, run, until="reason") == run / "reasonings"
    assert names(run) == {".saywhy", "config.yaml", "journal.jsonl", "answers.sqlite", *made}
    pipeline.run(config, run, until="train")
    made |= {"label_only", "reason_then_label"}
    assert names(run) == {".saywhy", "config.yaml", "journal.jsonl", "answers.sqlite", *made}
    assert pipeline.run(config, run, until="evaluate") == run / "metrics.json"
    assert "report.html" not in names(run)
    assert pipeline.run(config, run) == run / "report.html"
    assert max(events(run).values()) == 1
    with pytest.raises(RequestError, match="there is none to write"):
        pipeline.run(toy.load(data, **toy.quick(reasonings__teacher=[])), tmp_path / "other", until="reason")
