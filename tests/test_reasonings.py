"""Stage 2: every candidate keeps its row, the checks decide, and parts that stand are not written again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import toy
from saywhy import reasonings, store
from saywhy.checks import Check
from saywhy.config import Reasonings, Sampling
from saywhy.pipeline import worked_lessons
from saywhy.reasoner import lessons, teacher
from saywhy.records import Candidate, RequestError, Row, Task, WorkedCase, WorkError
from saywhy.teachers import Draft, Question, Teacher
from saywhy.teachers import given as given_teacher

pytest_plugins = ("runs",)

TASK = Task("t", "Which one?", ("a", "b"), {"a": "the first"})
ROWS = tuple(Row(f"r{i}", f"text {i}", "ab"[i % 2]) for i in range(5))


def writes(name: str) -> Teacher:
    """A teacher that writes whose row and which candidate it was asked for."""
    return lambda questions: [Draft(f"{name} {q.row_id} {q.index}", tokens=3) for q in questions]


def about(word: str) -> Check:
    def named(task: Task, row: Row, candidate: Candidate) -> bool:
        return word in candidate.reasoning

    named.__name__ = f"about_{word}"
    return named


def write(folder: Path, teachers: dict[str, Teacher], checks: Sequence[Check] = (), **settings: object) -> None:
    folder.mkdir(exist_ok=True)
    told = Reasonings.model_validate(settings)
    reasonings.write(folder, TASK, ROWS, teachers, checks, told, "hash")


def table(folder: Path) -> list[dict[str, object]]:
    return [row for path in sorted(folder.glob("part-*")) for row in store.read_table(path).to_pylist()]


def test_every_candidate_keeps_its_row_and_its_reason(tmp_path: Path) -> None:
    write(tmp_path, {"reasoner": writes("w")}, [about("r3"), about("0")], candidates=3)
    rows = table(tmp_path)
    assert [(row["id"], row["index"]) for row in rows] == [(f"r{i}", k) for i in range(5) for k in range(3)]
    assert all(row["reasoning"] == f"w {row['id']} {row['index']}" for row in rows)
    reasons = {(row["id"], row["index"]): row["dropped_because"] for row in rows}
    assert reasons["r3", 2] == "about_r3"
    # r0 is named in all of its candidates, the number 0 only in the first of the others.
    assert reasons["r0", 1] == "about_0"
    assert reasons["r1", 0] == "about_0"
    assert reasons["r1", 1] == ""
    assert reasons["r1", 2] == "enough_kept"
    assert all(row["kept"] == (row["dropped_because"] == "") for row in rows)
    assert reasonings.read_kept(tmp_path) == {row: (f"w {row} 1",) for row in ("r1", "r2", "r4")}


def test_the_parts_have_the_columns_of_the_contract(tmp_path: Path) -> None:
    write(tmp_path, {"reasoner": writes("w")}, sampling={"temperature": 0.3})
    row = table(tmp_path)[0]
    assert {"id", "reasoning", "teacher", "prompt_hash", "sampling", "tokens", "kept", "dropped_because"} <= row.keys()
    assert row["teacher"] == "reasoner"
    assert row["prompt_hash"] == "hash"
    assert json.loads(str(row["sampling"]))["temperature"] == 0.3


def test_what_is_given_stands_once_and_comes_before_or_after_what_is_written(tmp_path: Path) -> None:
    column = given_teacher({"r1": "  brought\n by the row "})
    write(tmp_path, {"column": column, "reasoner": writes("w")}, [about_nothing], candidates=2)
    of_row = [row for row in table(tmp_path) if row["id"] == "r1"]
    assert [row["teacher"] for row in of_row] == ["column", "reasoner", "reasoner"]
    assert of_row[0]["reasoning"] == "brought by the row"
    assert [row["kept"] for row in of_row] == [True, False, False]
    # A row that brings nothing has an empty draft, which a check drops, and the next teacher is heard.
    assert reasonings.read_kept(tmp_path)["r0"] == ("w r0 0",)


def about_nothing(task: Task, row: Row, candidate: Candidate) -> bool:
    return not candidate.reasoning


def test_a_part_that_stands_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasonings, "ROWS_PER_PART", 2)
    write(tmp_path, {"reasoner": writes("first")})
    assert len(list(tmp_path.glob("part-*"))) == 3
    (tmp_path / "part-00001.parquet").unlink()
    asked: list[str] = []

    def second(questions: Sequence[Question]) -> list[Draft]:
        asked.extend(q.row_id for q in questions)
        return writes("second")(questions)

    write(tmp_path, {"reasoner": second}, candidates=1)
    assert asked == ["r2", "r3"]
    kept = reasonings.read_kept(tmp_path)
    assert kept["r1"] == ("first r1 0",)
    assert kept["r2"] == ("second r2 0",)


def test_no_reasoning_kept_is_an_error_that_names_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"no reasoning is kept.*about_w 20.*reasonings\.checks"):
        write(tmp_path, {"reasoner": writes("w")}, [about("w")])
    assert len(table(tmp_path)) == 20


@given(
    verdicts=st.lists(st.lists(st.booleans(), min_size=1, max_size=4), min_size=1, max_size=6),
    per_row=st.integers(1, 3),
)
def test_kept_and_dropped_are_all_candidates(verdicts: list[list[bool]], per_row: int) -> None:
    def bad(task: Task, row: Row, candidate: Candidate) -> bool:
        return not verdicts[int(row.id)][candidate.index]

    for name, good in enumerate(verdicts):
        row = Row(str(name), "text", "a")
        drafts = [Candidate(row.id, "words", "reasoner", index) for index in range(len(good))]
        judged = reasonings.verdicts(TASK, row, drafts, [bad], per_row)
        kept = [one for one in judged if one.kept]
        assert len(kept) == min(per_row, sum(good))
        assert all(good[one.index] for one in kept)
        dropped = [one.dropped_because for one in judged if not one.kept]
        assert dropped.count("bad") == good.count(False)
        assert dropped.count("enough_kept") == max(0, sum(good) - per_row)
        assert len(kept) + len(dropped) == len(drafts)


def test_the_reasoner_is_asked_in_writing_as_it_was_in_training() -> None:
    """Worked cases of the task bring its instruction and descriptions; others are put as they are."""
    asked: list[Question] = []

    def note(questions: Sequence[Question]) -> list[Draft]:
        asked.extend(questions)
        return [Draft("x") for _ in questions]

    case = WorkedCase("text 0", "a", "because")
    (taught,) = lessons(TASK, [case], of_this_task=True)
    settings = Reasonings(candidates=1)
    reasonings._candidates(TASK, ROWS[:1], {"reasoner": note}, [], settings)
    assert "".join(taught.pieces) == f"Question: {asked[0].question}\nAnswer: {asked[0].answer}"
    assert asked[0].question == "Which one?\ntext 0"
    assert asked[0].answer == "a: the first"
    (plain,) = lessons(TASK, [case], of_this_task=False)
    assert "".join(plain.pieces) == "Question: text 0\nAnswer: a"


def test_a_reasoner_writes_the_same_in_any_company(quick_run: toy.Done) -> None:
    sampling = Sampling(temperature=1.0, max_tokens=12)
    write_some = teacher(quick_run.folder / "reasoner", sampling, 3, 4096)
    rows = toy.records()["train"][:6]
    questions = [Question(row["id"], row["text"], row["label"], index) for row in rows for index in (0, 1)]
    together = write_some(questions)
    assert write_some(questions[::-1])[::-1] == together
    assert [write_some([question])[0] for question in questions] == together
    # One row's candidates are drawn apart, and another seed draws others.
    assert len({draft.reasoning for draft in together}) > len(rows)
    assert teacher(quick_run.folder / "reasoner", sampling, 4, 4096)(questions) != together


def test_a_trained_reasoner_writes_what_it_was_taught(finished: toy.Done) -> None:
    greedy = teacher(finished.folder / "reasoner", Sampling(temperature=0, max_tokens=24), 0, 4096)
    rows = toy.records()["train"]
    written = greedy([Question(row["id"], row["text"], row["label"], 0) for row in rows])
    right = sum(draft.reasoning == row["reasoning"] for draft, row in zip(written, rows, strict=True))
    assert right >= 0.8 * len(rows)
    assert not any(draft.cut for draft in written[:3])


def test_a_classifier_is_no_reasoner(finished: toy.Done) -> None:
    with pytest.raises(RequestError, match="holds a classifier"):
        teacher(finished.folder / "label_only", Sampling(), 0, 4096)


def test_a_text_that_is_too_long_leaves_room_for_what_is_written(finished: toy.Done) -> None:
    """The context is 1,024 tokens: text and reasoning together must not pass it, whatever was trained."""
    from saywhy.lm.folder import load
    from saywhy.reasoner import _leaving_room

    _, lm = load(finished.folder / "reasoner")
    encoder = _leaving_room(lm, 300).encoder
    assert encoder.prompt.room + len(encoder.before) + len(encoder.after) + 300 < 1024
    write_some = teacher(finished.folder / "reasoner", Sampling(temperature=0, max_tokens=300), 0, 4096)
    (draft,) = write_some([Question("long", "purrs " * 3000, "cat", 0)])
    assert draft.tokens <= 300


def test_lessons_of_the_config_are_its_worked_cases(finished: toy.Done) -> None:
    from saywhy.data import read

    found = worked_lessons(finished.config, read(finished.config))
    assert len(found) == len(toy.worked_cases())
    assert found[0].targets[0][1].text.strip() == toy.worked_cases()[0]["reasoning"]
