"""The whole method on tasks of another shape: questions whose answers are each row's own, and pairs of texts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import saywhy
import toy
from saywhy import evaluate, predict, store
from saywhy.data import read
from saywhy.prompts import row_pieces, row_question
from saywhy.records import Task

# What each place holds; a question asks for one of them, among others that are wrong.
HOLDS = {
    "a lake": "still water",
    "a barn": "dry hay",
    "a church": "an old organ",
    "a harbour": "small boats",
    "a kitchen": "a hot stove",
    "a library": "many books",
}
# Which position is right: the third most often in train, the first in test.
RIGHT = {"train": (2, 2, 0, 2, 1), "dev": (0, 1, 2), "test": (0, 0, 2, 1)}


def questions(split: str, count: int) -> list[toy.Record]:
    """Questions with three or four answers, among them once what stands there twice and once what has a space."""
    places = list(HOLDS)
    made = []
    for at in range(count):
        place = places[at % len(places)]
        wrong = [HOLDS[other] for other in places if other != place][at % 2 :][: 3 + at % 2]
        position = RIGHT[split][at % len(RIGHT[split])]
        choices = [*wrong[:position], HOLDS[place], *wrong[position : 2 + at % 2]]
        reasoning = f"One goes to {place} and finds it there."
        made.append(
            {"stem": f"{at}: what does {place} hold?", "choices": choices, "answer": HOLDS[place], "why": reasoning}
        )
    made[0]["choices"] = [f" {choice}" for choice in made[0]["choices"]] * 2
    return made


def test_questions_with_their_own_answers_go_the_whole_way(tmp_path: Path, base: Path) -> None:
    for split, count in (("train", 20), ("dev", 6), ("test", 8)):
        toy.write_lines(tmp_path / f"{split}.jsonl", questions(split, count))
    task = {"name": "cqa", "instruction": "Which answer fits?", "text": "stem", "label": "answer", "choices": "choices"}
    done = toy.run(tmp_path, tmp_path / "run", **toy.quick(
        task=task, data__id=None, reasonings__column="why", classifier__arms=["label_only", "both"],
        evaluate__encoder=str(base),
    ))  # fmt: skip
    found = done.metrics
    assert found["task"]["labels"] == [] and found["recommended"]["metric"] == "accuracy"
    every = [
        mode[split] for arm in found["arms"].values() for mode in arm["modes"].values() for split in ("dev", "test")
    ]
    assert len(every) == 8
    for scores in [*filter(None, every), found["floors"]["majority"]]:
        for name in ("per_class", "confusion", "macro_f1", "mean_recall", "recall_at_fpr"):
            assert scores[name] is None, name
        assert 0 <= scores["accuracy"] <= 1 and scores["nll"] > 0
    assert {row["metric"] for row in found["comparisons"]} == {"accuracy"}
    assert (found["floors"]["linear"], found["floors"]["encoder"]) == (None, None)
    assert any(note.startswith("There is no floor of an encoder") for note in found["notes"])
    task_of_run = predict.read_task(done.folder / "both")
    majority = evaluate.load_answers(done.folder / "predictions" / "floors-majority-test.parquet", task_of_run)
    positions = [own.index(label) for own, label in zip(majority.choices, majority.labels, strict=True) if own]
    assert positions == [2] * 8 and [len(own or ()) for own in majority.choices] == [3, 4] * 4
    assert found["floors"]["majority"]["accuracy"] == 0.25, "the third is right in two of eight"
    page = (done.folder / "report.html").read_text(encoding="utf-8")
    assert "There is no floor of an encoder" in page
    asked = {"stem": "what does a lake hold?", "choices": ["still water", "dry hay"]}
    assert set(saywhy.load(done.folder)(asked).probabilities) == set(asked["choices"])


LABELS = ("yes", "maybe", "no")


def pairs(split: str, count: int) -> list[toy.Record]:
    made = []
    for at in range(count):
        place, other = toy.PLACES[at % 8], toy.PLACES[(at + 1) % 8]
        label = LABELS[at % 3]
        said = {"yes": f"it is by the {place}", "no": f"it is by the {other}", "maybe": "it is happy"}[label]
        why = {"yes": "Both name one place.", "no": "They name two places.", "maybe": "Nothing is said of that."}[label]
        made.append({"premise": f"{split} {at}: it is by the {place}", "hypothesis": said, "gold": label, "why": why})
    return made


def test_pairs_of_texts_fill_a_template(tmp_path: Path) -> None:
    splits = {"train": pairs("train", 24), "dev": pairs("dev", 9), "test": pairs("test", 12)}
    # Far longer than the model reads: it is cut, and the hypothesis is not.
    splits["train"][3]["premise"] = "far away " * 2000
    splits["test"][1]["premise"] = "{hypothesis} "
    for split, rows in splits.items():
        toy.write_lines(tmp_path / f"{split}.jsonl", rows)
    cases = [
        {"question": f"Premise: {row['premise'][:40]}\nHypothesis: {row['hypothesis']}", **row}
        for row in splits["train"]
    ]
    toy.write_lines(tmp_path / "cases.jsonl", cases)
    text = "Premise: {premise}\nHypothesis: {hypothesis}"
    task = {"name": "nli", "instruction": "Does it follow?", "labels": list(LABELS), "text": text, "label": "gold"}
    done = toy.run(tmp_path, tmp_path / "run", **toy.quick(
        task=task, data__id=None, reasonings__teacher="reasoner",
        reasoner__worked_cases=[{"data": "cases.jsonl", "answer": "gold", "reasoning": "why", "of_this_task": True}],
    ))  # fmt: skip
    data, found = read(done.config), done.metrics
    assert row_pieces(data.test[0])[::2] == ("Premise: ", "\nHypothesis: ", "")
    assert row_pieces(data.test[1])[1] == "{hypothesis} ", "a value is never a template"
    asked = "".join(row_question(data.task, data.train[0]))
    assert asked == (
        "Question: Does it follow?\nPremise: train 0: it is by the door\nHypothesis: it is by the door\nAnswer: yes"
    )
    assert found["arms"]["label_only"]["train"]["cut"] == {"yes": 1}
    for arm, mode in (("label_only", "label"), ("reason_then_label", "reason")):
        scores = found["arms"][arm]["modes"][mode]["test"]
        assert list(scores["per_class"]) == list(LABELS) and scores["n"] == 12
        assert Counter(row["gold"] for row in splits["test"]) == {
            label: one["support"] for label, one in scores["per_class"].items()
        }
    saved = store.read_table(done.folder / "predictions" / "floors-linear-test.parquet").to_pylist()
    assert saved[0]["text"] == "Premise: test 0: it is by the door\nHypothesis: it is by the door"
    classifier = saywhy.load(done.folder / "label_only")
    pair = {column: splits["test"][0][column] for column in ("premise", "hypothesis")}
    assert classifier(pair) == classifier(saved[0]["text"])
    assert predict.read_task(done.folder / "label_only") == Task("nli", "Does it follow?", LABELS, {}, False, text)
    assert "Hypothesis: " in (done.folder / "report.html").read_text(encoding="utf-8")
