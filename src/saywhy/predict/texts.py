"""The door for texts: one in, one prediction out; many likewise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from saywhy.config import DataConfig, TaskConfig
from saywhy.data.read import Table
from saywhy.data.rows import make_rows
from saywhy.evaluate import Budget
from saywhy.predict.folder import Classifier, check_mode, load, recommended_in
from saywhy.predict.modes import answer, calibrated, calibrated_as
from saywhy.records import Prediction, RequestError, Row, Task
from saywhy.trees import Floats

Text = str | Mapping[str, Any]
# Up to so many rows the answer is there before a bar would be.
SHOW_PROGRESS_FROM = 200


@dataclass(frozen=True)
class TextClassifier:
    """A loaded classifier as a function from texts to predictions.

    One text gives one `Prediction`, a sequence of texts a list. A text is a string, or a mapping of columns where the
    task's text is a template. An answer abstains where its label is less likely than `abstain_below`; None is what the
    mode was evaluated with.
    """

    classifier: Classifier
    mode: str
    abstain_below: float | None = None

    def __post_init__(self) -> None:
        check_abstain_below(self.abstain_below)

    def __call__(self, texts: Text | Sequence[Text], mode: str | None = None) -> Prediction | list[Prediction]:
        if isinstance(texts, str | Mapping):
            return self._ask([texts], mode or self.mode)[0]
        return self._ask(texts, mode or self.mode)

    @property
    def classes_(self) -> tuple[str, ...]:
        """The labels, in the order of the columns of `predict_proba`."""
        return self.classifier.task.labels

    @property
    def is_calibrated(self) -> bool:
        """Whether a temperature was fitted for the mode that is asked."""
        return calibrated_as(self.mode) in self.classifier.temperatures

    def predict(self, texts: Sequence[Text]) -> list[str | None]:
        """Give a label for each text, None where the answer abstains."""
        return [None if prediction.abstained else prediction.label for prediction in self._ask(texts, self.mode)]

    def predict_proba(self, texts: Sequence[Text]) -> Floats:
        """Give calibrated probabilities: (texts, labels) float64, in the order of `classes_`."""
        if not self.classes_:
            raise RequestError("each row of this task has its own choices, so there is no table; call the classifier")
        found = self._ask(texts, self.mode)
        return np.array([[p.probabilities[label] for label in self.classes_] for p in found]).reshape(
            -1, len(self.classes_)
        )

    def explain(self, texts: Sequence[Text]) -> list[Prediction]:
        """Give predictions with their reasonings, in the mode of the arm that writes them."""
        writing = [mode for mode in self.classifier.modes if mode in ("reason", "explain")]
        if not writing:
            raise RequestError(f"{self.classifier.arm} was never taught to write reasonings; load another arm's folder")
        return self._ask(texts, writing[0])

    def rows(self, rows: Sequence[Row], title: str = "") -> list[Prediction]:
        """Answer rows, such as those of a file, with calibrated probabilities; with a `title` progress is shown."""
        return self._answer(rows, self.mode, title)

    def _ask(self, texts: Sequence[Text], mode: str) -> list[Prediction]:
        return self._answer([text_row(self.classifier.task, text, str(at)) for at, text in enumerate(texts)], mode)

    def _answer(self, rows: Sequence[Row], mode: str, title: str = "") -> list[Prediction]:
        found = answer(self.classifier, rows, mode, title=title)
        return list(calibrated(self.classifier, found, mode, self.abstain_below))


def check_abstain_below(probability: float | None) -> None:
    """Refuse what is no probability."""
    if probability is not None and not 0 <= probability <= 1:
        raise RequestError(f"abstain_below is {probability}; it should be a probability from 0 to 1, such as 0.7")


def text_row(task: Task, text: Text, name: str) -> Row:
    """Make a row of a text to predict, rendering a mapping of columns as training did."""
    if isinstance(text, str):
        if task.choices is not None:
            raise RequestError(
                f"text {name}: each row of this task brings its own choices; give a mapping with the column "
                f"{task.choices!r} beside those of the text, or a file of such rows"
            )
        return Row(name, text)
    one = Table(f"text {name}", iter([(f"text {name}", dict(text))]))
    rows, _ = make_rows(one, _columns(task), DataConfig(train=name), need_label=False)
    return replace(rows[0], id=name)


def _columns(task: Task) -> TaskConfig:
    """Give the columns that training read, as the data's reader is told them."""
    return TaskConfig(name=task.name, instruction=task.instruction, text=task.text, choices=task.choices)


def open_classifier(
    folder: str | Path,
    mode: str | None = None,
    abstain_below: float | None = None,
    *,
    keep: float | None = None,
    tokens_per_row: float | None = None,
) -> TextClassifier:
    """Load a model folder, or a run's recommended arm and mode, as a function from texts to predictions.

    `abstain_below` is the least probability that the label of an answer may have; None for what the run was evaluated
    with, 0 to answer every text. `keep` and `tokens_per_row` are a budget of one's own: the share of reasoning's gain
    on dev that mode `adaptive` has to keep, or the tokens a row that may be computed on average. Arm and mode are then
    chosen again on the run's answers to dev.
    """
    check_abstain_below(abstain_below)  # before weights are loaded
    chosen = recommended_in(Path(folder), _budget(keep, tokens_per_row, mode))
    classifier = load(chosen.folder)
    asked = mode or chosen.mode or classifier.mode
    check_mode(classifier, asked)
    if chosen.threshold is not None:
        classifier = replace(classifier, threshold=chosen.threshold)
    return TextClassifier(classifier, asked, abstain_below)


def _budget(keep: float | None, tokens_per_row: float | None, mode: str | None) -> Budget | None:
    """Check a budget. Raises RequestError for one that cannot be, or beside a mode: a budget chooses that."""
    if keep is None and tokens_per_row is None:
        return None
    if keep is not None and tokens_per_row is not None:
        raise RequestError("keep and tokens_per_row are two budgets; give one of them")
    if mode is not None:
        raise RequestError(f"a budget chooses the mode, and {mode!r} is chosen already; give one of the two")
    if keep is not None and not 0 < keep <= 1:
        raise RequestError(f"keep is {keep}; it should be a share above 0 and at most 1, such as 0.9")
    if tokens_per_row is not None and not tokens_per_row > 0:
        raise RequestError(f"tokens_per_row is {tokens_per_row}; it should be a number of tokens above 0")
    return Budget(Budget.keep if keep is None else keep, tokens_per_row)
