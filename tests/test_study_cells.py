"""Cells of a study: which there are, which are the same, what they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from saywhy import config
from saywhy.config import Cell, combinations
from saywhy.config.study import Study
from saywhy.records import RequestError
from saywhy.study.cells import AS_WRITTEN, plan

BASE: dict[str, Any] = {
    "task": {"name": "t", "instruction": "Which?", "labels": ["a", "b"]},
    "data": {"train": "train.csv"},
    "base": "scratch",
    "reasonings": {"teacher": "column"},
}


def cells(folder: Path, **study: Any) -> list[Cell]:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**BASE, "study": study}, sort_keys=False), encoding="utf-8")
    return config.load_study(path)[1]


def test_a_study_has_every_combination_and_five_seeds_by_default(tmp_path: Path) -> None:
    found = cells(tmp_path, grid={"data.rows": [64, "all"]})
    assert [(one.config.data.rows, one.config.seed) for one in found] == [
        *((64, seed) for seed in range(5)),
        *(("all", seed) for seed in range(5)),
    ]
    assert {one.part for one in found} == {"grid"}
    assert all(one.config.study is None for one in found)


def test_parts_have_the_grid_their_axes_and_their_variants(tmp_path: Path) -> None:
    found = cells(
        tmp_path,
        grid={"seed": [3], "data.rows": [8, 9]},
        parts={
            "weights": {"classifier.train.label_weight": ["balanced", 2]},
            "stage_1": {
                "own": {"reasonings.teacher": "base"},
                "none": {"reasonings.teacher": [], "data.dev": 0.3},
            },
        },
    )
    weights = [one.values for one in found if one.part == "weights"]
    assert weights == [
        {"data.rows": rows, "classifier.train.label_weight": weight, "seed": 3}
        for rows in (8, 9)
        for weight in ("balanced", 2)
    ]
    of_part = [one for one in found if one.part == "stage_1"]
    named_ones = {(one.values["stage_1"], one.values["data.rows"]): one.config for one in of_part}
    assert set(named_ones) == {("own", 8), ("own", 9), ("none", 8), ("none", 9)}
    assert named_ones["own", 8].reasonings.teacher == ("base",)
    assert (named_ones["none", 9].reasonings.teacher, named_ones["none", 9].data.dev) == ((), 0.3)


def test_a_variant_may_set_the_seed_axis_of_its_part(tmp_path: Path) -> None:
    found = cells(tmp_path, parts={"seeds": {"seed": [7, 8], "data.rows": [5]}})
    assert [(one.config.seed, one.config.data.rows) for one in found] == [(7, 5), (8, 5)]


def test_cells_that_are_the_same_in_two_parts_are_one_setting(tmp_path: Path) -> None:
    found = cells(
        tmp_path,
        grid={"seed": [0, 1]},
        parts={"size": {"data.rows": [16, "all"]}, "controls": {"reasonings.replace": ["none", "shuffle"]}},
    )
    made = plan(found, tmp_path / "cells")
    assert [one.name for one in made.settings] == ["data.rows=16", "data.rows=all", "reasonings.replace=shuffle"]
    assert [part.settings for part in made.parts] == [(0, 1), (1, 2)]
    assert made.parts[1].values == ({"reasonings.replace": "none"}, {"reasonings.replace": "shuffle"})
    assert [part.axes for part in made.parts] == [("data.rows",), ("reasonings.replace",)]
    folders = [run.folder for run in made.runs]
    assert len(folders) == len(set(folders)) == 6
    # Seed by seed, so that a study that is stopped has every setting once rather than one setting often.
    assert [run.seed for run in made.runs] == [0, 0, 0, 1, 1, 1]


def test_a_setting_that_changes_nothing_has_a_name(tmp_path: Path) -> None:
    made = plan(cells(tmp_path, grid={"seed": [0]}), tmp_path)
    assert [one.name for one in made.settings] == [AS_WRITTEN]
    assert made.runs[0].folder == tmp_path / "seed=0"


def test_settings_that_differ_never_share_a_name_or_a_folder(tmp_path: Path) -> None:
    """What all settings of a part have is in no name, and another part may name its own the same."""
    found = cells(
        tmp_path,
        grid={"seed": [0]},
        parts={
            "first": {"data.rows": [8, 9], "classifier.arms": [["label_only"]]},
            "second": {"data.rows": [8, 9], "classifier.arms": [["label_only", "both"]]},
            "third": {"classifier.arms": [["both"]]},
        },
    )
    made = plan(found, tmp_path)
    names = [one.name for one in made.settings]
    assert names[:4] == ["data.rows=8", "data.rows=9", "second: data.rows=8", "second: data.rows=9"]
    assert names[4] == 'classifier.arms=["both"]'
    assert [run.folder.name for run in made.runs][:3] == [
        "data.rows=8_seed=0",
        "data.rows=9_seed=0",
        "second_data.rows=8_seed=0",
    ]
    assert len({run.folder for run in made.runs}) == 5


LABELS = config.parse(yaml.safe_dump(BASE), Path("c.yaml"))


@given(st.lists(st.text(max_size=60) | st.integers(), max_size=6, unique_by=lambda value: (type(value), value)))
def test_values_of_any_kind_stand_in_folders_of_their_own(values: list[Any]) -> None:
    # What tells the configs apart does not matter here, only that something does.
    several = [LABELS.model_copy(update={"trackers": ("wandb",) * at}) for at in range(len(values))]
    made = [Cell("part", {"part": value, "seed": 0}, one) for value, one in zip(values, several, strict=True)]
    planned = plan(made, Path("cells"))
    folders = [run.folder.name for run in planned.runs]
    assert len(set(folders)) == len(values)
    assert len({one.name for one in planned.settings}) == len(values)
    assert all("/" not in name and len(name.encode()) < 255 for name in folders)


def test_a_study_that_cannot_be_is_refused_with_its_place(tmp_path: Path) -> None:
    for study, message in (
        ({}, "should hold a grid or parts"),
        ({"parts": {"size": {}}}, "size: should hold a key with a list of values"),
        ({"parts": {"size": {"data.rows": 3}}}, "data.rows should be a list of values, or a mapping of keys, not 3"),
        ({"grid": {"data.rows": [8]}, "parts": {"size": {"data.rows": [9]}}}, "data.rows stands in grid too"),
        ({"parts": {"size": {"data.rowz": [9]}}}, "study.parts.size.data.rowz[0]: data.rowz: unknown key"),
        ({"parts": {"who": {"me": {"reasonings.teachr": "base"}}}}, "study.parts.who: who=me, seed=0: reasonings."),
    ):
        with pytest.raises(RequestError) as told:
            cells(tmp_path, **study)
        assert message in str(told.value)


def test_a_config_without_a_study_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(BASE), encoding="utf-8")
    with pytest.raises(RequestError, match="study: there is none; write one"):
        config.load_study(path)


def test_combinations_follow_seed_by_seed() -> None:
    found = list(combinations(Study(grid={"seed": (1, 2), "data.rows": (5,)})))
    assert [dict(one.sets) for one in found] == [{"data.rows": 5, "seed": 1}, {"data.rows": 5, "seed": 2}]
