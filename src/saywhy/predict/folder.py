"""A trained model as its folder holds it: what it was taught, and what was fitted on dev rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saywhy import store
from saywhy.lm import LM
from saywhy.lm.folder import load as load_folder
from saywhy.prompts import MODES, REASONER
from saywhy.records import RequestError, Task


@dataclass(frozen=True)
class Classifier:
    """A model that was taught one arm of one task.

    `temperatures` of its modes and the `threshold` of the mode `adaptive` were fitted on dev rows.
    """

    lm: LM
    task: Task
    arm: str
    temperatures: dict[str, float]
    threshold: float | None = None

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that the arm was taught."""
        return MODES[self.arm]

    @property
    def mode(self) -> str:
        """The mode that is asked where none is named: with the reasoning first where the arm was taught so."""
        return "reason" if self.arm == "reason_then_label" else "label"


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
    known = folder / "calibration.json"
    calibration = store.read_json(known) if known.exists() else {}
    temperatures = {mode: float(entry["temperature"]) for mode, entry in calibration.items()}
    threshold = calibration.get("adaptive", {}).get("threshold")
    return Classifier(lm, read_task(folder), arm, temperatures, threshold)


def read_task(folder: Path) -> Task:
    """Read task.json. Raises RequestError where it is missing or broken."""
    saved = store.read_json(folder / "task.json")
    try:
        return Task(**{**saved, "labels": tuple(saved["labels"])})
    except (KeyError, TypeError) as problem:
        raise RequestError(f"{folder}: task.json is not one that saywhy wrote; restore it") from problem


def recommended_in(folder: Path) -> tuple[Path, str | None]:
    """Give the model folder to load and, for a run, the mode it recommends. Raises RequestError where there is none."""
    if not folder.is_dir():
        raise RequestError(f"{folder}: there is no such folder; name a run or one of its arms")
    if (folder / "prompt.json").exists():
        return folder, None
    if not (folder / "metrics.json").exists():
        raise RequestError(f"{folder} is neither a model folder (prompt.json) nor a finished run (metrics.json)")
    recommended = store.read_json(folder / "metrics.json")["recommended"]
    if recommended is None:
        raise RequestError(f"{folder} recommends no arm; name the folder of one")
    return folder / recommended["arm"], recommended["mode"]


def check_mode(classifier: Classifier, mode: str) -> None:
    """Refuse a mode that the arm was not taught, with the list of those it has."""
    if mode not in classifier.modes:
        raise RequestError(f"mode {mode!r} was not taught to {classifier.arm}; it has {', '.join(classifier.modes)}")
