"""`saywhy study`: every cell of a config's study as a run of its own, and one report of them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from saywhy import pipeline, report, store
from saywhy.config import Cell, Config, dump
from saywhy.progress import say
from saywhy.records import RequestError, WorkError
from saywhy.report.study import write_study
from saywhy.study.cells import CellRun, Plan, lines, plan
from saywhy.study.gather import gather

CELLS = "cells"


def run(config: Config, cells: Sequence[Cell], folder: Path, command: str) -> Path:
    """Do every cell below `folder`, each a run like any other, and give the report of them all.

    A stage that is the same in two cells is done once: the second takes over what the first has finished. A cell that
    fails is named in the report and does not end the study. Raises WorkError where no cell could be finished, and
    RequestError where the first one is a request that is wrong.
    """
    for cell in cells:
        pipeline.refuse_early(cell.config)
    with store.open_run(folder):
        store.write_text(folder / "config.yaml", dump(config))
        planned = plan(cells, folder / CELLS)
        done = _done(planned, folder)
        document = gather(done, folder, "study", config.task.name, command)
        store.write_json(folder / "study.json", document)
        path = write_study(folder)
    failed = [one for one in done.runs if one.why]
    if len(failed) == len(done.runs):
        raise WorkError(f"{folder}: no cell could be finished; the first one: {failed[0].why}")
    return path


def _cell(one: CellRun, beside: Path) -> None:
    """Do one run, and draw its own report where its figures are newer."""
    figures, page = pipeline.run(one.config, one.folder, until="evaluate", beside=beside), one.folder / "report.html"
    if not page.exists() or page.stat().st_mtime_ns < figures.stat().st_mtime_ns:
        report.write(one.folder)


def _done(planned: Plan, folder: Path) -> Plan:
    """Do every run of a plan; those that fail say why."""
    total, made = len(planned.runs), dict[Path, CellRun]()
    for line in lines(planned):
        say(line)
    for number, one in enumerate(planned.runs, start=1):
        say(f"run {number} of {total}: {one.folder.name}")
        try:
            _cell(one, folder / CELLS)
        except (WorkError, RequestError) as problem:
            if isinstance(problem, RequestError) and not made:
                raise  # what is wrong with the first run is likely to be wrong with all, and nothing is lost yet
            say(f"failed: {problem}")
            made[one.folder] = replace(one, why=str(problem))
        else:
            made[one.folder] = one
    settings = tuple(
        replace(setting, runs=tuple(made[one.folder] for one in setting.runs)) for setting in planned.settings
    )
    return replace(planned, settings=settings)
