"""Stage 2 within a run: who is asked, what is measured, which rows the arms see, and what another setting repeats."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import toy
from faulty import Act, completion, serving
from saywhy import cli, dryrun, journal, pipeline, prompts, reasonings, store
from saywhy.checks import Check
from saywhy.data import read
from saywhy.pipeline import measures
from saywhy.pipeline.stage import worked_lessons
from saywhy.pipeline.writers import reckoned, writers
from saywhy.records import Candidate, RequestError, Row, Task
from test_pipeline import events, trained_on

pytest_plugins = ("runs",)


def nothing_of_birds(task: Task, row: Row, candidate: Candidate) -> bool:
    """A check that leaves one class without any reasoning."""
    return row.label == "bird"


def candidates(run: Path) -> list[dict[str, Any]]:
    return store.read_table(run / "reasonings" / "part-00000.parquet").to_pylist()


def test_rows_without_a_reasoning_are_left_out_of_all_arms_or_of_none(tmp_path: Path) -> None:
    data = toy.write_data(tmp_path / "data")
    birds = {row["id"] for row in toy.records()["train"] if row["label"] == "bird"}
    every = {row["id"] for row in toy.records()["train"]}
    kept = toy.run(data, tmp_path / "kept", nothing_of_birds, **toy.quick())
    left = toy.run(data, tmp_path / "left", nothing_of_birds, **toy.quick(reasonings__without_reasoning="leave_out"))
    for arm in ("label_only", "reason_then_label"):
        assert set(trained_on(kept.folder / arm)) == every
        assert set(trained_on(left.folder / arm)) == every - birds
    card = (left.folder / "label_only" / "README.md").read_text(encoding="utf-8")
    assert f"{len(every - birds)} rows for" in card
    said = f"No arm is trained on a row of these classes: bird {len(birds)}. All their rows are left out, for want"
    assert any(note.startswith(said) for note in left.metrics["notes"])
    assert not any("No arm is trained" in note for note in kept.metrics["notes"])
    told = left.metrics["reasonings"]
    assert told["rows_without"] == len(birds)
    assert {label: one["without"] for label, one in told["by_class"].items()} == {
        "bird": len(birds),
        "cat": 0,
        "dog": 0,
    }
    assert told["by_class"]["bird"]["dropped"] == {"nothing_of_birds": len(birds)}


def test_a_topped_up_row_counts_as_often_in_every_arm(tmp_path: Path) -> None:
    data = toy.write_data(tmp_path / "data")
    rare = [row for row in toy.records()["train"] if row["label"] == "dog"][:2]
    rows = [row for row in toy.records()["train"] if row["label"] != "dog" or row in rare]
    toy.write_lines(data / "train.jsonl", rows)
    changes = toy.with_reasoner(reasonings__top_up=0.5, reasonings__sampling={"max_tokens": 8, "temperature": 2.0})
    done = toy.run(data, tmp_path / "run", **changes)
    kept = reasonings.read_kept(done.folder / "reasonings")
    each = {row["id"]: len(kept[row["id"]]) for row in rare}
    assert sum(each.values()) >= 0.5 * (len(rows) - 2 + sum(each.values())) / 3
    for arm in ("label_only", "reason_then_label"):
        found = trained_on(done.folder / arm)
        for name, count in each.items():
            copies = [name, *(f"{name}#{k}" for k in range(2, count + 1))]
            assert all(one in found for one in copies) and f"{name}#{count + 1}" not in found
    told = trained_on(done.folder / "reason_then_label")
    name, count = next(iter(each.items()))
    assert done.metrics["reasonings"]["short_of_top_up"] == {}
    said = [told[one][0] for one in (name, *(f"{name}#{k}" for k in range(2, count + 1)))]
    assert said == [f"Reasoning: {text}\nLabel: dog<eos>" for text in kept[name]]


def test_a_class_that_could_not_be_topped_up_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The likeliest reasoning is the same in every try, so nothing can be added.
    rows = [row for row in toy.records()["train"] if row["label"] != "dog"] + [
        row for row in toy.records()["train"] if row["label"] == "dog"
    ][:2]
    data = toy.write_data(tmp_path / "data")
    toy.write_lines(data / "train.jsonl", rows)
    likeliest = {"max_tokens": 8, "temperature": 0.0}
    done = toy.run(data, tmp_path / "run", **toy.with_reasoner(reasonings__top_up=1.0, reasonings__sampling=likeliest))
    reached = 2 / (len(rows) / 3)
    assert done.metrics["reasonings"]["short_of_top_up"] == {"dog": pytest.approx(reached)}
    assert f"reasonings.top_up: dog reached {reached:.3f} of an even split, not 1.0" in capsys.readouterr().err
    page = (done.folder / "report.html").read_text(encoding="utf-8")
    assert f"dog was to be topped up to 1.00 of an even split and reached {reached:.3f}." in page


def test_scorers_measure_every_candidate_and_another_limit_measures_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = toy.write_data(tmp_path / "data")
    train = {"steps": 200, "rows_per_step": 16, "learning_rate": 1e-2, "evaluations": 1, "layout": "tree"}
    changes: dict[str, Any] = {
        "reasonings__support": "always",
        "reasonings__support_share": 1.0,
        "reasonings__checks": ["empty", "no_support"],
        "classifier__arms": ["label_only", "reason_then_label"],
        "classifier__train": {**train, "precision": "float32"},
    }
    run = tmp_path / "run"
    config = toy.load(data, **changes)
    pipeline.run(config, run, until="reason")
    assert events(run) == Counter({"base": 1, "scorer-0": 1, "scorer-1": 1, "reasonings": 1})
    rows = candidates(run)
    gold = {row["id"]: row["label"] for row in toy.records()["train"]}
    assert all(None not in (row["support"], row["early"], row["likelihood"], row["wins"]) for row in rows)
    dropped = {row["id"] for row in rows if row["dropped_because"] == "no_support"}
    assert dropped == {row["id"] for row in rows if row["support"] < 0 and row["wins"] != gold[row["id"]]}
    assert 0 < len(dropped) < len(rows) / 2

    def never(*given: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("saywhy.support.measure", never)
    pipeline.run(toy.load(data, **changes | {"reasonings__least_support": -50.0}), run, until="reason")
    assert events(run)["reasonings"] == 2 and events(run)["scorer-0"] == 1
    again = candidates(run)
    assert [row["support"] for row in again] == [row["support"] for row in rows]
    assert all(row["kept"] for row in again)
    # What is done with rows that are too long decides what scorers are trained on.
    with pytest.raises(AssertionError, match="measured again"):
        pipeline.run(toy.load(data, **changes | {"data__on_overflow": "drop"}), run, until="reason")


def test_scorers_that_learnt_nothing_are_not_believed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = toy.write_data(tmp_path / "data")
    config = toy.load(data, **toy.quick(reasonings__support="always", reasonings__checks=["no_support"]))
    pipeline.run(config, tmp_path / "run", until="reason")
    assert "the scorers have learnt too little" in capsys.readouterr().err
    assert all(row["kept"] and row["support"] is None for row in candidates(tmp_path / "run"))


def answers(run: Path) -> dict[str, Any]:
    with journal.opened(run / journal.FILE) as book:
        return journal.spent(book)


def test_scorers_are_tried_on_rows_of_every_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is sorted by label begins with one class, of which always the same label is right."""
    rows = tuple(Row(f"r{i}", f"text {i}", "ab"[i // 300]) for i in range(600))
    first = {row.id: ("why",) for row in rows}
    data = SimpleNamespace(train=rows, task=Task("t", "?", ("a", "b")))
    this: Any = SimpleNamespace(data=data, config=SimpleNamespace(seed=0))
    some: Any = None

    def saying(wins: Callable[[Row], str | None]) -> str:
        def told(book: Any, how: Any, pairs: list[tuple[Row, str]]) -> list[dict[str, Any]]:
            return [{"wins": wins(row)} for row, _ in pairs]

        monkeypatch.setattr(measures.reasonings, "measures", told)
        return measures._learnt_nothing(this, some, some, first)

    assert saying(lambda row: row.label) == ""
    assert "128 of 256 rows" in saying(lambda row: "a")


def test_another_student_counts_tokens_anew(tmp_path: Path) -> None:
    data = toy.write_data(tmp_path / "data")
    for vocabulary, times in ((400, 1), (300, 2)):
        changes = toy.quick(base__scratch={"width": 64, "layers": 1, "vocabulary": vocabulary, "heads": 2})
        pipeline.run(toy.load(data, **changes), tmp_path / "run", until="reason")
        assert events(tmp_path / "run")["reasonings"] == times


def test_a_check_with_another_limit_is_another_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def longer_than(limit: int, least: int = 0) -> Check:
        def too_long(task: Task, row: Row, candidate: Candidate, at_least: int = least) -> bool:
            return len(candidate.reasoning) > max(limit, at_least)

        return too_long

    same = {pipeline._identity(longer_than(3)) for _ in range(2)}
    assert len(same) == 1
    assert len({*same, pipeline._identity(longer_than(4)), pipeline._identity(longer_than(3, 5))}) == 3


def test_a_server_is_known_by_the_address_that_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy.write_data(tmp_path / "data")
    config = toy.load(data, reasonings__teacher="api", reasonings__api={"model": "m"})
    found = []
    for address in ("", "https://api.openai.com/v1/", "http://one:1/v1", "http://one:1/v1/", "http://two:2/v1"):
        monkeypatch.setenv("OPENAI_BASE_URL", address)
        found.append(writers(config, read(config), None, None)[0].identity["base_url"])
    assert found == [None, None, "http://one:1/v1", "http://one:1/v1", "http://two:2/v1"]


def test_what_asking_takes_says_that_more_may_be_asked(tmp_path: Path) -> None:
    data = toy.write_data(tmp_path / "data")
    told = {"model": "m", "base_url": "http://localhost:1/v1", "price": {"input": 1.0, "output": 1.0}}
    for tries, said in ((1, "currency of the price."), (3, "asked again, which at most makes it 3 times")):
        config = toy.load(data, reasonings__teacher="api", reasonings__api=told, reasonings__max_tries=tries)
        (line,) = reckoned(config, read(config))
        assert said in line and ("again" in line) == (tries > 1)


def test_runs_beside_each_other_ask_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy.write_data(tmp_path / "data")
    first, second = tmp_path / "cells" / "first", tmp_path / "cells" / "second"
    told = toy.with_reasoner()
    pipeline.run(toy.load(data, **told), first, until="reason", beside=first.parent)
    paid = answers(first)["reasoner"]

    def never(*given: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr("saywhy.reasoner.teacher", never)
    pipeline.run(toy.load(data, **told | {"reasonings__per_row": 2}), second, until="reason", beside=first.parent)
    assert events(second)["reasonings"] == 1 and paid["seconds"] > 0
    assert answers(second)["reasoner"] == {**paid, "attempts": paid["answers"], "seconds": 0.0}


def test_resuming_uses_answers_asks_failures_again_or_begins_anew(quick_run: toy.Done, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(quick_run.folder, run)
    before = answers(run)["reasoner"]["attempts"]
    parts = (run / "reasonings" / "part-00000.parquet").read_bytes()
    pipeline.run(quick_run.config, run, until="reason", resume="always")
    assert events(run)["reasonings"] == 2 and answers(run)["reasoner"]["attempts"] == before
    pipeline.run(quick_run.config, run, until="reason", resume="never")
    assert events(run)["reasonings"] == 3 and answers(run)["reasoner"]["attempts"] == before
    assert (run / "answers.kept-1.sqlite").exists()
    assert (run / "reasonings" / "part-00000.parquet").read_bytes() == parts
    pipeline.run(quick_run.config, run, until="reason")
    assert events(run)["reasonings"] == 3
    with pytest.raises(RequestError, match=r"answers\.sqlite: there are no answers to go on from"):
        pipeline.run(quick_run.config, tmp_path / "new", until="reason", resume="always")
    assert not (tmp_path / "new").exists()


def test_a_model_of_ones_own_writes_beside_the_base_and_merges(tmp_path: Path, base: Path) -> None:
    data = toy.write_data(tmp_path / "data")
    changes = toy.quick(
        base=str(base),
        reasonings__teacher=["column", "own"],
        reasonings__named={"own": {"local": str(base)}},
        reasonings__merge="base",
        reasonings__candidates=1,
        reasonings__sampling={"max_tokens": 8},
    )
    del changes["base__scratch"]
    run = tmp_path / "run"
    pipeline.run(toy.load(data, **changes), run, until="reason")
    of_row = [row for row in candidates(run) if row["id"] == "train-3"]
    assert [row["teacher"] for row in of_row] == ["column", "own", "merge:base"]
    assert [row["dropped_because"] for row in of_row] == ["merged", "merged", ""]


def test_a_server_writes_in_a_run_and_its_key_stands_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    data = toy.write_data(tmp_path / "data")

    def answer(body: dict[str, Any], times: int) -> Act:
        question = body["messages"][-1]["content"]
        verb = next(verb for verb in toy.WHY if f" {verb}" in question)
        return Act(completion(toy.WHY[verb], usage=(50, 10)))

    with serving(answer) as server:
        api = {"base_url": server.url, "model": "m", "key_env": "MY_KEY", "price": {"input": 1.0, "output": 2.0}}
        changes = toy.quick(reasonings__teacher="api", reasonings__api=api, reasonings__candidates=1)
        config = toy.write_config(data, **changes)
        assert cli.main(["check", str(config)]) == 0
        shown = capsys.readouterr().out
        assert "api: Explain in one short paragraph how the question leads to its answer." in shown
        assert "60 requests" in shown and "in the currency of the price" in shown
        assert cli.main(["reason", str(config), "-o", str(tmp_path / "run")]) == 0
        said = capsys.readouterr()
        assert "60 requests" in said.err and "rows without a reasoning" in said.err
        assert len(server.bodies) == 60
        # The same command again, and one with another check, ask nothing.
        assert cli.main(["reason", str(config), "-o", str(tmp_path / "run")]) == 0
        more = ["--set", "reasonings.checks=[empty]"]
        assert cli.main(["reason", str(config), "-o", str(tmp_path / "run"), *more]) == 0
        assert len(server.bodies) == 60
    rows = candidates(tmp_path / "run")
    assert {row["teacher"] for row in rows} == {"api"} and all(row["kept"] for row in rows)
    assert rows[0]["reasoning"] in toy.WHY.values()
    spent = answers(tmp_path / "run")["api"]
    assert spent["cost"] == pytest.approx(60 * (50 * 1.0 + 10 * 2.0) / 1e6)
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or b"sk-very-secret" not in path.read_bytes()
    assert "sk-very-secret" not in said.err + said.out + shown


def test_a_reasoner_that_is_not_shown_the_label_learns_and_writes_without_it(
    quick_run: toy.Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(quick_run.folder, run)
    before, asked = events(run), answers(run)["reasoner"]["attempts"]
    blind = toy.load(quick_run.data, **toy.with_reasoner(reasonings__label_shown=False))
    assert all("Answer:" not in "".join(lesson.pieces) for lesson in worked_lessons(blind, read(blind)))
    pipeline.run(blind, run, until="reason")
    assert events(run) - before == Counter({"base": 1, "reasoner": 1, "reasonings": 1})
    assert answers(run)["reasoner"]["attempts"] > asked
    prompt = store.read_json(run / "reasoner" / "prompt.json")
    assert prompts.BLIND_INSTRUCTION in prompt["before"] and prompt["conditional_on_gold_label"] is False
    assert "without its answer" in (run / "reasoner" / "README.md").read_text("utf-8")
    written = toy.write_config(tmp_path / "run", **toy.with_reasoner(reasonings__label_shown=False))
    places = [f"data.{name}={quick_run.data / name}.jsonl" for name in ("train", "dev", "test")]
    places += [f"reasoner.worked_cases.data={quick_run.data / 'worked.jsonl'}"]
    assert cli.main(["check", str(written), *(word for place in places for word in ("--set", place))]) == 0
    shown = capsys.readouterr().out
    assert f"reasoner: {prompts.BLIND_INSTRUCTION}" in shown and "Answer:" not in shown


def test_no_teacher_is_told_the_label_where_it_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    data = toy.write_data(tmp_path / "data")
    toy.write_lines(data / "train.jsonl", toy.records()["train"][:8])

    def answer(body: dict[str, Any], times: int) -> Act:
        return Act(completion("It is heard by the lake."))

    with serving(answer) as server:
        own = {"base_url": server.url, "model": "own"}
        changes = toy.quick(
            reasonings__teacher=["api", "own"], reasonings__merge="own", reasonings__candidates=1,
            reasonings__api={"base_url": server.url, "model": "m"}, reasonings__named={"own": {"api": own}},
        )  # fmt: skip
        for shown in (False, True):
            server.bodies.clear()
            config = toy.load(data, **changes, reasonings__label_shown=shown)
            pipeline.run(config, tmp_path / "run", until="reason")
            told = [tuple(message["content"] for message in body["messages"]) for body in server.bodies]
            merging, writing = prompts.merge_instruction(shown), prompts.reasoner_instruction(shown)
            assert Counter(system for system, _ in told) == Counter({writing: 16, merging: 8})
            assert all(("\nAnswer: " in question) is shown for _, question in told)
            assert all(("\nExplanation 2: " in question) is (system == merging) for system, question in told)


def test_a_missing_key_is_told_before_the_reasoner_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    data = toy.write_data(tmp_path / "data")
    told = toy.with_reasoner() | {"reasonings__teacher": ["reasoner", "api"], "reasonings__api": {"model": "m"}}
    with pytest.raises(RequestError, match="OPENAI_API_KEY holds no key"):
        toy.run(data, tmp_path / "run", **told)
    assert not (tmp_path / "run" / "reasoner").exists() and not (tmp_path / "run" / "base").exists()
    dryrun.show(toy.load(data, **told))
    assert "Not ready yet: the environment variable OPENAI_API_KEY holds no key" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"reasonings__teacher": ["column"]}, "top_up: a column has one reasoning a row and writes no more"),
        ({"task__labels": None, "task__choices": "options"}, "task.choices gives each row its own"),
    ],
)
def test_topping_up_what_cannot_be_is_refused(tmp_path: Path, changes: dict[str, object], why: str) -> None:
    data = toy.write_data(tmp_path / "data")
    with pytest.raises(RequestError, match=why):
        toy.load(data, **toy.with_reasoner(reasonings__top_up=0.5) | changes)
