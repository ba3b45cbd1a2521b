"""study.json: what the runs of a study, or finished runs set side by side, say together, from what they saved alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from saywhy import metrics, store
from saywhy.evaluate import Answers, load_answers, plain
from saywhy.evaluate.seeds import RECALL_OF, Difference, Seeds, difference_of, mean_of, measure_seeds
from saywhy.records import Task
from saywhy.study.cells import Part, Plan, Setting

FLOOR = "floors"
LABEL_ONLY = "label_only"
EXPLAIN = "explain"
# Read off answers again, with an interval over rows and seeds; the other figures are means of what the runs report.
WITH_INTERVAL = ("accuracy", "macro_f1", "mean_recall")
OF_A_SCALE = ("mae", "qwk")
REPORTED = (
    "nll", "brier", "ece", "forced", "accuracy_unforced", "tokens_per_row", "rows_per_second", "mae_expected",
)  # fmt: skip
TRAINED = ("steps", "rows", "tokens", "seconds")
SAMPLES = 6


@dataclass(frozen=True)
class Finished:
    """A finished run: its folder, its seed and what it measured."""

    folder: Path
    seed: int
    metrics: Mapping[str, Any]

    @cached_property
    def task(self) -> Task:
        """The task, as far as answers need it to be read."""
        told = self.metrics["task"]
        return Task(told["name"], "", tuple(told["labels"]), ordinal=told["ordinal"])

    @cached_property
    def systems(self) -> dict[str, Mapping[str, Any]]:
        """What metrics.json says of every arm in every mode but explain, and of every floor."""
        arms = self.metrics["arms"].items()
        named = {
            f"{arm}/{mode}": entry for arm, facts in arms for mode, entry in facts["modes"].items() if mode != EXPLAIN
        }
        floors = {f"{FLOOR}/{name}": {"test": one} for name, one in self.metrics["floors"].items() if one}
        return {**named, **floors}

    def kind(self, system: str) -> str:
        """What an arm is taught, or floor."""
        arm = system.partition("/")[0]
        return FLOOR.removesuffix("s") if arm == FLOOR else str(self.metrics["arms"][arm].get("arm", arm))

    def answers(self, system: str) -> Answers | None:
        """The saved answers of a system to the test split, None where none were saved."""
        path = self.folder / "predictions" / f"{system.replace('/', '-')}-test.parquet"
        return load_answers(path, self.task) if path.exists() else None


@dataclass(frozen=True)
class Group:
    """A setting with the runs of it that were finished; their answers are read, and measured, as they are asked for."""

    setting: Setting
    runs: tuple[Finished, ...]
    resamples: int
    known: dict[str, tuple[Answers, ...] | None] = field(default_factory=dict)
    resampled: dict[tuple[str, tuple[int, ...]], Seeds] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """Give the task, which all runs share."""
        return self.runs[0].task

    @property
    def systems(self) -> list[str]:
        """The systems that every run has."""
        first, *others = [run.systems for run in self.runs]
        return [name for name in first if all(name in one for one in others)]

    def answers(self, system: str) -> tuple[Answers, ...] | None:
        """A system's answers to the test split, one a seed; None where a run saved none."""
        if system not in self.known:
            found = [run.answers(system) for run in self.runs]
            whole = tuple(one for one in found if one is not None)
            self.known[system] = whole if len(whole) == len(found) else None
        return self.known[system]

    @property
    def metrics(self) -> tuple[str, ...]:
        """What systems are compared by."""
        scale = OF_A_SCALE if self.task.ordinal else ()
        return (*WITH_INTERVAL, *scale) if self.task.labels else ("accuracy",)

    def measured(self, system: str, seeds: Sequence[int]) -> Seeds:
        """A system on the rows of these seeds and on resamples of them, the same for all that answered the same rows.

        Resampling takes long and a comparison of two that were resampled none, so each is resampled once.
        """
        key = (system, tuple(seeds))
        if key not in self.resampled:
            answers = dict(zip((run.seed for run in self.runs), self.answers(system) or (), strict=True))
            names = (*self.metrics, *(f"{RECALL_OF}{label}" for label in self.task.labels))
            some = [answers[seed] for seed in seeds]
            self.resampled[key] = measure_seeds(self.task, {system: some}, names, self.resamples)[system]
        return self.resampled[key]


def gather(plan: Plan, root: Path, kind: str, name: str, command: str, resamples: int = 2000) -> dict[str, Any]:
    """Everything that the report of a study shows, as strict JSON; `kind` is study or compare.

    Folders are named relative to `root` where they lie below it.
    """
    groups = {
        at: Group(setting, tuple(_finished(setting)), resamples)
        for at, setting in enumerate(plan.settings)
        if any(not run.why for run in setting.runs)
    }
    metric = next((str((g.runs[0].metrics["recommended"] or {}).get("metric", "")) for g in groups.values()), "")
    found = list(chain.from_iterable(_compared(part, groups) for part in plan.parts))
    _adjust(found)
    settings = [_setting(at, setting, groups.get(at), root) for at, setting in enumerate(plan.settings)]
    document = {
        "name": name,
        "kind": kind,
        "metric": metric or "accuracy",
        "parts": [_part(part) for part in plan.parts],
        "settings": settings,
        "comparisons": found,
        "headline": headline(plan, groups, found, metric),
        "notes": _notes(plan, groups),
        "versions": next((group.runs[0].metrics["versions"] for group in groups.values()), {}),
        "command": command,
    }
    return dict(plain(document))


def finished(folder: Path) -> Finished:
    """Read a finished run; RequestError where there is none."""
    measured = store.read_json(folder / "metrics.json")
    return Finished(folder, measured["seed"], measured)


def _finished(setting: Setting) -> Iterator[Finished]:
    yield from (finished(run.folder) for run in setting.runs if not run.why)


def _id(at: int) -> str:
    return f"s{at}"


def _part(part: Part) -> dict[str, Any]:
    settings = [_id(at) for at in part.settings]
    return {"name": part.name, "axes": part.axes, "settings": settings, "values": part.values}


def _setting(at: int, setting: Setting, group: Group | None, root: Path) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": _id(at),
        "name": setting.name,
        "values": setting.values,
        "seeds": [run.seed for run in setting.runs if not run.why],
        "folders": [_relative(run.folder, root) for run in setting.runs if not run.why],
        "failed": [{"seed": run.seed, "why": run.why} for run in setting.runs if run.why],
    }
    if group is None:
        nothing = dict.fromkeys(("task", "rows", "reasonings", "probes"))
        return {**told, **nothing, "systems": {}, "recommended": []}
    first = group.runs[0].metrics
    splits = (first.get("audit") or {}).get("splits") or {}
    chosen = [{"seed": run.seed, **(run.metrics["recommended"] or {})} for run in group.runs]
    probed = [run.metrics["probes"] for run in group.runs if run.metrics.get("probes")]
    return {
        **told,
        "task": first["task"],
        "rows": {name: (splits.get(name) or {}).get("rows") for name in ("train", "dev", "test")},
        "systems": {name: _system(group, name) for name in group.systems},
        "recommended": [{key: one.get(key) for key in ("seed", "arm", "mode")} for one in chosen],
        "reasonings": _reasonings(group),
        "probes": probed[0] if probed else None,
    }


def _relative(folder: Path, root: Path) -> str:
    inside = folder.resolve().is_relative_to(root.resolve())
    return Path(os.path.relpath(folder, root)).as_posix() if inside else str(folder.resolve())


def _system(group: Group, name: str) -> dict[str, Any]:
    """One system of a setting: its figures over the seeds."""
    entries = [run.systems[name] for run in group.runs]
    tests = [entry["test"] for entry in entries]
    devs = [entry.get("dev") or {} for entry in entries]
    figures = {one: _mean([test.get(one) for test in tests]) for one in (*group.metrics, *REPORTED)}
    recalls: dict[str, Any] = {}
    if group.answers(name) is not None:
        seen = group.measured(name, [run.seed for run in group.runs])
        figures |= {one: _told_mean(seen, one) for one in group.metrics}
        recalls = {label: _told_mean(seen, f"{RECALL_OF}{label}") for label in group.task.labels}
    arm = name.partition("/")[0]
    facts = [run.metrics["arms"][arm]["train"] for run in group.runs if arm in run.metrics["arms"]]
    reasonings = group.runs[0].metrics.get("reasonings") or {}
    kind = group.runs[0].kind(name)
    return {
        "kind": kind,
        "replace": "none" if kind in (LABEL_ONLY, "floor") else reasonings.get("replace", "none"),
        "dev": {one: _mean([dev.get(one) for dev in devs])["mean"] for one in group.metrics},
        "test": figures,
        "per_class": _per_class(tests, recalls),
        "train": {key: _mean([fact.get(key) for fact in facts])["mean"] for key in TRAINED} if facts else None,
    }


def _told_mean(seen: Seeds, metric: str) -> dict[str, Any]:
    found = mean_of(seen, metric)
    return {"mean": found.mean, "by_seed": found.by_seed, "ci95": found.ci95, "sd": found.sd}


def _mean(values: Sequence[float | None]) -> dict[str, Any]:
    """The mean of what the runs report; undefined where it is undefined in one of them."""
    defined = [float(value) for value in values if value is not None]
    whole = len(defined) == len(values) > 0
    spread = float(np.std(defined, ddof=1)) if whole and len(defined) > 1 else None
    return {"mean": float(np.mean(defined)) if whole else None, "by_seed": values, "ci95": None, "sd": spread}


def _per_class(tests: Sequence[Mapping[str, Any]], recalls: Mapping[str, Any]) -> dict[str, Any] | None:
    if not all(test.get("per_class") for test in tests):
        return None
    found = {}
    for label in tests[0]["per_class"]:
        of_label = [test["per_class"][label] for test in tests]
        means = {one: _mean([entry[one] for entry in of_label]) for one in ("recall", "precision", "f1")}
        found[label] = {**means, "support": round(float(np.mean([entry["support"] for entry in of_label])))}
        if label in recalls:
            found[label]["recall"] = recalls[label]
    return found


def _reasonings(group: Group) -> dict[str, Any] | None:
    """What became of the candidates, means over the seeds, with kept reasonings of the rarest class."""
    every = [run.metrics["reasonings"] for run in group.runs if run.metrics.get("reasonings")]
    if not every:
        return None
    first = every[0]

    def mean(*keys: str) -> float | None:
        found: float | None = _mean([_at(one, keys) for one in every])["mean"]
        return found

    candidates, kept = mean("candidates"), mean("kept")
    reasons = sorted({reason for one in every for reason in one["dropped"]})
    rarest = min(first["by_class"], key=lambda label: first["by_class"][label]["rows"], default=None)
    samples = [one for one in first.get("samples") or () if one["label"] == rarest and not one["dropped_because"]]
    return {
        "rows": mean("rows"),
        "candidates": candidates,
        "kept": kept,
        "kept_share": kept / candidates if kept is not None and candidates else None,
        "rows_without": mean("rows_without"),
        "dropped": {reason: float(np.mean([one["dropped"].get(reason, 0) for one in every])) for reason in reasons},
        "support": mean("figures", "support", "kept"),
        "likelihood": mean("figures", "likelihood", "kept"),
        "replace": first.get("replace", "none"),
        "leakage": {
            "written": mean("leakage", "written", "accuracy"),
            "taught": mean("leakage", "taught", "accuracy"),
            "chance": mean("leakage", "chance"),
        },
        "samples": [
            {key: one[key] for key in ("label", "reasoning", "dropped_because")} for one in samples[:SAMPLES]
        ],
    }


def _at(value: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _compared(part: Part, groups: Mapping[int, Group]) -> Iterator[dict[str, Any]]:
    """The comparisons that a part asks for: arms with label-only ones, and settings with the part's first."""
    present = [at for at in part.settings if at in groups]
    for at in present:
        group = groups[at]
        for a, b in _pairs(group):
            yield from _rows(part, (at, group, a), (at, group, b))
    if len(present) > 1 and present[0] == part.settings[0]:
        first = groups[present[0]]
        for at in present[1:]:
            for name in groups[at].systems:
                if name in first.systems:
                    yield from _rows(part, (at, groups[at], name), (present[0], first, name))
            for a, b in _pairs_with_first(groups[at], first):
                yield from _rows(part, (at, groups[at], a), (present[0], first, b))


def _pairs(group: Group) -> list[tuple[str, str]]:
    """Each arm and mode against each label-only arm, and these against the floors that say most."""
    plain_ones, reasoned = _by_kind(group)
    floors = [name for name in group.systems if group.runs[0].kind(name) == "floor" and name != f"{FLOOR}/majority"]
    return [
        *((a, b) for a in reasoned for b in plain_ones),
        *((a, b) for at, a in enumerate(plain_ones) for b in plain_ones[:at]),
        *((a, b) for a in (*plain_ones, *reasoned) for b in floors),
    ]


def _pairs_with_first(group: Group, first: Group) -> list[tuple[str, str]]:
    """The reasoned arms of a setting that trains no label-only one, against those of the first setting."""
    plain_ones, reasoned = _by_kind(group)
    return [] if plain_ones else [(a, b) for a in reasoned for b in _by_kind(first)[0]]


def _by_kind(group: Group) -> tuple[list[str], list[str]]:
    """The label-only systems of a setting, and the reasoned ones."""
    kinds = {name: group.runs[0].kind(name) for name in group.systems}
    plain_ones = [name for name, kind in kinds.items() if kind == LABEL_ONLY]
    return plain_ones, [name for name, kind in kinds.items() if kind not in (LABEL_ONLY, "floor")]


def _rows(part: Part, a: tuple[int, Group, str], b: tuple[int, Group, str]) -> Iterator[dict[str, Any]]:
    """One comparison in each metric; none where the two did not answer the same rows, or are one and the same."""
    (a_at, a_group, a_name), (b_at, b_group, b_name) = a, b
    of_a, of_b = a_group.answers(a_name), b_group.answers(b_name)
    if of_a is None or of_b is None or a_group.task.labels != b_group.task.labels:
        return
    seeds = [run.seed for run in a_group.runs if run.seed in {other.seed for other in b_group.runs}]
    by_seed = {run.seed: one for run, one in zip(a_group.runs, of_a, strict=True)}
    others = {run.seed: one for run, one in zip(b_group.runs, of_b, strict=True)}
    pairs = [(by_seed[seed], others[seed]) for seed in seeds]
    same_rows = all(_asked(one) == _asked(other) for one, other in pairs)
    if not pairs or not same_rows or all(one.probabilities == other.probabilities for one, other in pairs):
        return
    measured_a, measured_b = a_group.measured(a_name, seeds), b_group.measured(b_name, seeds)
    for metric in a_group.metrics:
        yield {
            "part": part.name,
            "a": {"setting": _id(a_at), "system": a_name},
            "b": {"setting": _id(b_at), "system": b_name},
            "metric": metric,
            **_told(difference_of(measured_a, measured_b, metric)),
            "seeds": seeds,
        }


def _asked(answers: Answers) -> dict[str, str]:
    return dict(zip(answers.ids, answers.gold, strict=True))


def _told(found: Difference) -> dict[str, Any]:
    return {
        "difference": found.difference,
        "by_seed": found.by_seed,
        "ci95": found.ci95,
        "seed_ci95": found.seed_ci95,
        "p": found.p,
        "p_holm": None,
        "p_seeds": found.p_seeds,
        "p_mcnemar": found.p_mcnemar,
        "p_mcnemar_holm": None,
        "mde": found.mde,
        "n": found.n,
    }


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Adjust p values for how many there are in the whole study (Holm 1979).

    Those over rows and seeds within each metric, McNemar's all together. A comparison that two parts share counts once.
    """
    once: dict[str, dict[str, Any]] = {}
    for row in rows:
        once.setdefault(store.hash_of([row["a"], row["b"], row["metric"]]), row)
    for metric in sorted({row["metric"] for row in rows}):
        some = [row for row in once.values() if row["metric"] == metric and row["p"] is not None]
        for row, adjusted in zip(some, metrics.holm([row["p"] for row in some]), strict=True):
            row["p_holm"] = adjusted
    tested = [row for row in once.values() if row["p_mcnemar"] is not None]
    adjusted_all = iter(metrics.holm([p for row in tested for p in row["p_mcnemar"]]))
    for row in tested:
        row["p_mcnemar_holm"] = [next(adjusted_all) for _ in row["p_mcnemar"]]
    for row in rows:
        known = once[store.hash_of([row["a"], row["b"], row["metric"]])]
        row["p_holm"], row["p_mcnemar_holm"] = known["p_holm"], known["p_mcnemar_holm"]


def headline(
    plan: Plan, groups: Mapping[int, Group], rows: Sequence[Mapping[str, Any]], metric: str
) -> dict[str, Any] | None:
    """The comparison that the headline is about: in the first setting, what dev says is best of each side.

    The reasoned side is the arm and mode with the best mean on dev; the label-only arm it is held against likewise.
    """
    part = next(iter(plan.parts), None)
    at = next((at for at in (part.settings if part else ()) if at in groups), None)
    if part is None or at is None:
        return None
    group = groups[at]
    metric = metric if group.task.labels and metric else "accuracy"

    def best(names: Sequence[str]) -> str | None:
        reached = {
            name: _mean([(run.systems[name].get("dev") or {}).get(metric) for run in group.runs])["mean"]
            for name in names
        }
        return max(reached, key=lambda name: -1.0 if reached[name] is None else reached[name], default=None)

    plain_ones, reasoned = _by_kind(group)
    a, b = best(reasoned), best(plain_ones)
    wanted = ({"setting": _id(at), "system": a}, {"setting": _id(at), "system": b})
    known = any((row["a"], row["b"]) == wanted and row["metric"] == metric for row in rows)
    return {"part": part.name, "a": wanted[0], "b": wanted[1], "metric": metric} if known else None


def _notes(plan: Plan, groups: Mapping[int, Group]) -> list[str]:
    """What a reader must know: what failed, and what the runs themselves note, each sentence once."""
    failed = [run for run in plan.runs if run.why]
    notes = [f"{len(failed)} of {len(plan.runs)} runs failed and are left out."] if failed else []
    said = chain.from_iterable(run.metrics.get("notes") or () for group in groups.values() for run in group.runs)
    return [*notes, *dict.fromkeys(said)]
