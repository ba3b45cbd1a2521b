"""What the config's probes find in each arm. What was found before is not looked for again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from saywhy import evaluate, probe, store
from saywhy.data import fingerprint
from saywhy.evaluate import Answers
from saywhy.pipeline.stage import Made, Run, keep
from saywhy.predict import Classifier
from saywhy.progress import say
from saywhy.records import RequestError

Look = Callable[[Classifier], Any]


@dataclass(frozen=True)
class Job:
    """One probe of one mode of an arm: what its findings depend on beside the model and its answers, and the work."""

    kind: str
    arm: Made
    mode: str
    settings: Mapping[str, object]
    look: Look


def probed(
    this: Run,
    arms: Mapping[str, Made],
    kinds: Mapping[str, str],
    test: Mapping[str, Answers],
    opened: Callable[[Path], Classifier],
) -> tuple[dict[str, Any], list[str]]:
    """Do what `evaluate.probes` asks for, arm by arm; give the findings by probe, and which probes had nothing to do.

    `kinds` has what each arm was taught, `test` the answers by `<arm>/<mode>`; `opened` loads a model folder.
    """
    found: dict[str, dict[str, Any]] = {kind: {} for kind in this.config.evaluate.probes}
    for name, arm in arms.items():
        for job in _jobs(this, name, arm, kinds, test):
            found[job.kind][f"{name}/{job.mode}"] = _kept(this, job, opened)
    idle = [kind for kind in found if not found[kind]]
    if "latency" in found:
        rows = min(len(this.data.test), probe.TIMED_ROWS)
        found["latency"] = {"rows": rows, **probe.machine(), "systems": found["latency"]}
    return found, [f"evaluate.probes: {kind}: no arm was asked in a mode that it looks into." for kind in idle]


def _jobs(this: Run, name: str, arm: Made, kinds: Mapping[str, str], test: Mapping[str, Answers]) -> Iterator[Job]:
    """Go through what is to be looked at in one arm."""
    asked, rows, seed = this.config.evaluate, this.data.test, this.config.seed
    budget, drawn = asked.max_tokens_in_flight, (asked.bootstrap, seed)
    look: Look
    settings = {"bootstrap": asked.bootstrap, "seed": seed}
    modes = [mode for of, _, mode in (system.partition("/") for system in test) if of == name and mode != "explain"]
    for kind in asked.probes:
        for mode in modes:
            answers = test[f"{name}/{mode}"]
            if kind == "faithfulness" and mode == "reason":
                without = _without(kinds, test, name)
                against = None if without is None else (without, test[without])
                beside = {**settings, "without": without and [without, _stamp(this, without)]}
                look = partial(
                    probe.faithfulness, rows=rows, answers=answers, without=against, budget=budget, drawn=drawn
                )
                yield Job(kind, arm, mode, beside, look)
            if kind == "inside" and mode in probe.POSITIONS:
                look = partial(probe.inside, rows=rows, answers=answers, mode=mode, budget=budget, drawn=drawn)
                yield Job(kind, arm, mode, settings, look)
            if kind == "latency":
                look = partial(probe.latency, rows=rows, mode=mode, sizes=asked.batches)
                yield Job(kind, arm, mode, {"batches": asked.batches, **probe.machine()}, look)


def _without(kinds: Mapping[str, str], test: Mapping[str, Answers], name: str) -> str | None:
    """Choose who gives the label without a reasoning: the arm itself, else one that was taught nothing more."""
    able = [arm for arm in kinds if f"{arm}/label" in test]
    chosen = min(able, key=lambda arm: (arm != name, kinds[arm] != "label_only"), default=None)
    return None if chosen is None else f"{chosen}/label"


def _stamp(this: Run, system: str) -> str | None:
    return store.table_stamp(this.folder / "predictions" / f"{system.replace('/', '-')}-test.parquet")


def _kept(this: Run, job: Job, opened: Callable[[Path], Classifier]) -> Any:
    """Give what a probe found; it looks again only where model, rows, answers or settings are others than before."""
    name = f"{job.arm.folder.name}-{job.mode}-{job.kind}"
    inputs = {
        "model": job.arm.stamp,
        "rows": fingerprint(this.data.test),
        "answers": _stamp(this, f"{job.arm.folder.name}/{job.mode}"),
    }
    stamp = store.fingerprint("probes", {"kind": job.kind, "mode": job.mode, **job.settings}, inputs)

    def write(path: Path) -> None:
        say(f"{name}: looking")
        store.write_json(path, {"stamp": stamp, "found": evaluate.plain(job.look(opened(job.arm.folder)))})
        store.append(this.folder / "journal.jsonl", {"stage": name, "stamp": stamp, "event": "done"})

    return store.read_json(keep(this, f"probes/{name}.json", lambda path: _is_of(path, stamp), write))["found"]


def _is_of(path: Path, stamp: str) -> bool:
    """Whether a file holds the findings of this stamp."""
    try:
        saved = store.read_json(path)
    except RequestError:  # missing, or broken
        return False
    return isinstance(saved, dict) and saved.get("stamp") == stamp and "found" in saved
