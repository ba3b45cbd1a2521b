"""`saywhy study` and `saywhy compare` on the toy task: what is shared is done once, figures are those of the runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toy
from saywhy import cli, config, pipeline, store
from saywhy.metrics import holm, mcnemar_exact
from saywhy.records import RequestError, WorkError
from saywhy.study import run as study_run
from saywhy.study.cells import Part, Plan, Setting
from saywhy.study.compare import compare
from saywhy.study.gather import Finished, Group, headline

SEEDS = [0, 1]
PARTS = {
    "size": {"data.rows": [30, "all"]},
    "controls": {"reasonings.replace": ["none", "shuffle"]},
}


@dataclass(frozen=True)
class Study:
    """A finished study of the toy task."""

    folder: Path
    config_path: Path
    document: dict[str, Any]


def written(folder: Path, **changes: Any) -> Path:
    data = toy.write_data(folder / "data")
    told = toy.quick(**{"evaluate__explain_rows": 0, "evaluate__bootstrap": 100, **changes})
    return toy.write_config(data, **told)


def do(path: Path, folder: Path) -> Path:
    settings, cells = config.load_study(path)
    return study_run.run(settings, cells, folder, "saywhy study config.yaml")


def events(folder: Path) -> list[tuple[str, str]]:
    """What was really done in a cell, by stage."""
    return [(one["stage"], one["event"]) for one in store.read_journal(folder / "journal.jsonl")]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    where = tmp_path_factory.mktemp("study")
    path = written(where, study={"grid": {"seed": SEEDS}, "parts": PARTS})
    do(path, where / "out")
    return Study(where / "out", path, store.read_json(where / "out" / "study.json"))


def test_every_setting_and_seed_is_a_run(study: Study) -> None:
    cells = sorted(path.name for path in (study.folder / "cells").iterdir())
    assert cells == sorted(
        f"{name}_seed={seed}"
        for name in ("data.rows=30", "data.rows=all", "reasonings.replace=shuffle")
        for seed in SEEDS
    )
    for one in cells:
        assert (study.folder / "cells" / one / "report.html").exists()
    assert [(one["name"], one["seeds"]) for one in study.document["settings"]] == [
        ("data.rows=30", SEEDS),
        ("data.rows=all", SEEDS),
        ("reasonings.replace=shuffle", SEEDS),
    ]
    assert (study.folder / "report.html").stat().st_size > 10_000


def test_what_is_the_same_in_two_cells_is_done_once(study: Study) -> None:
    whole, shuffled = (
        study.folder / "cells" / f"{name}_seed=0" for name in ("data.rows=all", "reasonings.replace=shuffle")
    )
    assert {("label_only", "done"), ("reason_then_label", "done"), ("reasonings", "done")} <= set(events(whole))
    done = {stage for stage, _ in events(shuffled)}
    assert "reason_then_label" in done
    assert not done & {"base", "reasonings", "label_only", "label_only-label-test", "label_only-label-dev"}
    weights = [folder / "label_only" / "model.safetensors" for folder in (whole, shuffled)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    # Another seed shares nothing, nor do fewer rows.
    assert {"label_only", "base"} <= {stage for stage, _ in events(study.folder / "cells" / "data.rows=all_seed=1")}
    assert {"label_only", "base"} <= {stage for stage, _ in events(study.folder / "cells" / "data.rows=30_seed=0")}


def test_a_cell_is_what_a_run_alone_would_be(study: Study, tmp_path: Path) -> None:
    settings = config.load(study.config_path, ["seed=0", "reasonings.replace=shuffle"])
    pipeline.run(settings, tmp_path / "alone")
    alone = store.read_json(tmp_path / "alone" / "metrics.json")
    cell = store.read_json(study.folder / "cells" / "reasonings.replace=shuffle_seed=0" / "metrics.json")
    for document in (alone, cell):
        # What a setting and a seed of a study leave is what a run alone leaves, but for the clock.
        for arm in document["arms"].values():
            del arm["train"]
            for mode in arm["modes"].values():
                for split in ("dev", "test"):
                    del mode[split]["rows_per_second"]
        for floor in document["floors"].values():
            floor.pop("rows_per_second", None)
    assert alone == cell


def test_a_second_command_repeats_nothing(study: Study) -> None:
    before = {path.name: events(path) for path in (study.folder / "cells").iterdir()}
    document = store.read_json(study.folder / "study.json")
    do(study.config_path, study.folder)
    assert {path.name: events(path) for path in (study.folder / "cells").iterdir()} == before
    assert store.read_json(study.folder / "study.json") == document


def test_what_a_cell_took_over_stays_when_its_source_changes(study: Study, tmp_path: Path) -> None:
    copied = shutil.copytree(study.folder / "cells", tmp_path / "cells", copy_function=os.link)
    names = ("data.rows=all", "reasonings.replace=shuffle")
    source, taker = (copied / f"{name}_seed=0" / "label_only" for name in names)
    before = (taker / "calibration.json").read_bytes()
    store.write_json(source / "calibration.json", {"label": {"temperature": 9.0}})
    assert (taker / "calibration.json").read_bytes() == before


def test_the_figures_are_the_runs_own(study: Study) -> None:
    for setting in study.document["settings"]:
        runs = [store.read_json(study.folder / one / "metrics.json") for one in setting["folders"]]
        for name, system in setting["systems"].items():
            arm, mode = name.split("/")
            scores = [
                run["floors"][mode] if arm == "floors" else run["arms"][arm]["modes"][mode]["test"] for run in runs
            ]
            for metric in ("accuracy", "macro_f1", "mean_recall", "nll", "tokens_per_row"):
                figure = system["test"][metric]
                assert figure["by_seed"] == pytest.approx([one[metric] for one in scores])
                assert figure["mean"] == pytest.approx(np.mean([one[metric] for one in scores]))
            low, high = system["test"]["accuracy"]["ci95"]
            assert low <= system["test"]["accuracy"]["mean"] <= high
            assert system["per_class"]["cat"]["precision"]["by_seed"] == [
                one["per_class"]["cat"]["precision"] for one in scores
            ]
    kinds = {name: one["kind"] for name, one in study.document["settings"][0]["systems"].items()}
    assert kinds["label_only/label"] == "label_only"
    assert kinds["floors/linear"] == "floor"


def comparison(document: dict[str, Any], a: tuple[str, str], b: tuple[str, str], metric: str) -> dict[str, Any]:
    names = {one["id"]: one["name"] for one in document["settings"]}
    found = [
        row
        for row in document["comparisons"]
        if ((names[row["a"]["setting"]], row["a"]["system"]), (names[row["b"]["setting"]], row["b"]["system"]))
        == (a, b)
        and row["metric"] == metric
    ]
    assert found, (a, b, metric)
    return found[0]


def right(folder: Path, name: str) -> np.ndarray[Any, Any]:
    table = store.read_table(folder / "predictions" / f"{name}-test.parquet").to_pylist()
    return np.array([row["label"] == row["gold"] for row in sorted(table, key=lambda row: row["id"])])


def test_comparisons_are_paired_within_each_seed(study: Study) -> None:
    a, b = ("reasonings.replace=shuffle", "reason_then_label/reason"), ("data.rows=all", "reason_then_label/reason")
    row = comparison(study.document, a, b, "accuracy")
    cells = study.folder / "cells"
    expected, tests = [], []
    for seed in SEEDS:
        of_a = right(cells / f"{a[0]}_seed={seed}", "reason_then_label-reason")
        of_b = right(cells / f"{b[0]}_seed={seed}", "reason_then_label-reason")
        expected.append(of_a.mean() - of_b.mean())
        tests.append(mcnemar_exact(int((of_a & ~of_b).sum()), int((of_b & ~of_a).sum())))
    assert row["by_seed"] == pytest.approx(expected)
    assert row["difference"] == pytest.approx(np.mean(expected))
    assert row["p_mcnemar"] == pytest.approx(tests)
    assert row["part"] == "controls"


def test_what_two_cells_share_is_not_compared_with_itself(study: Study) -> None:
    names = {one["id"]: one["name"] for one in study.document["settings"]}
    across = [
        row["a"]["system"]
        for row in study.document["comparisons"]
        if names[row["a"]["setting"]] == "reasonings.replace=shuffle" and row["a"]["setting"] != row["b"]["setting"]
    ]
    assert "reason_then_label/reason" in across
    assert "label_only/label" not in across


def test_p_values_are_adjusted_over_the_whole_study_each_once(study: Study) -> None:
    rows = [row for row in study.document["comparisons"] if row["metric"] == "accuracy"]
    once = {str((row["a"], row["b"])): row["p_mcnemar"] for row in rows}
    every = [p for ps in once.values() for p in ps]
    adjusted = dict(zip([(key, at) for key, ps in once.items() for at in range(len(ps))], holm(every), strict=True))
    for row in study.document["comparisons"]:
        if row["metric"] == "accuracy":
            key = str((row["a"], row["b"]))
            assert row["p_mcnemar_holm"] == pytest.approx([adjusted[key, at] for at in range(len(SEEDS))])
        else:
            assert row["p_mcnemar_holm"] is None
        if row["p"] is not None:
            assert row["p_holm"] >= row["p"]


def test_the_headline_is_about_the_first_setting(study: Study) -> None:
    told = study.document["headline"]
    assert told["part"] == "size"
    assert (told["a"], told["b"]) == (
        {"setting": "s0", "system": "reason_then_label/reason"},
        {"setting": "s0", "system": "label_only/label"},
    )


def test_a_cell_that_fails_is_named_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, study={"grid": {"seed": [0, 1]}})
    real = pipeline.run

    def fails(settings: Any, folder: Path, **rest: Any) -> Path:
        if settings.seed == 0:
            raise WorkError("the disk is full")
        return real(settings, folder, **rest)

    monkeypatch.setattr(pipeline, "run", fails)
    assert cli.main(["study", str(path), "-o", str(tmp_path / "out")]) == 1
    told = capsys.readouterr()
    assert "as written, seed 0: the disk is full" in told.err
    assert f"report: {tmp_path / 'out' / 'report.html'}" in told.out
    document = store.read_json(tmp_path / "out" / "study.json")
    assert document["settings"][0]["failed"] == [{"seed": 0, "why": "the disk is full"}]
    assert document["settings"][0]["seeds"] == [1]
    assert document["notes"][0] == "1 of 2 runs failed and are left out."
    assert document["comparisons"][0]["seed_ci95"] is None

    def always(settings: Any, folder: Path, **rest: Any) -> Path:
        return fails(settings.model_copy(update={"seed": 0}), folder)

    monkeypatch.setattr(pipeline, "run", always)
    with pytest.raises(WorkError, match="no cell could be finished; the first one: the disk is full"):
        do(path, tmp_path / "none")


def test_a_request_that_is_wrong_ends_a_study_where_nothing_is_lost(tmp_path: Path) -> None:
    path = written(tmp_path, study={"grid": {"seed": [0]}, "parts": {"size": {"data.rows": [3000, "all"]}}})
    with pytest.raises(RequestError, match=r"data\.rows: 3000 is more than the 60 rows"):
        do(path, tmp_path / "first")
    path = written(tmp_path, study={"grid": {"seed": [0]}, "parts": {"size": {"data.rows": ["all", 3000]}}})
    do(path, tmp_path / "second")
    document = store.read_json(tmp_path / "second" / "study.json")
    assert [len(one["seeds"]) for one in document["settings"]] == [1, 0]
    assert "data.rows: 3000" in document["settings"][1]["failed"][0]["why"]


def test_runs_side_by_side_from_what_they_saved(study: Study, tmp_path: Path) -> None:
    moved = tmp_path / "runs"
    names = [f"{one}_seed={seed}" for one in ("data.rows=all", "reasonings.replace=shuffle") for seed in SEEDS]
    for name in names:
        shutil.copytree(study.folder / "cells" / name, moved / name)
        for weights in (moved / name).rglob("*.safetensors"):
            weights.unlink()
    page = tmp_path / "page.html"
    document = compare([moved / name for name in names], page, "saywhy compare …")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [(one["name"], one["seeds"]) for one in document["settings"]] == [
        (" + ".join(names[:2]), SEEDS),
        (" + ".join(names[2:]), SEEDS),
    ]
    told = {one["name"]: one for one in study.document["settings"]}
    assert document["settings"][0]["systems"] == told["data.rows=all"]["systems"]


@pytest.fixture
def two(study: Study) -> Iterator[list[Path]]:
    yield [study.folder / "cells" / f"data.rows=all_seed={seed}" for seed in SEEDS]


def test_what_cannot_be_compared_is_refused(two: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    with pytest.raises(RequestError, match="named twice"):
        compare([two[0], two[0]], page, "")
    with pytest.raises(RequestError, match="no finished run"):
        compare([two[0], tmp_path], page, "")
    copied = shutil.copytree(two[0], tmp_path / "again")
    with pytest.raises(RequestError, match="the same settings and the same seed"):
        compare([two[0], copied], page, "")
    told = store.read_json(copied / "metrics.json")
    told["task"]["labels"] = ["x", "y"]
    store.write_json(copied / "metrics.json", told)
    with pytest.raises(RequestError, match="compare runs of one task"):
        compare([two[0], copied], page, "")


def test_the_commands(two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert cli.main(["compare", *map(str, two), "-o", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "label_only/label" in printed
    assert f"report: {page}" in printed
    assert cli.main(["compare", *map(str, two), "-o", str(page)]) == 2
    assert "add --overwrite" in capsys.readouterr().err


def made_up(dev: dict[str, float], test: dict[str, float], folder: Path) -> Finished:
    """A run of two label-only and two reasoned arms, of which only the figures that choose are told."""
    arms = {
        name: {
            "arm": "label_only" if name.startswith("label_only") else "label_then_reason",
            "modes": {"label": {"dev": {"mean_recall": dev[name]}, "test": {"mean_recall": test[name]}}},
        }
        for name in dev
    }
    told = {"name": "t", "labels": ["a", "b"], "ordinal": False}
    return Finished(folder, 0, {"task": told, "seed": 0, "arms": arms, "floors": {}})


def test_dev_alone_chooses_what_the_headline_is_about(tmp_path: Path) -> None:
    dev = {"label_only": 0.7, "label_only_twice": 0.6, "first": 0.5, "second": 0.8}
    run = made_up(dev, {name: 1 - value for name, value in dev.items()}, tmp_path)
    group = Group(Setting("as written", {}, ()), (run,), 10)
    sides = [({"setting": "s0", "system": f"{a}/label"}, {"setting": "s0", "system": f"{b}/label"})
             for a in ("first", "second") for b in ("label_only", "label_only_twice")]  # fmt: skip
    rows = [{"a": a, "b": b, "metric": "mean_recall"} for a, b in sides]
    chosen = headline(Plan((group.setting,), (Part("grid", (), (0,), ({},)),)), {0: group}, rows, "mean_recall")
    assert chosen is not None
    assert (chosen["a"]["system"], chosen["b"]["system"]) == ("second/label", "label_only/label")
