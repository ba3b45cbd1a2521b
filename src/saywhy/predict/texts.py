"""The door for texts: one in, one prediction out; many, or a file of them, likewise."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from saywhy import store
from saywhy.config import DataConfig, TaskConfig
from saywhy.data import half_character, read_rows
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

    One text gives one `Prediction`, many give a list in their order. A text is a string, or a mapping of columns, as
    training read them. Many are any sequence, array, Series or generator of texts, or a table: a pandas DataFrame, a
    pyarrow Table, a data set. All methods raise RequestError for what is no text and for a missing column.
    """

    classifier: Classifier
    mode: str

    @overload
    def __call__(self, texts: Text, mode: str | None = None) -> Prediction: ...

    @overload
    def __call__(self, texts: Iterable[Any], mode: str | None = None) -> list[Prediction]: ...

    def __call__(self, texts: Text | Iterable[Any], mode: str | None = None) -> Prediction | list[Prediction]:
        """Answer one text or many, in a mode of the arm; RequestError where the arm was not taught it."""
        if isinstance(texts, str | Mapping):
            return self._ask([texts], mode or self.mode)[0]
        return self._ask(texts, mode or self.mode)

    @property
    def classes_(self) -> tuple[str, ...]:
        """The labels, in the order of the columns of `predict_proba`; none where each row has its own choices."""
        return self.classifier.task.labels

    def predict(self, texts: Iterable[Any]) -> list[str]:
        """Give a label for each of many texts."""
        return [prediction.label for prediction in self._ask(texts, self.mode)]

    def predict_proba(self, texts: Iterable[Any]) -> Floats:
        """Give calibrated probabilities: (texts, labels) float64, in the order of `classes_`, each row with sum 1.

        Raises RequestError where each row has its own choices.
        """
        if not self.classes_:
            raise RequestError("each row of this task has its own choices, so there is no table; call the classifier")
        found = self._ask(texts, self.mode)
        return np.array([[p.probabilities[label] for label in self.classes_] for p in found]).reshape(
            -1, len(self.classes_)
        )

    @overload
    def explain(self, texts: Text) -> Prediction: ...

    @overload
    def explain(self, texts: Iterable[Any]) -> list[Prediction]: ...

    def explain(self, texts: Text | Iterable[Any]) -> Prediction | list[Prediction]:
        """Give one prediction or many with their reasonings, in the mode of the arm that writes them.

        Raises RequestError for an arm that was never taught to write any.
        """
        writing = [mode for mode in self.classifier.modes if mode in ("reason", "explain")]
        if not writing:
            raise RequestError(f"{self.classifier.arm} was never taught to write reasonings; load another arm's folder")
        return self(texts, writing[0])

    def rows(self, rows: Sequence[Row], title: str = "") -> list[Prediction]:
        """Answer rows, such as those of a file, with calibrated probabilities; with a `title` progress is shown."""
        return list(calibrated(self.classifier, answer(self.classifier, rows, self.mode, title=title), self.mode))

    def _ask(self, texts: Iterable[Any], mode: str) -> list[Prediction]:
        rows = [text_row(self.classifier.task, text, str(at)) for at, text in enumerate(list_texts(texts))]
        return list(calibrated(self.classifier, answer(self.classifier, rows, mode), mode))


def list_texts(texts: Any) -> list[Any]:
    """List many texts in their order: what a sequence, an array, a Series or a generator holds, or a table's rows.

    Tables are known by what they can do, so that no library is imported for them. Raises RequestError for one text
    alone and for what cannot be listed.
    """
    if isinstance(texts, str | Mapping):
        raise RequestError("one text was given where a list of texts is expected; put it into a list")
    if isinstance(texts, bytes) or not _can_be_listed(texts):
        kind = type(texts).__name__
        raise RequestError(f"texts are given as {kind}, which is neither a text nor a list of them; give strings")
    if hasattr(texts, "to_pylist"):
        return list(texts.to_pylist())
    if hasattr(texts, "iterrows"):
        # pandas writes what is missing in many ways; here it is None.
        return list(texts.astype(object).where(texts.notna(), None).to_dict("records"))
    return list(texts)


def _can_be_listed(texts: Any) -> bool:
    try:
        iter(texts)
    except TypeError:
        return False
    return True


def text_row(task: Task, text: Any, name: str) -> Row:
    """Make a row of a text to predict, rendering a mapping of columns as training did.

    Raises RequestError for what is no text, half of a character, and a missing column; each names the text.
    """
    if isinstance(text, str):
        if task.choices is not None:
            raise RequestError(
                f"text {name}: each row of this task brings its own choices; give a mapping with the column "
                f"{task.choices!r} beside those of the text, or a file of such rows"
            )
        if half_character(text):
            raise RequestError(f"text {name} holds half of a character (a lone surrogate); remove it")
        return Row(name, str(text))
    if not isinstance(text, Mapping):
        raise RequestError(f"text {name} is {text!r:.60}, which is no text; give a string or a mapping of columns")
    record = {str(column): _plain(value) for column, value in text.items()}
    one = Table(f"text {name}", iter([(f"text {name}", record)]))
    rows, _ = make_rows(one, _columns(task), DataConfig(train=name), need_label=False)
    return replace(rows[0], id=name)


def _plain(value: Any) -> Any:
    """Give a value as a file would have brought it: a number or a list where NumPy has its own, a list for a tuple."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _columns(task: Task) -> TaskConfig:
    """Give the columns that training read, as the data's reader is told them."""
    return TaskConfig(name=task.name, instruction=task.instruction, text=task.text, choices=task.choices)


def rows_of(classifier: Classifier, source: str) -> list[Row]:
    """Read the rows of a file to predict, with the columns that training read.

    `source` is a file, a folder or a hub id, as in the config. Raises RequestError with the file and the line.
    """
    return read_rows(source, _columns(classifier.task), DataConfig(train=source), Path(), need_label=False)


def save(rows: Sequence[Row], predictions: Sequence[Prediction], path: Path) -> None:
    """Write answers to a .parquet or .jsonl file, one row a text.

    Probabilities are from 0 to 1: in .jsonl by label, in .parquet a list in the order of the column `labels`. Raises
    WorkError where the file cannot be written.
    """
    records = [{"id": row.id, "text": row.text, **asdict(p)} for row, p in zip(rows, predictions, strict=True)]
    if path.suffix == ".jsonl":
        store.write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        return
    for record in records:
        record["labels"] = list(record["probabilities"])
        record["probabilities"] = list(record["probabilities"].values())
    store.write_table(path, pa.Table.from_pylist(records))


def open_classifier(folder: str | Path, mode: str | None = None) -> TextClassifier:
    """Load a model folder, or a run's recommended arm and mode, as a function from texts to predictions.

    `mode` replaces the recommended one. Raises RequestError for a folder that is neither, one that was changed since
    its training, a reasoner, and a mode that the arm was not taught.
    """
    where, recommended = recommended_in(Path(folder))
    classifier = load(where)
    asked = mode or recommended or classifier.mode
    check_mode(classifier, asked)
    return TextClassifier(classifier, asked)
