"""Stage 2: every candidate keeps its row, the checks decide, and what was answered once is never asked again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import toy
from saywhy import journal, reasonings, store
from saywhy.checks import Check
from saywhy.config import Reasonings, Sampling
from saywhy.pipeline.stage import worked_lessons
from saywhy.prompts import reasoner_pieces
from saywhy.reasoner import lessons, teacher
from saywhy.reasonings import Job, judging, parts, writing
from saywhy.records import Candidate, Figures, RequestError, Row, Task, WorkedCase, WorkError
from saywhy.teachers import Draft, Question, Teacher, Writer
from saywhy.teachers import given as given_teacher

pytest_plugins = ("runs",)

TASK = Task("t", "Which one?", ("a", "b"), {"a": "the first"})
ROWS = tuple(Row(f"r{i}", f"text {i}", "ab"[i % 2]) for i in range(5))
Says = Callable[[Question], Draft]


def says(name: str) -> Says:
    """Write whose row and which candidate was asked for."""
    return lambda q: Draft(f"{name} {q.row_id} {q.index}", tokens=3)


def writer(name: str, say: Says, asked: list[str] | None = None, **changes: object) -> Writer:
    """A teacher that answers each question by a function, and notes what it was asked."""

    def write(questions: Sequence[Question]) -> Iterator[tuple[int, Draft]]:
        for at, question in enumerate(questions):
            if asked is not None:
                asked.append(f"{question.row_id} {question.index}")
            yield at, say(question)

    def begin() -> Teacher:
        return write

    return replace(Writer(name, {"name": name}, begin), **changes)  # type: ignore[arg-type]


def brought(reasonings: dict[str, str]) -> Writer:
    return Writer("column", {}, lambda: given_teacher(reasonings), given=True)


def about(word: str) -> Check:
    def named(task: Task, row: Row, candidate: Candidate) -> bool:
        return word in candidate.reasoning

    named.__name__ = f"about_{word}"
    return named


def write(
    folder: Path,
    writers: Sequence[Writer],
    checks: Sequence[Check] = (),
    rows: Sequence[Row] = ROWS,
    merger: Writer | None = None,
    measured: judging.Measured | None = None,
    **settings: object,
) -> list[dict[str, object]]:
    """Do stage 2 in a folder, beside the journal of earlier calls, and give its candidates."""
    out = folder / "reasonings"
    out.mkdir(exist_ok=True)
    told = Reasonings.model_validate(settings)
    with journal.opened(folder / journal.FILE) as book:
        reasonings.write(out, Job(TASK, rows, writers, checks, told, merger), book, lambda: measured)
    return table(out)


def again(folder: Path) -> None:
    """Forget the parts, as another setting of the checks does."""
    for path in (folder / "reasonings").iterdir():
        path.unlink()


def table(folder: Path) -> list[dict[str, object]]:
    return [row for path in sorted(folder.glob("part-*")) for row in store.read_table(path).to_pylist()]


def test_every_candidate_keeps_its_row_and_its_reason(tmp_path: Path) -> None:
    rows = write(tmp_path, [writer("w", says("w"))], [about("r3"), about("0")], candidates=3, max_tries=1)
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
    assert reasonings.read_kept(tmp_path / "reasonings") == {row: (f"w {row} 1",) for row in ("r1", "r2", "r4")}


def test_the_parts_have_the_columns_of_the_contract(tmp_path: Path) -> None:
    row = write(tmp_path, [writer("w", says("w"), sampling={"temperature": 0.3})])[0]
    columns = {"id", "label", "reasoning", "teacher", "prompt_hash", "sampling", "tokens", "kept", "dropped_because"}
    assert columns | set(parts.FIGURES) <= row.keys()
    assert (row["id"], row["label"], row["teacher"]) == ("r0", "a", "w")
    assert row["prompt_hash"] == store.hash_of(reasoner_pieces("Which one?\ntext 0", "a: the first"))
    assert json.loads(str(row["sampling"]))["temperature"] == 0.3


def test_what_is_given_stands_once_and_comes_before_or_after_what_is_written(tmp_path: Path) -> None:
    column = brought({"r1": "  brought\n by the row "})
    rows = write(tmp_path, [column, writer("w", says("w"))], [about_nothing], candidates=2)
    of_row = [row for row in rows if row["id"] == "r1"]
    assert [row["teacher"] for row in of_row] == ["column", "w", "w"]
    assert of_row[0]["reasoning"] == "brought by the row"
    assert [row["kept"] for row in of_row] == [True, False, False]
    # A row that brings nothing has an empty draft, which a check drops, and the next teacher is heard.
    assert reasonings.read_kept(tmp_path / "reasonings")["r0"] == ("w r0 0",)


def about_nothing(task: Task, row: Row, candidate: Candidate) -> bool:
    return not candidate.reasoning


def test_a_row_without_a_kept_one_is_asked_again_with_other_candidates(tmp_path: Path) -> None:
    asked: list[str] = []
    rows = write(tmp_path, [writer("w", says("w"), asked)], [about("r2"), about("r4 0"), about("r4 1")], candidates=2)
    assert sorted(asked[:10]) == [f"r{i} {k}" for i in range(5) for k in range(2)]
    # r2 never passes and is asked three times in all, r4 passes the second time.
    assert sorted(asked[10:]) == ["r2 2", "r2 3", "r2 4", "r2 5", "r4 2", "r4 3"]
    assert [row["index"] for row in rows if row["id"] == "r4" and row["kept"]] == [2]
    assert not any(row["kept"] for row in rows if row["id"] == "r2")
    told = reasonings.summary(tmp_path / "reasonings")
    assert (told["rows"], told["rows_without"], told["candidates"], told["kept"]) == (5, 1, 16, 4)
    assert told["by_class"]["a"]["without"] == 1 and told["by_class"]["b"]["without"] == 0
    assert told["by_class"]["a"]["dropped"]["about_r2"] == 6


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    first: list[str] = []
    write(tmp_path, [writer("w", says("w"), first)], [about("r2")], candidates=2)
    again(tmp_path)
    second: list[str] = []
    # Another verdict asks for what it needs beyond what is there, and for nothing else.
    rows = write(tmp_path, [writer("w", says("other words"), second)], [about("r2"), about("r1")], candidates=2)
    assert sorted(second) == ["r1 2", "r1 3", "r1 4", "r1 5"]
    assert {row["reasoning"] for row in rows if row["id"] == "r0"} == {"w r0 0", "w r0 1"}


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        ({}, []),
        ({"identity": {"name": "w", "seed": 1}}, ["r0", "r1", "r2", "r3", "r4"]),
        ({"text": "another text"}, ["r3"]),
        ({"label": "a"}, ["r3"]),
    ],
)
def test_a_change_asks_again_for_exactly_what_it_touches(
    tmp_path: Path, change: dict[str, object], touched: list[str]
) -> None:
    write(tmp_path, [writer("w", says("w"))], candidates=1)
    again(tmp_path)
    asked: list[str] = []
    identity = change.pop("identity", {"name": "w"})
    rows = [replace(row, **change) if row.id == "r3" else row for row in ROWS]  # type: ignore[arg-type]
    write(tmp_path, [writer("w", says("w"), asked, identity=identity)], rows=rows, candidates=1)
    assert [name.split()[0] for name in sorted(asked)] == touched


def test_a_part_that_stands_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "ROWS_PER_PART", 2)
    written: list[str] = []

    def noted(path: Path, *told: object) -> None:
        written.append(path.name)
        parts.write_part(path, *told)  # type: ignore[arg-type]

    monkeypatch.setattr(writing, "write_part", noted)
    write(tmp_path, [writer("w", says("first"))])
    every = ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert written == every
    before = table(tmp_path / "reasonings")
    (tmp_path / "reasonings" / every[1]).unlink()
    written.clear()
    assert write(tmp_path, [writer("w", says("second"))]) == before
    assert written == [every[1]]


def test_parts_that_stand_are_judged_with_what_all_others_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question of a later part had failed before the kill: scorers learn from its answer, twins are counted in it."""
    monkeypatch.setattr(writing, "ROWS_PER_PART", 2)
    measured = judging.Measured("scorers", lambda: lambda pairs: [Figures(support=1.0) for _ in pairs])
    alike = "a sentence of five words"

    def say(q: Question) -> Draft:
        return Draft("", failed="timeout") if q.row_id == "r4" else Draft(alike)

    write(tmp_path, [writer("w", say, remote=True)], measured=measured, candidates=1, max_tries=1)
    assert table(tmp_path / "reasonings")[0]["twins"] == 3
    (tmp_path / "reasonings" / "part-00002.parquet").unlink()
    rows = write(tmp_path, [writer("w", lambda q: Draft(alike), remote=True)], measured=measured, candidates=1)
    assert [row["twins"] for row in rows] == [4] * len(ROWS)
    # Other scorers measure all of them anew, also where every part stands.
    other = judging.Measured("others", lambda: lambda pairs: [Figures(support=2.0) for _ in pairs])
    rows = write(tmp_path, [writer("w", lambda q: Draft(alike), remote=True)], measured=other, candidates=1)
    assert [row["support"] for row in rows] == [2.0] * len(ROWS)


def test_parts_hold_a_thousand_rows_in_the_order_of_the_data(tmp_path: Path) -> None:
    rows = [Row(f"row {i}", f"text {i}", "ab"[i % 2]) for i in range(2300)]
    write(tmp_path, [writer("w", says("w"))], rows=rows, candidates=1)
    found = sorted((tmp_path / "reasonings").glob("part-*"))
    each = [store.read_table(path).column("id").to_pylist() for path in found]
    assert [len(part) for part in each] == [1000, 1000, 300]
    assert [name for part in each for name in part] == [row.id for row in rows]


def test_no_reasoning_kept_is_an_error_that_names_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"no reasoning is kept.*about_w 20.*reasonings\.checks"):
        write(tmp_path, [writer("w", says("w"))], [about("w")], max_tries=1)
    assert len(table(tmp_path / "reasonings")) == 20


def test_the_advice_where_nothing_is_kept_is_about_who_writes(tmp_path: Path) -> None:
    def cut_off(task: Task, row: Row, candidate: Candidate) -> bool:
        return True

    with pytest.raises(WorkError, match=r"\(empty 5\).*then look at what column brought, or loosen"):
        write(tmp_path, [brought({"r1": " "})])
    again(tmp_path)
    with pytest.raises(WorkError, match=r"then raise reasonings\.sampling\.max_tokens"):
        write(tmp_path, [writer("w", says("w"))], [cut_off], max_tries=1)


def failing(names: dict[str, int]) -> Says:
    """Fail as often as `names` says for a row before it is answered."""

    def say(q: Question) -> Draft:
        if names.get(q.row_id, 0) > 0:
            names[q.row_id] -= 1
            return Draft("", failed="timeout", seconds=1.0)
        return Draft(f"said {q.row_id}")

    return say


def test_what_would_fail_again_is_put_once_a_run(tmp_path: Path) -> None:
    """It may cost money: no more than was said before the start, however often candidates are gone through."""
    asked: list[str] = []

    def say(q: Question) -> Draft:
        final = q.row_id == "r2"
        return Draft("", failed="went into thoughts", final=True) if final else Draft(f"said {q.row_id} {q.index}")

    for run in (1, 2):
        asked.clear()
        job = [reasonings.begun_once(writer("w", say, asked, remote=True))]
        write(tmp_path, job, [about_nothing], candidates=2, top_up=1.0)
        assert sorted(one for one in asked if one.startswith("r2")) == [f"r2 {k}" for k in range(6)], f"run {run}"
        again(tmp_path)


MANY = tuple(Row(f"r{i}", f"text {i}", "ab"[i % 2]) for i in range(60))


def refusing(names: set[str]) -> Says:
    def say(q: Question) -> Draft:
        if q.row_id in names:
            return Draft("", failed="refused the question (400): strange words", final=True, doubtful=True)
        return Draft(f"said {q.row_id} {q.index}")

    return say


def remote(name: str, say: Says, asked: list[str] | None = None) -> Writer:
    return reasonings.begun_once(writer(name, say, asked, remote=True))


def test_a_teacher_that_never_answers_is_asked_about_few_rows(tmp_path: Path) -> None:
    asked: list[str] = []
    everything = {row.id for row in MANY}
    with pytest.raises(WorkError, match=r"w: no answer to any of the first 20 rows.*strange words; see how it is set"):
        write(tmp_path, [remote("w", refusing(everything), asked)], rows=MANY, candidates=4)
    assert len({one.split()[0] for one in asked}) == 20
    # Of few rows each has its reason.
    with pytest.raises(WorkError, match="Mostly there was no answer: refused the question"):
        write(tmp_path, [remote("w", refusing(everything))], rows=MANY[:9])


@pytest.mark.parametrize("refused", [range(5), range(10, 55), range(0, 60, 2)], ids=["first", "most", "every second"])
def test_rows_that_are_refused_do_not_end_it_now_or_after_a_kill(tmp_path: Path, refused: Sequence[int]) -> None:
    """Where it goes on after a kill only these are asked, and in a retry too: more in a row than anyone would count."""
    names = {f"r{i}" for i in refused}
    for run in range(3):
        asked: list[str] = []
        rows = write(tmp_path, [remote("w", refusing(names), asked)], rows=MANY, candidates=4)
        assert {row["id"] for row in rows if row["kept"]} == {row.id for row in MANY} - names
        assert len(asked) == len(set(asked))
        assert run == 0 or {one.split()[0] for one in asked} == names
        again(tmp_path)


def test_failures_are_recorded_and_asked_again(tmp_path: Path) -> None:
    asked: list[str] = []
    rows = write(
        tmp_path, [writer("w", failing({"r1": 1, "r2": 9}), asked, remote=True)], [about_nothing], candidates=1
    )
    verdicts = {(row["id"], row["index"]): row["dropped_because"] for row in rows}
    # What failed when it was written is asked again when it is judged, and then with other seeds.
    assert verdicts["r1", 0] == ""
    assert [verdicts["r2", k] for k in range(3)] == ["not_answered"] * 3
    with journal.opened(tmp_path / journal.FILE) as book:
        assert journal.failures(book) == {"timeout": 1 + 4}
    again(tmp_path)
    asked.clear()
    rows = write(tmp_path, [writer("w", says("w"), asked, remote=True)], [about_nothing], candidates=1)
    # What has an answer keeps it; what has none is asked.
    assert asked == ["r2 0"]
    assert {row["reasoning"] for row in rows if row["kept"]} == {*(f"said r{i}" for i in (0, 1, 3, 4)), "w r2 0"}


def test_a_part_whose_questions_failed_is_asked_again_once_the_server_works(tmp_path: Path) -> None:
    down = writer("w", lambda q: Draft("", failed="too long for the model"), remote=True)
    said = r"not_answered 5.*Mostly there was no answer: too long for the model; the same command asks"
    with pytest.raises(WorkError, match=said):
        write(tmp_path, [down], candidates=1, max_tries=1)
    rows = write(tmp_path, [writer("w", says("w"), remote=True)], candidates=1, max_tries=1)
    assert [row["kept"] for row in rows] == [True] * len(ROWS)


def test_a_remote_answer_is_kept_before_the_next_one_comes(tmp_path: Path) -> None:
    def dies(q: Question) -> Draft:
        if q.row_id == "r3":
            raise KeyboardInterrupt
        return Draft(f"said {q.row_id}")

    # A remote teacher is asked in the order of the rows.
    for remote, held in ((True, 3), (False, 0)):
        folder = tmp_path / str(remote)
        folder.mkdir()
        with pytest.raises(KeyboardInterrupt):
            write(folder, [writer("w", dies, remote=remote)], candidates=1)
        with journal.opened(folder / journal.FILE) as book:
            assert sum(one["answers"] or 0 for one in journal.spent(book).values()) == held


def test_groups_are_the_same_whatever_was_answered_before(tmp_path: Path) -> None:
    """A killed run asks the groups that are missing in the same company, so rounding cannot change a text."""
    groups: list[list[str]] = []

    def begin() -> Teacher:
        def write(questions: Sequence[Question]) -> Iterator[tuple[int, Draft]]:
            groups.append([q.row_id for q in questions])
            if len(groups) == 2:
                raise KeyboardInterrupt
            yield from ((at, Draft("x " + q.row_id)) for at, q in enumerate(questions))

        return write

    rows = [Row(f"r{i}", "text " * 9 * (i + 1), "ab"[i % 2]) for i in range(9)]
    one = Writer("w", {}, begin, at_once=4)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, [one], rows=rows, candidates=1)
    write(tmp_path, [one], rows=rows, candidates=1)
    assert groups == [["r8", "r7", "r6", "r5"], ["r4", "r3", "r2", "r1"], ["r4", "r3", "r2", "r1"], ["r0"]]


def test_a_teacher_begins_only_where_something_is_to_be_written(tmp_path: Path) -> None:
    began: list[str] = []

    def begin() -> Teacher:
        began.append("once")
        return writer("w", says("w")).begin()

    one = reasonings.begun_once(Writer("w", {}, begin, at_once=2))
    write(tmp_path, [one])
    assert began == ["once"]
    again(tmp_path)
    write(tmp_path, [reasonings.begun_once(Writer("w", {}, begin))])
    assert began == ["once"]


def test_several_teachers_are_merged_by_one(tmp_path: Path) -> None:
    seen: list[str] = []

    def merge(q: Question) -> Draft:
        seen.append("".join(q.pieces))
        return Draft(f"both say {q.row_id} {q.index}")

    writers = [
        brought({"r0": "a column", "r1": "b column"}),
        writer("w", lambda q: says("w")(q) if q.row_id != "r1" else Draft("")),
    ]
    rows = write(tmp_path, writers, [about_nothing], merger=writer("merge:m", merge), candidates=2)
    of = {
        name: [(row["teacher"], row["reasoning"], row["dropped_because"]) for row in rows if row["id"] == name]
        for name in ("r0", "r1", "r2")
    }
    assert of["r0"] == [
        ("column", "a column", "merged"),
        ("w", "w r0 0", "merged"),
        ("w", "w r0 1", "merged"),
        ("merge:m", "both say r0 0", ""),
        ("merge:m", "both say r0 1", "enough_kept"),
    ]
    # Where one of them alone wrote, its reasoning stands as it is.
    assert of["r1"][0] == ("column", "b column", "")
    assert of["r2"][0][0] == "column" and of["r2"][1] == ("w", "w r2 0", "")
    assert (
        seen[0] == "Question: Which one?\ntext 0\nAnswer: a: the first\nExplanation 1: a column\nExplanation 2: w r0 0"
    )


def both(first: str, second: str) -> list[Writer]:
    """Two that bring a reasoning for every row, and nothing more when they are asked again."""
    each = [brought({row.id: f"{text} of {row.id}" for row in ROWS}) for text in (first, second)]
    return [each[0], replace(each[1], name="file")]


def test_a_merger_is_asked_again_where_nothing_of_it_is_kept(tmp_path: Path) -> None:
    asked: list[str] = []
    merging = writer("merge:m", lambda q: Draft(f"sorry {q.index}" if q.index < 2 else f"made {q.index}"), asked)
    rows = write(tmp_path, both("one", "two"), [about("sorry")], merger=merging, candidates=4)
    assert sorted(asked) == sorted(f"{row.id} {k}" for row in ROWS for k in range(3))
    assert {(row["reasoning"], row["index"]) for row in rows if row["kept"]} == {("made 2", 2)}
    # What was merged stands there once, however often it was shown.
    assert sum(row["dropped_because"] == "merged" for row in rows) == 2 * len(ROWS)


def test_what_was_merged_is_judged_where_no_merged_one_is_kept(tmp_path: Path) -> None:
    merging = writer("merge:m", lambda q: Draft("sorry"))
    measured = judging.Measured("s", lambda: lambda pairs: [Figures(support=float("two" in text)) for _, text in pairs])
    rows = write(tmp_path, both("one", "two"), [about("sorry")], merger=merging, measured=measured)
    assert reasonings.read_kept(tmp_path / "reasonings") == {row.id: (f"two of {row.id}",) for row in ROWS}
    assert {row["dropped_because"] for row in rows} == {"", "enough_kept", "about_sorry"}


def test_what_a_merger_did_not_answer_stands_unmerged_until_it_does(tmp_path: Path) -> None:
    asked: list[str] = []
    merging = writer("merge:m", lambda q: Draft("", failed="timeout"), asked, remote=True)
    rows = write(tmp_path, both("one", "two"), merger=merging)
    assert {one.split()[1] for one in asked} == {"0"}, "what stands needs no other candidate"
    assert {row["reasoning"] for row in rows if row["kept"]} == {f"one of {row.id}" for row in ROWS}
    rows = write(tmp_path, both("one", "two"), merger=writer("merge:m", says("m"), remote=True))
    assert {row["reasoning"] for row in rows if row["kept"]} == {f"m {row.id} 0" for row in ROWS}


@pytest.mark.parametrize("given", [True, False])
def test_progress_ends_also_where_few_are_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: bool
) -> None:
    others = [brought({"r0": "a column"})]
    others.append(replace(brought({"r0": "a file"}), name="file") if given else writer("w", says("w")))
    write(tmp_path, others, merger=writer("merge:m", says("m")), candidates=2, checks=[])
    total = 15 if given else 5 + 10 + 10
    assert f"reasonings: written: {total} of {total} candidates" in capsys.readouterr().err


def test_progress_counts_what_a_merger_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: dict[str, list[float]] = {}

    @contextmanager
    def track(title: str, total: int, unit: str, show: bool = True) -> Iterator[Any]:
        bars[title] = [total, 0]

        def advance(done: int, tokens: float, note: str, before: bool = False) -> None:
            bars[title][1] += done

        yield advance

    monkeypatch.setattr(writing, "track", track)
    two = [writer("v", says("v")), writer("w", says("w"))]
    write(tmp_path, two, merger=writer("merge:m", says("m")), candidates=2)
    assert bars["reasonings: written"] == [5 * 2 * 3, 5 * 2 * 3]


def test_the_best_is_kept_by_support_and_then_by_likelihood(tmp_path: Path) -> None:
    known = {"w r0 0": (0.5, -2.0), "w r0 1": (0.9, -3.0), "w r0 2": (0.9, -1.0)}
    measured: list[str] = []

    def measure(pairs: Sequence[tuple[Row, str]]) -> list[Figures]:
        measured.extend(reasoning for _, reasoning in pairs)
        return [Figures(support=s, likelihood=p) for s, p in (known.get(text, (0.0, 0.0)) for _, text in pairs)]

    told = judging.Measured("scorers 1", lambda: measure)
    rows = write(tmp_path, [writer("w", says("w"))], [about("r4 0")], candidates=3, measured=told)
    assert [row["index"] for row in rows if row["id"] == "r0" and row["kept"]] == [2]
    assert [row["index"] for row in rows if row["id"] == "r1" and row["kept"]] == [0]
    assert [row["support"] for row in rows if row["id"] == "r0"] == [0.5, 0.9, 0.9]
    # Another verdict measures nothing again, other scorers everything.
    assert len(measured) == 15
    for identity, count in (("scorers 1", 15), ("scorers 2", 30)):
        again(tmp_path)
        write(tmp_path, [writer("w", says("w"))], candidates=3, measured=judging.Measured(identity, lambda: measure))
        assert len(measured) == count


def test_two_that_say_the_same_are_kept_once(tmp_path: Path) -> None:
    rows = write(
        tmp_path,
        [writer("w", lambda q: Draft(("Same  words", "same words", "others")[q.index]))],
        per_row=3,
        candidates=3,
    )
    assert [row["dropped_because"] for row in rows[:3]] == ["", "same_as_kept", ""]


def test_rare_classes_are_topped_up_with_other_reasonings(tmp_path: Path) -> None:
    rows = [Row(f"r{i}", f"text {i}", "b" if i in (3, 7) else "a") for i in range(12)]
    told = write(tmp_path, [writer("w", says("w"))], rows=rows, candidates=2, top_up=0.8)
    kept = reasonings.read_kept(tmp_path / "reasonings")
    each = {name: len(some) for name, some in kept.items()}
    # 10 of a and 2 of b: with 5 more, b has 7 of 17, 0.82 of an even split; with 4 it had 0.75.
    assert each == {**{f"r{i}": 1 for i in range(12)}, "r3": 4, "r7": 3}
    assert len(set(kept["r3"])) == 4
    assert reasonings.kept_weights(kept, 1) == {"r3": 4, "r7": 3}
    # Nobody else was asked for more.
    assert max(int(str(row["index"])) for row in told if row["label"] == "a") == 1


def test_rows_that_are_left_out_count_in_no_share(tmp_path: Path) -> None:
    rows = [Row(f"r{i}", f"text {i}", "b" if i < 6 else "a") for i in range(12)]
    half = writer("w", lambda q: Draft("" if q.row_id in ("r3", "r4", "r5") else f"w {q.row_id} {q.index}"))
    for way, more in (("label_only", 0), ("leave_out", 3)):
        again = tmp_path / way
        again.mkdir()
        write(again, [half], rows=rows, candidates=2, max_tries=1, top_up=1.0, without_reasoning=way)
        kept = reasonings.read_kept(again / "reasonings")
        # Three of six rows of b are left out, so the other three are to weigh as much as the six of a.
        assert sum(len(some) for name, some in kept.items() if name in ("r0", "r1", "r2")) == 3 + more


def test_a_class_that_has_nothing_to_say_is_not_asked_for_ever(tmp_path: Path) -> None:
    rows = [Row(f"r{i}", f"text {i}", "b" if i in (3, 7) else "a") for i in range(12)]
    asked: list[str] = []
    same = writer("w", lambda q: Draft("always the same " + q.row_id), asked)
    write(tmp_path, [same], rows=rows, candidates=2, max_tries=2, top_up=0.8)
    assert len([name for name in asked if name.startswith("r3 ")]) == 2 * 2 * 4
    kept = reasonings.read_kept(tmp_path / "reasonings")
    assert {len(some) for some in kept.values()} == {1}
    # Two targets of twelve, where six would be an even split.
    weights = reasonings.kept_weights(kept, 1)
    assert reasonings.short_of(rows, rows, weights, 0.8) == {"b": pytest.approx(1 / 3)}
    assert reasonings.short_of(rows, rows, {**weights, "r3": 4, "r7": 3}, 0.8) == {}


def test_a_class_of_which_nothing_is_kept_counts_in_the_even_split_and_is_named() -> None:
    counts = {"a": 100, "b": 10, "c": 5}
    every = [Row(f"{label}{i}", "text", label) for label, count in counts.items() for i in range(count)]
    rows = [row for row in every if row.label != "c"]
    extra = judging.extra_of({"a": 100, "b": 10, "c": 0}, {"a": 100, "b": 10}, 1.0)
    weights = {f"b{i}": 1 + extra["b"] // 10 for i in range(10)}
    assert extra["b"] == 40 and reasonings.short_of(every, rows, weights, 1.0) == {"c": 0.0}


@given(
    weights=st.dictionaries(st.sampled_from("abcde"), st.integers(1, 200), min_size=2),
    share=st.floats(0.05, 1.0),
    without=st.sets(st.sampled_from("abcde")),
)
def test_topping_up_gives_every_able_class_its_share_and_no_more(
    weights: dict[str, int], share: float, without: set[str]
) -> None:
    able = {label: 0 if label in without else count for label, count in weights.items()}
    extra = judging.extra_of(weights, able, share)
    total = sum(weights.values()) + sum(extra.values())
    for label, count in weights.items():
        even = total / len(weights)
        if able[label]:
            assert count + extra[label] >= share * even - 1e-6
            assert not extra[label] or count + extra[label] - 1 < share * even + 1e-6
        else:
            assert not extra[label]


def test_samples_show_each_verdict_of_each_class(tmp_path: Path) -> None:
    write(tmp_path, [writer("w", says("w"))], [about("r3")], candidates=2, max_tries=1)
    found = reasonings.samples(tmp_path / "reasonings")
    assert {(one["label"], one["dropped_because"]) for one in found} == {
        ("a", ""), ("a", "enough_kept"), ("b", ""), ("b", "enough_kept"), ("b", "about_r3"),
    }  # fmt: skip


def test_samples_and_table_leave_out_no_verdict_and_not_the_rarest_class(tmp_path: Path) -> None:
    labels = [f"label {at}" for at in range(77)]
    rows = [Row(f"r{at}", f"text {at}", labels[at % 76]) for at in range(300)] + [Row("last", "text", labels[76])]
    write(tmp_path, [writer("w", says("w"))], [about("r299")], rows=rows, candidates=2, max_tries=1)
    found = reasonings.samples(tmp_path / "reasonings")
    assert {one["label"] for one in found} == set(labels)
    assert {one["dropped_because"] for one in found} == {"", "enough_kept", "about_r299"}
    assert len(found) < 2 * len(labels)
    head, *_, last = reasonings.lines(reasonings.summary(tmp_path / "reasonings"))
    assert "label 76" in head and head.count("label") == 8
    # Of the 69 others the one with a row without is named first.
    assert last == "69 classes more: rows with a reasoning, the fewest first: label 71 3 of 4"


def test_the_table_counts_by_reason_and_class(tmp_path: Path) -> None:
    write(tmp_path, [writer("w", says("w"))], [about("r3")], candidates=2, max_tries=1)
    found = [line.split() for line in reasonings.lines(reasonings.summary(tmp_path / "reasonings"))]
    assert found == [
        ["all", "a", "b"],
        ["rows", "5", "3", "2"],
        ["rows", "without", "a", "reasoning", "1", "0", "1"],
        ["candidates", "10", "6", "4"],
        ["kept", "4", "3", "1"],
        ["enough_kept", "4", "3", "1"],
        ["about_r3", "2", "0", "2"],
    ]


def test_scorers_learn_from_the_first_usable_drafts(tmp_path: Path) -> None:
    texts = {
        "r0": Draft("fine"),
        "r1": Draft("cut", cut=True),
        "r2": Draft(""),
        "r3": Draft("so Label: a"),
        "r4": Draft("", failed="x"),
    }
    job = Job(
        TASK,
        ROWS,
        [writer("w", lambda q: Draft("second " + q.row_id) if q.index else texts[q.row_id])],
        [],
        Reasonings(candidates=2),
    )
    with journal.opened(tmp_path / journal.FILE) as book:
        first = reasonings.first_drafts(job, book)
    assert first == {"r0": "fine"} | {f"r{i}": f"second r{i}" for i in range(1, 5)}


@given(
    verdicts=st.lists(st.lists(st.booleans(), min_size=1, max_size=4), min_size=1, max_size=6),
    per_row=st.integers(1, 3),
)
def test_kept_and_dropped_are_all_candidates(verdicts: list[list[bool]], per_row: int) -> None:
    def bad(task: Task, row: Row, candidate: Candidate) -> bool:
        return not verdicts[int(row.id)][candidate.index]

    for name, good in enumerate(verdicts):
        row = Row(str(name), "text", "a")
        drafts = [Candidate(row.id, f"words {index}", "reasoner", index) for index in range(len(good))]
        judged = judging.verdicts(TASK, row, drafts, [bad], per_row)
        kept = [one for one in judged if one.kept]
        assert len(kept) == min(per_row, sum(good))
        assert all(good[one.index] for one in kept)
        dropped = [one.dropped_because for one in judged if not one.kept]
        assert dropped.count("bad") == good.count(False)
        assert dropped.count("enough_kept") == max(0, sum(good) - per_row)
        assert len(kept) + len(dropped) == len(drafts)


def test_no_reasoning_is_none_even_without_checks() -> None:
    row, drafts = ROWS[0], [Candidate(ROWS[0].id, text, "file", at) for at, text in enumerate(["", "because"])]
    judged = judging.verdicts(TASK, row, drafts, [], 2)
    assert [one.dropped_because for one in judged] == ["empty", ""]


def test_the_reasoner_is_asked_in_writing_as_it_was_in_training(tmp_path: Path) -> None:
    """Worked cases of the task bring its instruction and descriptions; others are put as they are."""
    seen: list[Question] = []

    def note(q: Question) -> Draft:
        seen.append(q)
        return Draft("x")

    case = WorkedCase("text 0", "a", "because", of_this_task=True)
    general = replace(case, of_this_task=False)
    taught, beside = lessons(TASK, [case, general])
    write(tmp_path, [writer("w", note)], rows=ROWS[:1], candidates=1)
    assert seen[0].pieces == taught.pieces
    assert "".join(taught.pieces) == "Question: Which one?\ntext 0\nAnswer: a: the first"
    (plain,) = lessons(TASK, [general])
    assert beside.pieces == plain.pieces and [taught.id, beside.id] == ["case-0", "case-1"]
    assert "".join(plain.pieces) == "Question: text 0\nAnswer: a"


def asked_of(row: dict[str, str], index: int = 0) -> Question:
    return Question(row["id"], reasoner_pieces(row["text"], row["label"]), index)


def told(one: Teacher, questions: Sequence[Question]) -> list[Draft]:
    """All drafts in the order of their questions, without the time they took."""
    found = {at: replace(draft, seconds=0.0) for at, draft in one(questions)}
    return [found[at] for at in range(len(questions))]


def test_a_reasoner_writes_the_same_in_any_company(quick_run: toy.Done) -> None:
    sampling = Sampling(temperature=1.0, max_tokens=12)
    write_some = teacher(quick_run.folder / "reasoner", sampling, 3, 4096)
    rows = toy.records()["train"][:6]
    questions = [asked_of(row, index) for row in rows for index in (0, 1)]
    together = told(write_some, questions)
    assert told(write_some, questions[::-1])[::-1] == together
    assert [told(write_some, [question])[0] for question in questions] == together
    # One row's candidates are drawn apart, and another seed draws others.
    assert len({draft.reasoning for draft in together}) > len(rows)
    assert told(teacher(quick_run.folder / "reasoner", sampling, 4, 4096), questions) != together


def test_a_trained_reasoner_writes_what_it_was_taught(finished: toy.Done) -> None:
    greedy = teacher(finished.folder / "reasoner", Sampling(temperature=0, max_tokens=24), 0, 4096)
    rows = toy.records()["train"]
    written = told(greedy, [asked_of(row) for row in rows])
    right = sum(draft.reasoning == row["reasoning"] for draft, row in zip(written, rows, strict=True))
    assert right >= 0.8 * len(rows)
    assert not any(draft.cut for draft in written[:3])
    assert all(draft.prompt_tokens > draft.tokens > 0 for draft in written)


def test_a_classifier_is_no_reasoner(finished: toy.Done) -> None:
    with pytest.raises(RequestError, match="holds a classifier"):
        teacher(finished.folder / "label_only", Sampling(), 0, 4096)


def test_a_text_that_is_too_long_leaves_room_for_what_is_written(finished: toy.Done) -> None:
    """The context is 1,024 tokens: text and reasoning together must not pass it, whatever was trained."""
    from saywhy.lm.folder import load
    from saywhy.reasoner import leaving_room

    _, lm = load(finished.folder / "reasoner")
    encoder = leaving_room(lm, 300).encoder
    assert encoder.prompt.room + len(encoder.before) + len(encoder.after) + 300 < 1024
    write_some = teacher(finished.folder / "reasoner", Sampling(temperature=0, max_tokens=300), 0, 4096)
    (draft,) = told(write_some, [asked_of({"id": "long", "text": "purrs " * 3000, "label": "cat"})])
    assert draft.tokens <= 300 and draft.prompt_cut
    assert not told(write_some, [asked_of(toy.records()["train"][0])])[0].prompt_cut


def test_texts_that_a_teacher_could_not_read_whole_are_counted_by_class(tmp_path: Path) -> None:
    """Each once, however many candidates it has, and also where the answers come from the journal."""

    def say(q: Question) -> Draft:
        return Draft(f"w {q.index}", prompt_cut=q.row_id in ("r0", "r1", "r4"))

    for _ in range(2):
        write(tmp_path, [writer("w", say), writer("whole", says("whole"))], candidates=2)
        found = reasonings.summary(tmp_path / "reasonings")
        assert found["prompt_cut"] == {"w": {"a": 2, "b": 1}}
        again(tmp_path)
    assert reasonings.unread(found) == [
        "w: 3 texts of train did not fit and were cut in the middle where it wrote (a 2, b 1)."
    ]


def test_lessons_of_the_config_are_its_worked_cases(finished: toy.Done) -> None:
    from saywhy.data import read

    found = worked_lessons(finished.config, read(finished.config))
    assert len(found) == len(toy.worked_cases())
    assert found[0].targets[0][1].text.strip() == toy.worked_cases()[0]["reasoning"]
