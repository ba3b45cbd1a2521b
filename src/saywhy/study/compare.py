"""`saywhy compare`: finished runs side by side, from what they saved alone; no model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saywhy import store
from saywhy.config import Config, load
from saywhy.records import RequestError
from saywhy.report.study import render_study, study_predictions
from saywhy.study.cells import CellRun, Part, Plan, Setting, but_for_seed
from saywhy.study.gather import Finished, finished, gather

PART = "runs"


def compare(folders: Sequence[Path], output: Path, command: str) -> dict[str, Any]:
    """Write one page about finished runs and give what it shows; those that differ in their seed alone are one setting.

    Systems are held against each other where they answered the same rows. Raises RequestError for a folder that is no
    finished run, and where runs are of different tasks.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise RequestError("compare: a folder is named twice; name each run once")
    runs = [_read(folder) for folder in folders]
    _refuse_other_tasks(runs)
    groups: dict[str, list[tuple[Finished, Config]]] = {}
    for run in runs:
        told = load(run.folder / "config.yaml")
        groups.setdefault(but_for_seed(told), []).append((run, told))
    settings = tuple(_setting(some) for some in groups.values())
    part = Part(PART, ("run",), tuple(range(len(settings))), tuple(one.values for one in settings))
    document = gather(Plan(settings, (part,)), output.parent, "compare", runs[0].task.name, command)
    store.write_text(output, render_study(document, study_predictions(document, output.parent)))
    return document


def _read(folder: Path) -> Finished:
    if not (folder / "metrics.json").exists():
        raise RequestError(f"{folder}: no finished run, metrics.json is missing; name a folder that `saywhy run` wrote")
    return finished(folder)


def _refuse_other_tasks(runs: Sequence[Finished]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if run.task.labels != first.task.labels:
            ours, theirs = (", ".join(one.task.labels[:8]) or "choices of each row" for one in (first, run))
            raise RequestError(
                f"{run.folder}: its labels are {theirs}, those of {first.folder} are {ours}; compare runs of one task"
            )


def _setting(some: Sequence[tuple[Finished, Config]]) -> Setting:
    runs = [run for run, _ in some]
    name = " + ".join(run.folder.name for run in runs)
    seeds = [run.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise RequestError(
            f"{runs[0].folder}: {runs[1].folder} has the same settings and the same seed; name one of them"
        )
    return Setting(name, {"run": name}, tuple(CellRun(run.seed, config, run.folder) for run, config in some))
