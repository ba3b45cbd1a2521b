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
from saywhy.predict.folder import Classifier, check_mode, load, recommended_in
from saywhy.predict.modes import answer, calibrated
from saywhy.records import Prediction, RequestError, Row, Task
from saywhy.trees import Floats

Text = str | Mapping[str, Any]
# Up to so many rows the answer is there before a bar would be.
SHOW_PROGRESS_FROM = 200


@dataclass(frozen=True)
class TextClassifier:
    """A loaded classifier as a function from texts to predictions.

    One text gives one `Prediction`, a sequence of texts a list. A text is a string, or a mapping of columns where the
    task's text is a template.
    """

    classifier: Classifier
    mode: str

    def __call__(self, texts: Text | Sequence[Text], mode: str | None = None) -> Prediction | list[Prediction]:
        if isinstance(texts, str | Mapping):
            return self._ask([texts], mode or self.mode)[0]
        return self._ask(texts, mode or self.mode)

    @property
    def classes_(self) -> tuple[str, ...]:
        """The labels, in the order of the columns of `predict_proba`."""
        return self.classifier.task.labels

    def predict(self, texts: Sequence[Text]) -> list[str]:
        """Give a label for each text."""
        return [prediction.label for prediction in self._ask(texts, self.mode)]

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
        return list(calibrated(self.classifier, answer(self.classifier, rows, self.mode, title=title), self.mode))

    def _ask(self, texts: Sequence[Text], mode: str) -> list[Prediction]:
        rows = [text_row(self.classifier.task, text, str(at)) for at, text in enumerate(texts)]
        return list(calibrated(self.classifier, answer(self.classifier, rows, mode), mode))


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


def open_classifier(folder: str | Path, mode: str | None = None) -> TextClassifier:
    """Load a model folder, or a run's recommended arm and mode, as a function from texts to predictions."""
    where, recommended = recommended_in(Path(folder))
    classifier = load(where)
    asked = mode or recommended or classifier.mode
    check_mode(classifier, asked)
    return TextClassifier(classifier, asked)
