"""The command line: exit codes, one message a mistake that names place and fix, nothing written or lost."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import saywhy
import toy
from saywhy import cli, evaluate, pipeline, store
from saywhy.config import load as load_config
from saywhy.evaluate.choice import mixed
from saywhy.predict import TextClassifier
from saywhy.records import Prediction, RequestError

pytest_plugins = ("runs",)

Said = Callable[[], tuple[str, str]]
TEXTS = ["still by the lake it purrs", "alone by the gate it barks", "today by the road it sings"]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    """Give what was printed to both streams so far; the terminal is wide."""
    monkeypatch.setenv("COLUMNS", "200")
    return lambda: tuple(capsys.readouterr())  # type: ignore[return-value]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(printed: Said, *arguments: object, code: int = 2) -> str:
    """Run a command that must fail; give its message."""
    printed()
    assert cli.main([str(one) for one in arguments]) == code
    _, error = printed()
    assert "Traceback" not in error
    assert error.count("saywhy: ") == 1, error
    return error[error.index("saywhy: ") + len("saywhy: ") :].strip()


# Bad input, as a user brings it.


def text_of(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def spoil(name: str, change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Path], None]:
    """Change the rows of a split; what `change` returns is written instead where it is text or bytes."""

    def spoiled(data: Path) -> None:
        path = data / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        content = change(rows)
        content = text_of(rows) if content is None else content
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoiled


def as_csv(rows: list[dict[str, Any]]) -> str:
    return "id,text,label,reasoning\n" + "".join(f"{r['id']},{r['text']},{r['label']},x\n" for r in rows)


BAD: dict[str, tuple[Callable[[Path], None] | None, Mapping[str, Any], list[str]]] = {
    "missing-file": (None, {"data__train": "trian.jsonl"}, ["trian.jsonl", "no such file", "train.jsonl"]),
    "missing-column": (None, {"task__text": "body"}, ["train.jsonl, line 1", "body", "text"]),
    "missing-label-column": (None, {"task__label": "lable"}, ["train.jsonl, line 1", "lable", "did you mean 'label'"]),
    "missing-reasoning": (None, {"reasonings__column": "why"}, ["train.jsonl, line 1", "why", "reasoning"]),
    "empty-file": (spoil("train", lambda rows: ""), {}, ["train.jsonl", "no rows"]),
    "unknown-label": (
        spoil("test", lambda rows: rows[3].update(label="horse")),
        {"task__labels": None},
        ["test.jsonl, line 4", "'horse'", "cat"],
    ),
    "one-class": (
        spoil("train", lambda rows: [row.update(label="cat") for row in rows][:0] or None),
        {},
        ["train.jsonl", "'cat'", "two or more"],
    ),
    "broken-line": (
        spoil("train", lambda rows: text_of(rows[:2]) + '{"text": "it pu\n'),
        {},
        ["train.jsonl, line 3", "JSON"],
    ),
    "encoding": (
        spoil("train", lambda rows: text_of(rows[:2]).encode() + b'{"text": "caf\xe9"}\n'),
        {},
        ["train.jsonl, line 3", "0xe9", "UTF-8"],
    ),
    "duplicate-ids": (
        spoil("train", lambda rows: rows[4].update(id=rows[1]["id"])),
        {},
        ["train.jsonl, line 5", "'train-1'", "train.jsonl, line 2", "unique"],
    ),
    "null-label": (spoil("train", lambda rows: rows[2].update(label=None)), {}, ["train.jsonl, line 3", "null"]),
    "unknown-key": (None, {"clasifier": {}}, ["config.yaml, line", "clasifier", "did you mean 'classifier'"]),
    "unknown-inner-key": (None, {"classifier__train__lr": 1}, ["config.yaml, line", "classifier.train.lr", "unknown"]),
    "wrong-type": (None, {"seed": "seven"}, ["config.yaml, line", "seed", "whole number"]),
    "no-base": (None, {"base": None}, ["base", "scratch"]),
    "base-folder": (None, {"base": "./models/none"}, ["base", "models/none", "scratch"]),
    "base-hub": (None, {"base": "nobody/nothing"}, ["base", "nobody/nothing", "scratch"]),
    "base-no-model": (None, {"base": "."}, ["base", "config.json"]),
    "api": (None, {"reasonings__teacher": "api"}, ["reasonings.api.model", "name the model"]),
    "no-worked-cases": (None, {"reasonings__teacher": "reasoner"}, ["reasoner.worked_cases"]),
    "hub-data": (None, {"data__train": "nobody/nothing"}, ["nobody/nothing", "hub", "HF_HUB_OFFLINE"]),
    "arm-name": (None, {"classifier__arms": [{"name": "predictions", "arm": "label_only"}]}, ["predictions", "name"]),
    "same-data": (None, {"data__test": "train.jsonl"}, ["data.test", "train.jsonl", "share"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_the_place_and_the_fix(tmp_path: Path, printed: Said, name: str) -> None:
    spoiling, changes, words = BAD[name]
    data = toy.write_data(tmp_path / "data")
    if spoiling is not None:
        spoiling(data)
    config = toy.write_config(data, **{**toy.quick(), **changes})
    before = snapshot(tmp_path)
    for command in (["run", config, "-o", tmp_path / "run"], ["check", config]):
        message = refused(printed, *command)
        for word in words:
            assert word in message, message
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "run").exists()


def test_a_csv_with_a_broken_row_is_refused(tmp_path: Path, printed: Said) -> None:
    data = toy.write_data(tmp_path / "data")
    rows = toy.records()["train"]
    (data / "train.csv").write_text(as_csv(rows[:3]) + "x,one, two,cat,three\n", encoding="utf-8")
    config = toy.write_config(data, **toy.quick(data__train="train.csv"))
    message = refused(printed, "run", config, "-o", tmp_path / "run")
    assert "train.csv, line 5" in message
    assert "quotes" in message


def test_a_config_that_is_not_there_or_no_yaml_is_refused(tmp_path: Path, printed: Said) -> None:
    (tmp_path / "config.yaml").write_text("task: {name: [}", encoding="utf-8")
    assert "did you mean config.yaml" in refused(printed, "run", tmp_path / "confg.yaml")
    assert "config.yaml, line 1" in refused(printed, "run", tmp_path / "config.yaml")
    message = refused(printed, "check", toy.write_config(tmp_path), "--set", "data.rows=many")
    assert "data.rows" in message and "--set" in message


def test_a_finished_run_is_not_touched_by_a_request_that_is_refused(
    quick_run: toy.Done, tmp_path: Path, printed: Said
) -> None:
    run = shutil.copytree(quick_run.folder, tmp_path / "run")
    before = snapshot(run)
    config = toy.write_config(toy.write_data(tmp_path / "data"), **{**toy.quick(), "base": "nobody/nothing"})
    assert "nobody/nothing" in refused(printed, "run", config, "-o", run)
    assert snapshot(run) == before


def test_a_folder_that_saywhy_did_not_make_is_left_alone(tmp_path: Path, printed: Said) -> None:
    config = toy.write_config(toy.write_data(tmp_path / "data"), **toy.quick())
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work", encoding="utf-8")
    for command in (["run", config, "-o", mine], ["demo", "-o", mine], ["demo", "--write-data", mine]):
        message = refused(printed, *command)
        assert str(mine) in message
        assert "empty folder" in message
    assert snapshot(mine) == {"thesis.txt": b"years of work"}
    file = tmp_path / "file"
    file.write_text("x", encoding="utf-8")
    assert "not a folder" in refused(printed, "run", config, "-o", file)
    assert file.read_text(encoding="utf-8") == "x"


def test_two_processes_do_not_write_in_one_folder(quick_run: toy.Done, tmp_path: Path, printed: Said) -> None:
    run = shutil.copytree(quick_run.folder, tmp_path / "run")
    config = toy.write_config(toy.write_data(tmp_path / "data"), **toy.with_reasoner())
    with store.open_run(run):
        before = snapshot(run)
        message = refused(printed, "run", config, "-o", run)
        assert f"process {os.getpid()}" in message
        assert "another folder" in message
        assert snapshot(run) == before


# The work fails.


def test_a_full_disk_ends_the_work_and_the_same_command_goes_on(
    tmp_path: Path, printed: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy.write_config(toy.write_data(tmp_path / "data"), **toy.quick())
    run = tmp_path / "run"
    sync = os.fsync

    def full(descriptor: int) -> None:
        if (run / "reasonings").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        message = refused(printed, "run", config, "-o", run, code=1)
    assert "No space left on device" in message
    assert "free some space and run the same command again" in message
    assert store.is_done(run / "reasonings", store.read_json(run / "reasonings" / "stamp.json")["fingerprint"])
    assert not (run / ".lock").exists()
    before = (run / "reasonings" / "stamp.json").stat().st_mtime_ns
    assert cli.main(["run", str(config), "-o", str(run)]) == 0
    assert (run / "reasonings" / "stamp.json").stat().st_mtime_ns == before


# A writer that is not ours, such as that of the weights, meets the same full disk: here a bound on the size of files.
BOUNDED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
from saywhy import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no bound on the size of files")
def test_weights_that_cannot_be_written_end_the_work_with_one_message(tmp_path: Path) -> None:
    config = toy.write_config(toy.write_data(tmp_path / "data"), **toy.quick())
    script = [sys.executable, "-c", BOUNDED, "run", str(config), "-o", str(tmp_path / "run")]
    ended = subprocess.run(script, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("saywhy: ") == 1
    assert "run the same command again" in ended.stderr


def test_no_reasoning_kept_is_a_failure_of_the_work(tmp_path: Path, printed: Said) -> None:
    data = toy.write_data(tmp_path / "data")
    spoil("train", lambda rows: [row.update(reasoning="Label: so it is") for row in rows] and None)(data)
    config = toy.write_config(data, **toy.quick(reasonings__checks=["cue_inside"]))
    message = refused(printed, "run", config, "-o", tmp_path / "run", code=1)
    assert "no reasoning is kept for any row (cue_inside 60)" in message
    assert "reasonings.checks" in message
    assert (tmp_path / "run" / ".reasonings.partial" / "part-00000.parquet").exists()


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(
    tmp_path: Path, printed: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", stopped)
    config = toy.write_config(toy.write_data(tmp_path / "data"), **toy.quick())
    assert cli.main(["run", str(config)]) == 130
    assert printed()[1].strip() == "stopped; the same command goes on: checkpoints and answers are kept"


# The commands.


def test_run_shows_the_result_and_where_the_report_is(tmp_path: Path, printed: Said) -> None:
    config = toy.write_config(toy.write_data(tmp_path / "data"), **toy.quick())
    assert cli.main(["run", str(config), "-o", str(tmp_path / "run"), "--set", "classifier.train.steps=2"]) == 0
    out, error = printed()
    metrics = store.read_json(tmp_path / "run" / "metrics.json")
    for words in ("label_only / label", "reason_then_label / reason", "linear (floor)", f"{toy.TEST} test rows"):
        assert words in out
    assert metrics["recommended"]["why"] in out.replace("\n", " ") or metrics["recommended"]["why"][:60] in out
    assert str(tmp_path / "run" / "report.html") in out.replace("\n", "")
    assert "label_only: 16 of 16 rows" in error
    # The stages by themselves, over what is done: each says where its results are.
    same = [str(config), "-o", str(tmp_path / "run"), "--set", "classifier.train.steps=2"]
    for command, place in (("reason", "reasonings"), ("train", "run"), ("evaluate", "metrics.json")):
        assert cli.main([command, *same]) == 0
        assert printed()[0].strip().endswith(place)
    (tmp_path / "run" / "report.html").unlink()
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").exists()


def test_version_and_unknown_commands(printed: Said) -> None:
    assert cli.main(["--version"]) == 0
    assert printed()[0].strip() == f"saywhy {saywhy.__version__}"
    assert cli.main(["trian"]) == 2
    assert "trian" in printed()[1]
    assert cli.main(["run"]) == 2
    assert "CONFIG" in printed()[1].upper()


def test_the_installed_command_answers() -> None:
    command = [sys.executable, "-m", "saywhy.cli"]
    found = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == f"saywhy {saywhy.__version__}"
    wrong = subprocess.run([*command, "run", "none.yaml"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "none.yaml" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_init_writes_a_config_that_can_be_read_and_overwrites_nothing(tmp_path: Path, printed: Said) -> None:
    path = tmp_path / "config.yaml"
    assert cli.main(["init", str(path)]) == 0
    assert "saywhy check" in printed()[0]
    assert load_config(path).task.name == "emotion"
    path.write_text("mine", encoding="utf-8")
    assert "left as it is" in refused(printed, "init", path)
    assert path.read_text(encoding="utf-8") == "mine"
    assert "cannot be written" in refused(printed, "init", tmp_path / "none" / "config.yaml")


def test_check_shows_what_a_run_would_do_and_leaves_nothing(
    tmp_path: Path, printed: Said, monkeypatch: pytest.MonkeyPatch, base: Path
) -> None:
    from transformers import AutoModelForCausalLM

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("check loads weights")

    data = toy.write_data(tmp_path / "data")
    spoil("train", lambda rows: rows[0].update(text="[bold] " + "it purrs " * 900, label="dog"))(data)
    spoil("dev", lambda rows: rows[0].update(text=toy.records()["train"][1]["text"]))(data)
    arms = ["label_only", "reason_then_label", "both", {"name": "short", "arm": "label_only", "train": {"steps": 3}}]
    changes = toy.with_reasoner(classifier__arms=arms) | {"base": str(base)}
    config = toy.write_config(data, **changes)
    before = snapshot(tmp_path)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", str(config)]) == 0
    out, _ = printed()
    assert snapshot(tmp_path) == before
    # The prompt, with what is trained and its weights; lengths and cuts; the audit; the cost.
    for words in (
        "Which animal is it?", "[bold] it purrs", "Label:", "Reasoning:", "cut", "dev in train: 1",
        "tokens computed", "steps", "GiB", "The arms differ in steps",
    ):  # fmt: skip
        assert words in out, words
    # The cue that asks weighs nothing, the label and its end do.
    assert re.search(r"^Label:\[\d+ × 0\] dog\[\d+ × 0\.\d+\]\S+\[1 × 0\.\d+\]$", out, re.MULTILINE)
    for name in ("reasoner", "label_only", "reason_then_label", "both", "short"):
        assert f"{name}: the first row as the model sees it" in out


def test_check_says_what_will_be_missing(tmp_path: Path, printed: Said) -> None:
    data = toy.write_data(tmp_path / "data")
    assert cli.main(["check", str(toy.write_config(data, **toy.quick(reasonings__teacher=[])))]) == 0
    assert "Not trained: reason_then_label." in printed()[0]
    changes = toy.quick(reasonings__teacher="base", reasonings__support="auto")
    assert cli.main(["check", str(toy.write_config(data, **changes))]) == 0
    unknown = "scorer-0, scorer-1, reason_then_label"
    assert f"Not reckoned, since nobody knows how long their reasonings will be: {unknown}." in printed()[0]


def test_check_reckons_what_a_run_then_does(tmp_path: Path, printed: Said) -> None:
    """Rows that fit in one arm alone are in none, and rare classes grow."""
    data = toy.write_data(tmp_path / "data")
    spoil("train", lambda rows: rows[0].update(text="it purrs " * 300))(data)
    spoil("train", lambda rows: rows[1].update(reasoning="it is soft. " * 150))(data)
    train = {**toy.quick()["classifier__train"], "steps": None, "epochs": 1}
    drop = toy.quick(data__on_overflow="drop", classifier__train=train)
    assert cli.main(["check", str(toy.write_config(data, **drop))]) == 0
    out, _ = printed()
    done = toy.run(data, tmp_path / "run", **drop)
    assert done.metrics["notes"][0] in out and "1 texts of train did not fit beside the answers of every arm" in out
    for arm in ("label_only", "reason_then_label"):
        steps = done.metrics["arms"][arm]["train"]["steps"]
        assert f"{arm}: {steps} steps of 8 rows" in out
    rare = toy.write_data(tmp_path / "rare")
    rows = toy.records()["train"]
    toy.write_lines(rare / "train.jsonl", [row for row in rows if row["label"] != "dog"] + [
        row for row in rows if row["label"] == "dog"
    ][:5])  # fmt: skip
    told = toy.with_reasoner(reasonings__top_up=1.0, classifier__train=train)
    assert cli.main(["check", str(toy.write_config(rare, **told))]) == 0
    out, _ = printed()
    others = [sum(row["label"] == label for row in rows) for label in ("cat", "bird")]
    assert f"label_only: {-(-3 * max(others) // 8)} steps of 8 rows" in out
    assert "as many as top_up asks for" in out


def test_doctor_says_what_is_here(printed: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    from saywhy import doctor

    monkeypatch.setattr(doctor, "SECONDS", 0.01)
    assert cli.main(["doctor"]) == 0
    out, _ = printed()
    for words in ("saywhy", "torch", "memory", "bf16 on the CPU"):
        assert words in out


def test_demo_writes_its_data_for_the_full_example(tmp_path: Path, printed: Said) -> None:
    folder = tmp_path / "tickets"
    for _ in range(2):
        assert cli.main(["demo", "--write-data", str(folder)]) == 0
    names = {path.name for path in folder.iterdir()}
    assert names == {"worked.jsonl", "train.jsonl", "dev.jsonl", "test.jsonl"}
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 1000
    assert str(folder) in printed()[0]


def test_the_demo_is_the_pipeline_with_a_check_of_its_own(
    tmp_path: Path, printed: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo's own run takes minutes; here its config is read and the pipeline is told what to do, no more."""
    from saywhy import tickets

    asked: list[Any] = []

    def note(config: Any, folder: Path, checks: Any) -> Path:
        asked.extend([config, folder, checks])
        raise RequestError("enough")

    monkeypatch.setattr(pipeline, "run", note)
    assert refused(printed, "demo", "-o", tmp_path / "demo", "--seed", 2) == "enough"
    config, folder, checks = asked
    assert folder == tmp_path / "demo"
    assert config.seed == 2
    assert Path(config.data.train).exists()
    assert list(checks) == [tickets.sum_of_another_label]
    assert [arm.name for arm in config.classifier.arms] == ["label_only", "reason_then_label"]


def test_report_needs_a_run_that_was_evaluated(tmp_path: Path, printed: Said) -> None:
    message = refused(printed, "report", tmp_path)
    assert "metrics.json" in message
    assert "saywhy evaluate" in message


# Predicting.


def test_predict_shows_answers_of_the_recommended_arm(finished: toy.Done, printed: Said) -> None:
    hostile = "[red]it purrs[/red] :cat: \\[/]"
    assert cli.main(["predict", str(finished.folder), *TEXTS, hostile]) == 0
    out, _ = printed()
    classifier = saywhy.load(finished.folder)
    for text, label in zip(TEXTS, classifier.predict(TEXTS), strict=True):
        assert text in out
        assert label in out
    assert hostile in out


def test_predict_reads_and_writes_files(finished: toy.Done, tmp_path: Path, printed: Said) -> None:
    arm = finished.folder / "reason_then_label"
    rows = toy.records()["test"]
    (tmp_path / "rows.csv").write_text("text,other\n" + "".join(f"{row['text']},x\n" for row in rows), encoding="utf-8")
    toy.write_lines(tmp_path / "rows.jsonl", [{"text": row["text"]} for row in rows])
    expected = saywhy.load(arm).predict([row["text"] for row in rows])
    for source in ("rows.csv", "rows.jsonl"):
        for target in ("out.parquet", "deep/out.jsonl"):
            command = ["predict", arm, "--input", tmp_path / source, "--output", tmp_path / target]
            assert cli.main([str(one) for one in command]) == 0
            assert "24 answers" in printed()[0]
        (tmp_path / "out.parquet").rename(tmp_path / ("first.parquet" if source == "rows.csv" else "last.parquet"))
        (tmp_path / "deep" / "out.jsonl").rename(tmp_path / "last.jsonl")
    written = store.read_table(tmp_path / "last.parquet").to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "last.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["label"] for row in written] == [row["label"] for row in lines] == expected
    assert [row["text"] for row in written] == [row["text"] for row in rows]
    assert [row["other"] for row in store.read_table(tmp_path / "first.parquet").to_pylist()] == ["x"] * 24
    assert list(written[0]["probabilities"]) == list(toy.LABELS)
    assert lines[0]["probabilities"] == pytest.approx(written[0]["probabilities"])
    assert lines[0]["reasoning"]


def test_predict_prints_json_in_the_mode_that_is_asked(finished: toy.Done, printed: Said) -> None:
    assert cli.main(["predict", str(finished.folder / "both"), *TEXTS, "--mode", "reason", "--json"]) == 0
    found = [json.loads(line) for line in printed()[0].splitlines()]
    assert [one["label"] for one in found] == saywhy.load(finished.folder / "both", "reason").predict(TEXTS)
    assert all(one["reasoning"] for one in found)
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1)
    assert cli.main(["predict", str(finished.folder / "both"), TEXTS[0], "--json"]) == 0
    assert json.loads(printed()[0])["reasoning"] is None


def test_predict_says_where_it_abstains(finished: toy.Done, tmp_path: Path, printed: Said) -> None:
    run = str(finished.folder)
    sure = {one: max(saywhy.load(run)(one).probabilities.values()) for one in TEXTS}  # type: ignore[union-attr]
    assert cli.main(["predict", run, *TEXTS, "--abstain-below", "1"]) == 0
    out, error = printed()
    assert "not calibrated" not in error
    assert [f"abstains (would say {label})" in out for label in saywhy.load(run).predict(TEXTS)] == [True] * 3
    # Between two of them: answered together, a text's probability may differ in its last bits.
    least, next_one, *_ = sorted(sure.values())
    below = str((least + next_one) / 2)
    assert cli.main(["predict", run, *TEXTS, "--abstain-below", below, "--json"]) == 0
    found = [json.loads(line) for line in printed()[0].splitlines()]
    assert [one["abstained"] for one in found] == [share < float(below) for share in sure.values()]
    assert all(one["label"] in toy.LABELS and one["expected"] is None for one in found)
    toy.write_lines(tmp_path / "rows.jsonl", [{"text": one} for one in TEXTS])
    for name in ("out.parquet", "out.jsonl"):
        command = ["predict", run, "--input", tmp_path / "rows.jsonl", "-o", tmp_path / name, "--abstain-below", "1"]
        assert cli.main([str(one) for one in command]) == 0
        assert "3 answers are in" in printed()[0]
    assert store.read_table(tmp_path / "out.parquet").column("abstained").to_pylist() == [True] * 3
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()[0])["abstained"] is True
    for wrong in ("1.1", "-0.1", "nan"):
        message = refused(printed, "predict", run, "x", f"--abstain-below={wrong}")
        assert "should be a probability from 0 to 1" in message


def test_predict_says_that_a_mode_was_not_calibrated(finished: toy.Done, printed: Said) -> None:
    assert cli.main(["predict", str(finished.folder / "both"), TEXTS[0], "--mode", "vote", "--json"]) == 0
    out, error = printed()
    assert json.loads(out)["label"] in toy.LABELS
    assert "probabilities of mode vote are not calibrated" in error and "evaluate.modes" in error
    assert cli.main(["predict", str(finished.folder / "label_then_reason"), TEXTS[0], "--mode", "explain"]) == 0
    assert "not calibrated" not in printed()[1], "the label's temperature holds"


def test_predict_says_where_adaptive_never_reasons(finished: toy.Done, tmp_path: Path, printed: Said) -> None:
    run = shutil.copytree(finished.folder, tmp_path / "run")
    known = store.read_json(run / "both" / "calibration.json")
    for threshold, says in ((0.0, True), (0.9, False)):
        chosen = {"adaptive": {"temperature": 1.0, "threshold": threshold}}
        store.write_json(run / "both" / "calibration.json", known | chosen)
        assert cli.main(["predict", str(run / "both"), TEXTS[0], "--mode", "adaptive"]) == 0
        assert ("adaptive gives what mode label gives" in printed()[1]) is says


def test_what_was_trained_since_the_run_was_evaluated_is_not_chosen(
    finished: toy.Done, tmp_path: Path, printed: Said
) -> None:
    run = shutil.copytree(finished.folder, tmp_path / "run")
    for arm in toy.ARMS:
        stamp = store.read_json(run / arm / "stamp.json")
        store.write_json(run / arm / "stamp.json", stamp | {"fingerprint": "another training"})
    for words in ([run], [run, "--keep", "0.9"], [run / "both", "--tokens-per-row", "50"]):
        said = refused(printed, "predict", words[0], TEXTS[0], *words[1:])
        assert "was trained after the run was evaluated" in said and "saywhy evaluate" in said
    assert cli.main(["predict", str(run / "both"), TEXTS[0]]) == 0


def test_an_arm_is_found_by_a_link_and_from_within(
    finished: toy.Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = saywhy.load(finished.folder / "both", keep=0.9)
    (tmp_path / "mine").symlink_to(finished.folder / "both")
    assert saywhy.load(tmp_path / "mine", keep=0.9).classifier.threshold == wanted.classifier.threshold
    monkeypatch.chdir(finished.folder / "both")
    assert saywhy.load(".", keep=0.9).mode == wanted.mode


def test_another_tools_figures_are_no_run(tmp_path: Path, printed: Said) -> None:
    store.write_json(tmp_path / "metrics.json", {"accuracy": 0.9})
    assert "metrics.json is not one that saywhy wrote" in refused(printed, "predict", tmp_path, "x")


def test_predict_shows_what_rating_is_expected(tmp_path: Path, printed: Said) -> None:
    data = toy.write_data(tmp_path / "data")
    changes = toy.quick(task__ordinal=True, reasonings__teacher=[], classifier__arms=["label_only"])
    done = toy.run(data, tmp_path / "run", **changes)
    assert done.metrics["arms"]["label_only"]["modes"]["label"]["test"]["mae_expected"] is not None
    found = saywhy.load(done.folder)(TEXTS[0])
    assert isinstance(found, Prediction)
    assert found.expected == pytest.approx(np.array(list(found.probabilities.values())) @ [1, 2, 3])
    assert cli.main(["predict", str(done.folder), TEXTS[0]]) == 0
    assert f"expected {found.expected:.2f}" in printed()[0]


def test_predict_refuses_what_it_cannot_do(finished: toy.Done, tmp_path: Path, printed: Said) -> None:
    run = finished.folder
    assert "it has label" in refused(printed, "predict", run / "label_only", "x", "--mode", "reason")
    assert "cannot predict" in refused(printed, "predict", run / "reasoner", "x")
    assert "conditional on the gold label" in refused(printed, "predict", run / "reasoner", "x")
    assert "no such folder" in refused(printed, "predict", tmp_path / "none", "x")
    assert "neither a model folder" in refused(printed, "predict", tmp_path, "x")
    assert "texts or --input" in refused(printed, "predict", run)
    assert "takes the rows of --input" in refused(printed, "predict", run, "x", "-o", tmp_path / "out.csv")
    assert "no such file" in refused(printed, "predict", run, "--input", tmp_path / "none.csv")
    (tmp_path / "rows.csv").write_text("body\nit purrs\n", encoding="utf-8")
    message = refused(printed, "predict", run, "--input", tmp_path / "rows.csv")
    assert "text" in message and "body" in message
    assert not list(tmp_path.glob("out*"))


def test_a_model_folder_that_was_changed_is_refused(finished: toy.Done, tmp_path: Path, printed: Said) -> None:
    arm = shutil.copytree(finished.folder / "label_only", tmp_path / "arm")
    prompt = store.read_json(arm / "prompt.json")
    (arm / "prompt.json").write_text(json.dumps({**prompt, "golden": prompt["golden"][:-1]}), encoding="utf-8")
    assert "prompt.json is not what the training wrote" in refused(printed, "predict", arm, "x")


# From Python.


def test_load_gives_a_function_from_texts_to_predictions(finished: toy.Done) -> None:
    classifier = saywhy.load(finished.folder / "both")
    assert isinstance(classifier, TextClassifier)
    one = classifier(TEXTS[0])
    assert isinstance(one, Prediction)
    assert one.label in toy.LABELS
    assert one.reasoning is None
    many = classifier(TEXTS)
    assert isinstance(many, list)
    assert [answer.label for answer in many] == classifier.predict(TEXTS)
    assert many[0].probabilities == pytest.approx(one.probabilities, abs=1e-5)
    assert classifier([]) == []
    assert classifier.classes_ == toy.LABELS
    table = classifier.predict_proba(TEXTS)
    assert table.shape == (3, 3)
    assert table.sum(1) == pytest.approx(np.ones(3))
    assert [toy.LABELS[i] for i in table.argmax(1)] == classifier.predict(TEXTS)
    assert classifier.predict_proba([]).shape == (0, 3)
    assert all(answer.reasoning for answer in classifier.explain(TEXTS))
    reasoned = classifier(TEXTS[0], mode="reason")
    assert isinstance(reasoned, Prediction)
    assert reasoned.reasoning
    assert classifier({"text": TEXTS[0]}) == one
    with pytest.raises(RequestError, match="never taught to write reasonings"):
        saywhy.load(finished.folder / "label_only").explain(TEXTS)
    with pytest.raises(RequestError, match="'explain' was not taught to both; it has label, reason"):
        saywhy.load(finished.folder / "both", mode="explain")


def test_predict_gives_none_where_the_answer_abstains(finished: toy.Done, tmp_path: Path) -> None:
    arm = shutil.copytree(finished.folder / "both", tmp_path / "both")
    sure = saywhy.load(arm).predict_proba(TEXTS).max(1)
    below = float(np.sort(sure)[1:].mean())
    expected = [label if p >= below else None for label, p in zip(saywhy.load(arm).predict(TEXTS), sure, strict=True)]
    assert None in expected and set(expected) != {None}
    asked = saywhy.load(arm, abstain_below=below)
    assert asked.abstain_below == below and asked.predict(TEXTS) == expected
    assert asked.predict_proba(TEXTS).max(1) == pytest.approx(sure)
    # What the folder says holds until an argument says otherwise, 0 included, and for its own mode.
    kept = store.read_json(arm / "calibration.json")
    kept["label"]["abstain_below"] = below
    (arm / "calibration.json").write_text(json.dumps(kept), encoding="utf-8")
    assert saywhy.load(arm).predict(TEXTS) == expected
    assert None not in saywhy.load(arm, abstain_below=0).predict(TEXTS)
    assert None not in saywhy.load(arm, "reason").predict(TEXTS)
    for opened, asked_in in product(("label", "reason"), repeat=2):
        many = saywhy.load(arm, opened)(TEXTS, mode=asked_in)
        assert isinstance(many, list)
        assert [one.abstained for one in many] == [asked_in == "label" and label is None for label in expected]
    for wrong in (-0.1, 1.5, float("nan"), "0.7"):
        with pytest.raises(RequestError, match=r"abstain_below is .*probability from 0 to 1"):
            saywhy.load(tmp_path / "none", abstain_below=wrong)
        with pytest.raises(RequestError, match="abstain_below is"):
            replace(asked, abstain_below=wrong)


def test_load_of_a_run_takes_what_it_recommends_at_its_temperature(finished: toy.Done) -> None:
    recommended = finished.metrics["recommended"]
    classifier = saywhy.load(finished.folder)
    assert (classifier.classifier.arm, classifier.mode) == (recommended["arm"], recommended["mode"])
    temperature = finished.metrics["arms"][recommended["arm"]]["modes"][recommended["mode"]]["temperature"]
    assert classifier.classifier.temperatures[classifier.mode] == temperature
    raw = store.read_table(
        finished.folder / "predictions" / f"{recommended['arm']}-{recommended['mode']}-test.parquet"
    ).to_pylist()
    powers = np.array([row["probabilities"] for row in raw]) ** (1 / temperature)
    expected = powers / powers.sum(1, keepdims=True)
    assert classifier.predict_proba([row["text"] for row in raw]) == pytest.approx(expected, abs=1e-4)


def test_tasks_with_templates_take_mappings(tmp_path: Path) -> None:
    data = toy.write_data(tmp_path / "data")
    for name in ("train", "dev", "test"):
        spoil(name, lambda rows: [row.update(place=row["text"].split()[3]) for row in rows] and None)(data)
    changes = toy.quick(task__text="{text} ({place})", reasonings__teacher=[], classifier__arms=["label_only"])
    done = toy.run(data, tmp_path / "run", **changes)
    classifier = saywhy.load(done.folder)
    found = classifier({"text": TEXTS[0], "place": "lake"})
    assert isinstance(found, Prediction)
    assert found == classifier(f"{TEXTS[0]} (lake)")
    with pytest.raises(RequestError, match="place"):
        classifier({"text": TEXTS[0]})


# Real rows and a real checkpoint, where they are.


def test_real_rows_with_a_real_checkpoint(tmp_path: Path, printed: Said) -> None:
    rows, models = os.environ.get("SAYWHY_DATA"), os.environ.get("SAYWHY_MODELS")
    if not rows or not models:
        pytest.skip("SAYWHY_DATA (emotion, emotion-why) and SAYWHY_MODELS (stories260k) name no folders")
    few = ["steps=4", "rows_per_step=8", "evaluations=1", "dev_rows=40", "precision=float32"]
    for split, name in (("dev", "val"), ("test", "test")):
        lines = (Path(rows) / "emotion" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:24]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    sets = [
        f"data.train={Path(rows) / 'emotion-why' / 'train.jsonl'}",
        f"data.dev={tmp_path / 'dev.jsonl'}",
        f"data.test={tmp_path / 'test.jsonl'}",
        "data.rows=120",
        f"base={Path(models) / 'stories260k'}",
        "classifier.arms=[label_only, reason_then_label, label_then_reason, both]",
        "evaluate.explain_rows=5",
        *(f"classifier.train.{one}" for one in few),
    ]
    config = Path(__file__).parents[1] / "examples" / "emotion-small.yaml"
    command = ["run", str(config), "-o", str(tmp_path / "run"), *(x for one in sets for x in ("--set", one))]
    assert cli.main(command) == 0
    metrics = store.read_json(tmp_path / "run" / "metrics.json")
    assert metrics["task"]["labels"] == ["sadness", "joy", "love", "anger", "fear", "surprise"]
    assert set(metrics["arms"]) == {"label_only", "reason_then_label", "label_then_reason", "both"}
    assert metrics["reasonings"]["rows"] == 120
    assert metrics["reasonings"]["kept"] > 60
    for arm in metrics["arms"].values():
        assert arm["train"]["steps"] == 4
        assert arm["train"]["curve"][-1][1] > 0
    assert cli.main(["predict", str(tmp_path / "run"), "i feel so alone tonight"]) == 0
    assert "i feel so alone tonight" in printed()[0]


def test_a_budget_chooses_arm_mode_and_threshold_again(finished: toy.Done) -> None:
    modes = [mode["dev"] for arm in finished.metrics["arms"].values() for mode in arm["modes"].values() if mode["dev"]]
    least = min(scores["tokens_per_row"] for scores in modes)
    assert saywhy.load(finished.folder, tokens_per_row=least + 0.01).mode == "label"
    of_arm = saywhy.load(finished.folder / "both", tokens_per_row=1e9).classifier
    places = [finished.folder / "predictions" / f"both-{mode}-dev.parquet" for mode in ("label", "reason")]
    answers = [evaluate.load_answers(place, of_arm.task) for place in places]
    metric = finished.metrics["recommended"]["metric"]
    mixture = mixed(of_arm.task, *answers, of_arm.threshold)
    assert of_arm.arm == "both" and of_arm.temperatures["adaptive"] == evaluate.temperature_of(of_arm.task, mixture)
    assert of_arm.threshold == evaluate.threshold_of(of_arm.task, *answers, metric, evaluate.Budget(tokens=1e9))


def test_where_reasoning_gains_a_budget_moves_the_threshold(finished: toy.Done, tmp_path: Path) -> None:
    """On the toy's few rows it may gain nothing, and then every threshold is 0."""
    shutil.copytree(finished.folder, tmp_path / "run")
    task = saywhy.load(tmp_path / "run" / "both").classifier.task
    places = [tmp_path / "run" / "predictions" / f"both-{mode}-dev.parquet" for mode in ("label", "reason")]
    label, reason = (evaluate.load_answers(place, task) for place in places)
    sure = tuple(tuple(float(name == gold) for name in task.labels) for gold in label.gold)
    evaluate.save_answers(replace(reason, labels=label.gold, probabilities=sure), places[1])
    found = [saywhy.load(tmp_path / "run" / "both", keep=share).classifier.threshold for share in (0.2, 1.0)]
    assert 0 < found[0] <= found[1]
    answers = [evaluate.load_answers(place, task) for place in places]
    metric = finished.metrics["recommended"]["metric"]
    assert found == [evaluate.threshold_of(task, *answers, metric, evaluate.Budget(keep=keep)) for keep in (0.2, 1.0)]


def test_a_budget_takes_what_adaptive_mixes_where_that_was_not_evaluated(finished: toy.Done, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "run")
    document = store.read_json(tmp_path / "run" / "metrics.json")
    modes = document["arms"]["both"]["modes"]
    document["arms"] = {"both": {**document["arms"]["both"], "modes": {"adaptive": modes["adaptive"]}}}
    store.write_json(tmp_path / "run" / "metrics.json", document)
    assert saywhy.load(tmp_path / "run", keep=0.9).mode == "adaptive"
    assert saywhy.load(tmp_path / "run" / "both", tokens_per_row=1.0).mode == "adaptive"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--keep", "0"], "keep is 0.0; it should be a share above 0 and at most 1"),
        (["--keep", "1.5"], "keep is 1.5"),
        (["--tokens-per-row", "-1"], "tokens_per_row is -1.0; it should be a number of tokens above 0"),
        (["--tokens-per-row", "9", "--keep", "0.9"], "two budgets; give one of them"),
        (["--keep", "0.9", "--mode", "adaptive"], "a budget chooses the mode, and 'adaptive' is chosen already"),
    ],
)
def test_budgets_that_cannot_be_are_refused(finished: toy.Done, printed: Said, options: list[str], says: str) -> None:
    assert says in refused(printed, "predict", finished.folder, TEXTS[0], *options)


def test_a_budget_needs_a_run(finished: toy.Done, tmp_path: Path) -> None:
    shutil.copytree(finished.folder / "both", tmp_path / "both")
    with pytest.raises(RequestError, match="is no finished run"):
        saywhy.load(tmp_path / "both", keep=0.9)


def test_no_text_steers_the_terminal(finished: toy.Done, printed: Said) -> None:
    steering = "\x1b]0;owned\x07\x1b[2J so \x9b31m alone"
    assert cli.main(["predict", str(finished.folder), steering]) == 0
    out, _ = printed()
    assert " so " in out and not any(one in out for one in ("\x1b]", "\x1b[2J", "\x07", "\x9b"))
    assert "\x1b" not in refused(printed, "predict", finished.folder, "--input", "a\x1b[2Jb.csv")


@pytest.mark.parametrize("command", ["run", "evaluate"])
def test_a_budget_on_the_command_line_is_one_of_the_config(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: Said
) -> None:
    seen = []
    monkeypatch.setattr(pipeline, "run", lambda settings, *_, **__: seen.append(settings.evaluate.budget) or tmp_path)
    monkeypatch.setattr(cli, "_finish", lambda _: None)
    config = tmp_path / "c.yaml"
    config.write_text("task: {name: a, instruction: b}\ndata: {train: x.csv}\nbase: scratch\n")
    assert cli.main([command, str(config), "--keep", "0.8"]) == 0
    assert cli.main([command, str(config), "--tokens-per-row", "70.5"]) == 0
    assert [(one.keep, one.tokens_per_row) for one in seen] == [(0.8, None), (0.95, 70.5)]
    assert "evaluate.budget.keep" in refused(printed, command, config, "--keep", "1.5")
