"""The door for texts: one in, one prediction out; many likewise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from saywhy.config import DataConfig, TaskConfig
from saywhy.data import half_character
from saywhy.data.read import Table
from saywhy.data.rows import make_rows
from saywhy.evaluate import Budget
from saywhy.predict.folder import Classifier, check_mode, load, recommended_in
from saywhy.predict.modes import BUDGET, LIKELIEST, PRUNE, Watch, abstaining, answer, calibrated, calibrated_as
from saywhy.records import Prediction, RequestError, Row, Task
from saywhy.trees import Floats

Text = str | Mapping[str, Any]
# Up to so many rows the answer is there before a bar would be.
SHOW_PROGRESS_FROM = 200
# Modes whose label is that of one scoring; the others need its probabilities to find theirs.
SCORED_ONCE = ("label", "reason", "explain")


@dataclass(frozen=True)
class TextClassifier:
    """A loaded classifier as a function from texts to predictions.

    One text gives one `Prediction`, many give a list in their order. A text is a string, or a mapping of columns, as
    training read them. Many are any sequence, array, Series or generator of texts, or a table: a pandas DataFrame, a
    pyarrow Table, a data set. All methods raise RequestError for what is no text and for a missing column.

    An answer abstains where its label is less likely than `abstain_below`; None is what the mode was evaluated with.
    `max_tokens_in_flight` bounds the tokens that the model holds at one time, whatever the number of texts.
    """

    classifier: Classifier
    mode: str
    abstain_below: float | None = None
    max_tokens_in_flight: int = BUDGET

    def __post_init__(self) -> None:
        check_abstain_below(self.abstain_below)
        if not isinstance(self.max_tokens_in_flight, int) or self.max_tokens_in_flight < 1:
            raise RequestError(f"max_tokens_in_flight is {self.max_tokens_in_flight}; it should be 1 or more")

    def __reduce__(self) -> Any:
        raise TypeError(
            "a loaded classifier is not pickled: unpickling runs code, and its weights are in a folder; hand on the "
            "folder's name and call saywhy.load there"
        )

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

    @property
    def is_calibrated(self) -> bool:
        """Whether a temperature was fitted for the mode that is asked."""
        return calibrated_as(self.mode) in self.classifier.temperatures

    def predict(self, texts: Iterable[Any]) -> list[str | None]:
        """Give a label for each of many texts, None where the answer abstains.

        Where none may abstain, labels are scored no further than it takes to know the likeliest: the same labels as
        those of all other methods, for fewer tokens.
        """
        alone = self.mode in SCORED_ONCE and not abstaining(self.classifier, self.mode, self.abstain_below)
        found = self._answer(self._rows_of(texts), self.mode, prune=LIKELIEST if alone else PRUNE)
        return [None if prediction.abstained else prediction.label for prediction in found]

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

    def rows(
        self, rows: Sequence[Row], title: str = "", mode: str | None = None, watch: Watch | None = None
    ) -> list[Prediction]:
        """Answer rows, such as those of a file, with calibrated probabilities.

        With a `title` progress is shown; `watch` looks on while reasonings are written.
        """
        return self._answer(rows, mode or self.mode, title, watch)

    def _ask(self, texts: Iterable[Any], mode: str) -> list[Prediction]:
        return self._answer(self._rows_of(texts), mode)

    def _rows_of(self, texts: Iterable[Any]) -> list[Row]:
        return [text_row(self.classifier.task, text, str(at)) for at, text in enumerate(list_texts(texts))]

    def _answer(
        self, rows: Sequence[Row], mode: str, title: str = "", watch: Watch | None = None, prune: float = PRUNE
    ) -> list[Prediction]:
        found = answer(self.classifier, rows, mode, self.max_tokens_in_flight, title, prune=prune, watch=watch)
        return list(calibrated(self.classifier, found, mode, self.abstain_below))


def check_abstain_below(probability: float | None) -> None:
    """Refuse what is no probability."""
    if probability is not None and not (isinstance(probability, int | float) and 0 <= probability <= 1):
        raise RequestError(f"abstain_below is {probability!r}; it should be a probability from 0 to 1, such as 0.7")


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
    rows, _ = make_rows(one, columns_of(task), DataConfig(train=name), need_label=False)
    return replace(rows[0], id=name)


def _plain(value: Any) -> Any:
    """Give a value as a file would have brought it: a number or a list where NumPy has its own, a list for a tuple."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def columns_of(task: Task) -> TaskConfig:
    """Give the columns that training read, as the data's reader is told them."""
    return TaskConfig(name=task.name, instruction=task.instruction, text=task.text, choices=task.choices)


def open_classifier(
    folder: str | Path,
    mode: str | None = None,
    abstain_below: float | None = None,
    *,
    keep: float | None = None,
    tokens_per_row: float | None = None,
    max_tokens_in_flight: int = BUDGET,
) -> TextClassifier:
    """Load a model folder, or a run's recommended arm and mode, as a function from texts to predictions.

    `abstain_below` is the least probability that the label of an answer may have; None for what the run was evaluated
    with, 0 to answer every text. `keep` and `tokens_per_row` are a budget of one's own: the share of reasoning's gain
    on dev that mode `adaptive` has to keep, or the tokens a row that may be computed on average. Arm and mode are then
    chosen again on the run's answers to dev. `max_tokens_in_flight` bounds the tokens that are held at one time, and so
    the memory.

    Raises RequestError for a folder that is neither, one that was changed since its training, a reasoner, and a mode
    that the arm was not taught.
    """
    check_abstain_below(abstain_below)  # before weights are loaded
    chosen = recommended_in(Path(folder), _budget(keep, tokens_per_row, mode))
    classifier = load(chosen.folder)
    if chosen.threshold is not None and chosen.temperature is not None:
        fitted = {**classifier.temperatures, "adaptive": chosen.temperature}
        classifier = replace(classifier, threshold=chosen.threshold, temperatures=fitted)
    asked = mode or chosen.mode or classifier.mode
    check_mode(classifier, asked)
    return TextClassifier(classifier, asked, abstain_below, max_tokens_in_flight)


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
