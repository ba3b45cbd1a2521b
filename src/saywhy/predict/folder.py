"""A trained model as its folder holds it: what it was taught, and what was fitted on dev rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from saywhy import store
from saywhy.evaluate import Budget, load_answers, recommend, temperature_of, within
from saywhy.lm import LM
from saywhy.lm.cache import Trunk, read_trunk
from saywhy.lm.folder import load as load_folder
from saywhy.prompts import MODES, REASONER
from saywhy.records import RequestError, Task

# Written by a training that balanced the labels.
PRIOR = "prior.json"


@dataclass(frozen=True)
class Classifier:
    """A model that was taught one arm of one task.

    `temperatures` of its modes and the `threshold` of the mode `adaptive` were fitted on dev rows. `abstain_below` has
    the least probability that the label of a mode may have, where the config set one. `folder` is where it was loaded
    from, None where it is in memory only. `prior` has the factor of each label, its share among the training rows over
    that in what was taught, where training balanced the labels.
    """

    lm: LM
    task: Task
    arm: str
    temperatures: dict[str, float]
    threshold: float | None = None
    folder: Path | None = None
    abstain_below: Mapping[str, float] = field(default_factory=dict)
    prior: Mapping[str, float] = field(default_factory=dict)

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that the arm was taught."""
        return MODES[self.arm]

    @property
    def mode(self) -> str:
        """The mode that is asked where none is named: with the reasoning first where the arm was taught so."""
        return "reason" if self.arm == "reason_then_label" else "label"

    @cached_property
    def trunk(self) -> Trunk | None:
        """What stands before every text, read once: a classifier is made of weights that no longer change.

        None where the model can read no mask of ours.
        """
        return read_trunk(self.lm.model, self.lm.encoder.before) if self.lm.reads_trees else None

    @cached_property
    def colons(self) -> frozenset[int]:
        """The tokens that can end a cue, so that a written text is read for one only where it may just have ended."""
        tokens = self.lm.encoder.tokenizer.get_vocab()
        return frozenset(index for token, index in tokens.items() if ":" in token or token == "<0x3A>")


def load(folder: Path) -> Classifier:
    """Load a classifier's folder.

    Raises RequestError for a folder that was changed since its training, and for a reasoner: it is shown the gold
    label, and nobody knows that of a new text.
    """
    arm, lm = load_folder(folder)
    if arm == REASONER:
        raise RequestError(
            f"{folder} is a reasoner: it writes reasonings conditional on the gold label and cannot predict one; "
            "name the folder of an arm"
        )
    temperatures, threshold, below = _read_calibration(folder)
    return Classifier(lm, read_task(folder), arm, temperatures, threshold, folder, below, _read_prior(folder))


def _read_calibration(folder: Path) -> tuple[dict[str, float], float | None, dict[str, float]]:
    """Read what was fitted on dev: each mode's temperature, adaptive's threshold, below what each mode abstains."""
    known = folder / "calibration.json"
    saved = store.read_json(known) if known.exists() else {}
    try:
        temperatures = {mode: float(entry["temperature"]) for mode, entry in saved.items()}
        threshold = saved.get("adaptive", {}).get("threshold")
        below = {mode: float(entry["abstain_below"]) for mode, entry in saved.items() if "abstain_below" in entry}
        if not all(0 < one < float("inf") for one in temperatures.values()):
            raise ValueError("a temperature is not above 0")
        return temperatures, None if threshold is None else float(threshold), below
    except (AttributeError, KeyError, TypeError, ValueError) as problem:
        raise RequestError(f"{known} is not one that saywhy wrote ({problem}); run `saywhy evaluate`") from problem


def _read_prior(folder: Path) -> dict[str, float]:
    """Read by which factor each label is corrected, nothing where training kept to the rows' shares."""
    if not (folder / PRIOR).exists():
        return {}
    saved = store.read_json(folder / PRIOR)
    try:
        rows, taught = saved["rows"], saved["taught"]
        # A label whose rows were all dropped was not taught, and nothing is known of its answers.
        return {label: rows[label] / taught[label] for label in rows if label in taught}
    except (KeyError, TypeError, ZeroDivisionError) as problem:
        raise RequestError(f"{folder}: prior.json is not one that saywhy wrote; restore it") from problem


def read_task(folder: Path) -> Task:
    """Read task.json. Raises RequestError where it is missing or broken."""
    saved = store.read_json(folder / "task.json")
    try:
        return Task(**{**saved, "labels": tuple(saved["labels"])})
    except (KeyError, TypeError) as problem:
        raise RequestError(f"{folder}: task.json is not one that saywhy wrote; restore it") from problem


@dataclass(frozen=True)
class Choice:
    """A model folder, the mode to ask it in, and adaptive's threshold with the temperature that belongs to it.

    None where the folder itself decides.
    """

    folder: Path
    mode: str | None = None
    threshold: float | None = None
    temperature: float | None = None


def recommended_in(folder: Path, budget: Budget | None = None) -> Choice:
    """Give the model folder to load and, for a run, the mode it recommends.

    Under a `budget` of its own the choice is made again, from the run's answers to its dev split: among all arms, or
    for an arm's folder among its modes. Raises RequestError where there is nothing to choose from.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder}: there is no such folder; name a run or one of its arms")
    is_model = (folder / "prompt.json").exists()
    if budget is not None:
        # An arm may be named by a link, or from within.
        folder = folder.resolve()
        return _within(folder.parent if is_model else folder, folder.name if is_model else None, budget)
    if is_model:
        return Choice(folder)
    if not (folder / "metrics.json").exists():
        raise RequestError(f"{folder} is neither a model folder (prompt.json) nor a finished run (metrics.json)")
    document = read_figures(folder)
    recommended = document["recommended"]
    if recommended is None:
        raise RequestError(f"{folder} recommends no arm; name the folder of one")
    _refuse_trained_since(folder, document, [recommended["arm"]])
    return Choice(folder / recommended["arm"], recommended["mode"])


def read_figures(run: Path) -> dict[str, Any]:
    """Read metrics.json. Raises RequestError where it is not one of ours: other tools write that name too."""
    document: dict[str, Any] = store.read_json(run / "metrics.json")
    if not isinstance(document, dict) or not isinstance(document.get("arms"), dict) or "recommended" not in document:
        raise RequestError(f"{run / 'metrics.json'} is not one that saywhy wrote; name a run's folder or an arm's")
    return document


def is_evaluated(folder: Path, entry: Mapping[str, Any]) -> bool:
    """Tell whether the figures of an arm, its entry in metrics.json, are of the weights that its folder holds."""
    evaluated, stamp = entry.get("stamp"), folder / store.STAMP
    return evaluated is None or not stamp.exists() or store.read_json(stamp).get("fingerprint") == evaluated


def _refuse_trained_since(run: Path, document: Mapping[str, Any], arms: Iterable[str]) -> None:
    for name in arms:
        if not is_evaluated(run / name, document["arms"].get(name, {})):
            raise RequestError(
                f"{run / name} was trained after the run was evaluated, so nothing is known of it: run `saywhy "
                "evaluate` with its config, or name the arm's folder without a budget"
            )


def _within(run: Path, arm: str | None, budget: Budget) -> Choice:
    """Choose on dev again: the arm (or this one), its mode, and where adaptive reasons."""
    if not (run / "metrics.json").exists():
        raise RequestError(f"{run} is no finished run (metrics.json), and its answers to dev are what a budget needs")
    document = read_figures(run)
    arms = {name: entry for name, entry in document["arms"].items() if arm in (None, name)}
    names = [f"{name}/{mode}" for name, one in arms.items() for mode, scores in one["modes"].items() if scores["dev"]]
    if not names or document["recommended"] is None:
        raise RequestError(f"{run}: no answers to a dev split, so nothing tells what a budget buys; leave it out")
    _refuse_trained_since(run, document, arms)
    task, metric = read_task(run / names[0].partition("/")[0]), document["recommended"]["metric"]
    # What adaptive mixes is written with it, also where it was not to be evaluated itself.
    adaptive = [name.partition("/")[0] for name in names if name.endswith("/adaptive")]
    mixed = [f"{name}/{mode}" for name in adaptive for mode in ("label", "reason")]
    places = {name: run / "predictions" / f"{name.replace('/', '-')}-dev.parquet" for name in (*names, *mixed)}
    answers, thresholds = within(task, {name: load_answers(at, task) for name, at in places.items()}, metric, budget)
    dev = {name: answers[name] for name in names}
    kinds = {name: entry["arm"] for name, entry in arms.items() if "arm" in entry}
    chosen = recommend(task, dev, metric, seed=document["seed"], kinds=kinds, tokens=budget.tokens)
    folder, threshold = run / chosen["arm"], thresholds.get(chosen["arm"])
    if threshold is None:
        return Choice(folder, chosen["mode"])
    return Choice(folder, chosen["mode"], threshold, temperature_of(task, dev[f"{chosen['arm']}/adaptive"]))


def check_mode(classifier: Classifier, mode: str) -> None:
    """Refuse a mode that the arm was not taught, with the list of those it has, and adaptive without a threshold."""
    if mode not in classifier.modes:
        raise RequestError(f"mode {mode!r} was not taught to {classifier.arm}; it has {', '.join(classifier.modes)}")
    if mode == "adaptive" and classifier.threshold is None:
        raise RequestError(
            "mode 'adaptive' needs a threshold, which `saywhy run` chooses on dev rows and keeps in calibration.json; "
            "ask for label or reason, or name the arm's folder in a finished run"
        )
