"""The scikit-learn door: a classifier with `fit` and `predict` that says why."""

from __future__ import annotations

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_consistent_length

from saywhy import classifier, predict
from saywhy.checks import cue_inside
from saywhy.config import Arm, Scratch, Train, default_rate, label_fault
from saywhy.data import fingerprint, half_character
from saywhy.lm.load import make_scratch
from saywhy.prompts import MODES
from saywhy.records import LABEL_CUE, REASONING_CUE, Candidate, Prediction, RequestError, Row, Task
from saywhy.trees import Floats

MODEL, BASE = "model", "base"


class ReasoningClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A small language model as a scikit-learn classifier of texts.

    `base` is a hub id, a folder, or scratch; `scratch` its size as the config has it. `arm` is what is taught where
    `fit` is given reasonings, label_only where it is not; `mode` how the model is asked, by default the arm's own.
    `train` holds settings of the config's `classifier.train` that differ from the defaults. Probabilities are not
    calibrated: no rows are set aside here (CalibratedClassifierCV does that).
    """

    def __init__(
        self,
        base: str = "scratch",
        *,
        scratch: Mapping[str, Any] | None = None,
        instruction: str = "Which label fits the text?",
        arm: str = "reason_then_label",
        mode: str | None = None,
        train: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
        random_state: int = 0,
    ) -> None:
        self.base = base
        self.scratch = scratch
        self.instruction = instruction
        self.arm = arm
        self.mode = mode
        self.train = train
        self.trust_remote_code = trust_remote_code
        self.random_state = random_state

    def fit(self, texts: Any, labels: Any, reasonings: Any = None) -> ReasoningClassifier:
        """Train on texts with a label each and, where they are given, a reasoning each (None: none for that row).

        `texts`, `labels`, `reasonings` (rows,): lists, arrays or Series. A reasoning becomes one paragraph; one that
        holds a cue is left out with a warning. What an earlier `fit` learnt is forgotten. Raises RequestError for what
        is no text, fewer than two labels, or an arm or mode that does not exist.
        """
        rows_of_text = _texts(texts)
        check_consistent_length(rows_of_text, labels, *([] if reasonings is None else [reasonings]))
        given = _labels(labels)
        classes: NDArray[Any] = np.unique(given)
        arm = self._arm(reasonings is not None)
        task = Task(name="texts", instruction=self.instruction, labels=_names(classes))
        places = np.searchsorted(classes, given)
        rows = [
            Row(f"row-{i}", text, task.labels[place])
            for i, (text, place) in enumerate(zip(rows_of_text, places, strict=True))
        ]
        kept = {} if reasonings is None else _kept(task, rows, list(reasonings))

        folder = Path(tempfile.mkdtemp(prefix="saywhy-"))
        earlier = getattr(self, "files_", None)
        self.files_ = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        base = self._base(folder, task, rows, kept)
        plan = classifier.course(task, arm.arm, base, arm.train, rows, self.random_state, "cut", self.trust_remote_code)
        (folder / MODEL).mkdir()
        taught = classifier.lessons(arm.arm, rows, kept)
        hashed = fingerprint(rows)
        classifier.train(folder / MODEL, task, arm, plan, taught, (), "accuracy", data_hash=hashed)
        self.classes_ = classes
        self.texts_ = predict.open_classifier(folder / MODEL, self.mode)
        self.folder_ = folder / MODEL
        if earlier is not None:
            earlier()
        return self

    def _arm(self, reasoned: bool) -> Arm:
        if self.arm not in MODES:
            raise RequestError(f"arm {self.arm!r} does not exist; there are {', '.join(MODES)}")
        name = self.arm if reasoned else "label_only"
        if self.mode is not None and self.mode not in MODES[name]:
            raise RequestError(f"mode {self.mode!r} is not taught to {name}; it has {', '.join(MODES[name])}")
        if self.mode == "adaptive":
            raise RequestError(
                "mode 'adaptive' needs a threshold, which `saywhy run` chooses on dev rows; fit has none: name another"
            )
        told = dict(self.train or {})
        settings = Train.model_validate({"learning_rate": default_rate(self.base, told.get("lora")), **told})
        return Arm(name=name, arm=name, train=settings)  # type: ignore[arg-type]

    def _base(self, folder: Path, task: Task, rows: Sequence[Row], kept: Mapping[str, tuple[str, ...]]) -> str:
        if self.base != "scratch":
            return self.base
        texts = classifier.shown(task, rows)
        texts += [f"Reasoning: {why}" for reasonings in kept.values() for why in reasonings]
        (folder / BASE).mkdir()
        size = Scratch.model_validate(dict(self.scratch or {}))
        make_scratch(folder / BASE, texts, size, self.random_state)
        return str(folder / BASE)

    def _asked(self) -> predict.TextClassifier:
        if not hasattr(self, "texts_"):
            raise NotFittedError("this ReasoningClassifier is not fitted yet; call fit with texts and labels first")
        return self.texts_

    def predict(self, texts: Any) -> NDArray[Any]:
        """Give a label for each text: (rows,), of the kind that `fit` was given."""
        asked = self._asked()
        # No folder made here says when to abstain, so there is a label for every text.
        names: dict[str | None, int] = {name: at for at, name in enumerate(asked.classes_)}
        places = [names[label] for label in asked.predict(_texts(texts))]
        found: NDArray[Any] = self.classes_[np.array(places, dtype=np.int64)]
        return found

    def predict_proba(self, texts: Any) -> Floats:
        """Give probabilities: (rows, labels) float64, in the order of `classes_`, each row with sum 1."""
        return self._asked().predict_proba(_texts(texts))

    def explain(self, texts: Any) -> list[Prediction]:
        """Give predictions with their reasonings. Raises RequestError where the arm was taught none."""
        return self._asked().explain(_texts(texts))

    def save(self, folder: str | Path) -> None:
        """Write the model folder, which `saywhy.load` and `saywhy predict` read. RequestError where files are there."""
        self._asked()
        target = Path(folder)
        if target.exists() and any(target.iterdir()):
            raise RequestError(f"{target}: holds files already; name a new or an empty folder")
        shutil.copytree(self.folder_, target, dirs_exist_ok=True)

    def __getstate__(self) -> dict[str, Any]:
        if hasattr(self, "texts_"):
            raise TypeError(
                "a fitted ReasoningClassifier is not pickled: unpickling runs code, and its weights belong into a "
                "folder; use save(folder) and saywhy.load(folder), and n_jobs=1 where it is fitted many times"
            )
        state: dict[str, Any] = super().__getstate__()
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        return tags


def _texts(texts: Any) -> list[str]:
    """Check and list texts. Raises RequestError for one text alone and for what is no text."""
    listed = predict.list_texts(texts)
    for at, text in enumerate(listed):
        if not isinstance(text, str):
            fix = "name the table's column" if isinstance(text, Mapping) else "make it a string first"
            raise RequestError(f"text {at} is {text!r:.60}, which is no text; {fix}")
        if half_character(text):
            raise RequestError(f"text {at} holds half of a character (a lone surrogate); remove it")
    return [str(text) for text in listed]


def _kept(task: Task, rows: Sequence[Row], reasonings: Sequence[Any]) -> dict[str, tuple[str, ...]]:
    """Give each row's reasoning as one paragraph, by row id; none for what is empty or could not be read back."""
    kept: dict[str, tuple[str, ...]] = {}
    dropped = 0
    for at, (row, given) in enumerate(zip(rows, reasonings, strict=True)):
        reasoning = " ".join(given.split()) if isinstance(given, str) else ""
        if half_character(reasoning):
            raise RequestError(f"reasoning {at} holds half of a character (a lone surrogate); remove it")
        if cue_inside(task, row, Candidate(row.id, reasoning, "given")):
            dropped += 1
        elif reasoning:
            kept[row.id] = (reasoning,)
    if dropped:
        held = f"hold {REASONING_CUE!r} or {LABEL_CUE!r} and are left out"
        warnings.warn(f"{dropped} reasonings {held}; their rows teach the label alone", stacklevel=3)
    return kept


def _labels(labels: Any) -> NDArray[Any]:
    """Check and list labels (rows,). Raises RequestError for a table of them and for one that is missing."""
    given = np.asarray(labels)
    if given.ndim != 1:
        raise RequestError(f"labels have the shape {given.shape}; give one for each text, in one dimension")
    for at, label in enumerate(given.tolist()):
        # NaN differs from itself; of pandas' own NA not even that can be asked.
        if label is None or type(label).__name__ == "NAType" or label != label:
            raise RequestError(f"label {at} is missing ({label!r}); leave its row out")
    return given


def _names(classes: NDArray[Any]) -> tuple[str, ...]:
    """Give the labels as the model writes them."""
    names = tuple(str(one) for one in classes.tolist())
    if len(names) < 2:
        raise RequestError(f"there is one label only, {names[0] if names else 'or none'}; a classifier needs two")
    for name in names:
        if fault := label_fault(name):
            raise RequestError(f"label {name!r} {fault}")
    if len(set(names)) < len(names):
        raise RequestError("two labels are written alike; give them as texts")
    return names
