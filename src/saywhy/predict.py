"""Ask a trained model: the modes, and loading a model folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from saywhy import store
from saywhy.config import DataConfig, TaskConfig
from saywhy.data import read_rows
from saywhy.data.read import Table
from saywhy.data.rows import make_rows
from saywhy.lm import LM
from saywhy.lm.encode import decode, part_ids, prompt_ids
from saywhy.lm.folder import load as load_folder
from saywhy.lm.generate import Asked, Sampling, draws, generate
from saywhy.lm.score import score, trie_of
from saywhy.metrics import apply_temperature, give_back_pruned
from saywhy.progress import track
from saywhy.prompts import MODES, REASONER, Part, row_pieces, target
from saywhy.records import LABEL_CUE, REASONING_CUE, Prediction, RequestError, Row, Task
from saywhy.trees import Floats

Text = str | Mapping[str, Any]

# Rows that are held as tokens at one time, however large the file is.
ROWS_AT_ONCE = 2048
BUDGET = 16384
# A label is left out when its beginning is so much less likely than the best label (design: Labels are scored).
PRUNE = 1e-4
# Up to so many rows the answer is there before a bar would be.
SHOW_PROGRESS_FROM = 200


@dataclass(frozen=True)
class Classifier:
    """A model that was taught one arm of one task."""

    lm: LM
    task: Task
    arm: str
    temperatures: dict[str, float]

    @property
    def modes(self) -> tuple[str, ...]:
        return MODES[self.arm]

    @property
    def mode(self) -> str:
        """The mode that is asked where none is named: with the reasoning first where the arm was taught so."""
        return "reason" if self.arm == "reason_then_label" else "label"


def load(folder: Path) -> Classifier:
    """Load a classifier's folder. Raises RequestError for a reasoner: it is shown the gold label, and nobody knows that
    of a new text."""
    arm, lm = load_folder(folder)
    if arm == REASONER:
        raise RequestError(
            f"{folder} is a reasoner: it writes reasonings conditional on the gold label and cannot predict one; "
            "name the folder of an arm"
        )
    temperatures = {}
    if (folder / "calibration.json").exists():
        calibration = store.read_json(folder / "calibration.json")
        temperatures = {mode: float(entry["temperature"]) for mode, entry in calibration.items()}
    return Classifier(lm, read_task(folder), arm, temperatures)


def read_task(folder: Path) -> Task:
    """Read task.json."""
    saved = store.read_json(folder / "task.json")
    return Task(**{**saved, "labels": tuple(saved["labels"])})


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


def rows_of(classifier: Classifier, source: str) -> list[Row]:
    """Read the rows of a file to predict, with the columns that training read."""
    return read_rows(source, _columns(classifier.task), DataConfig(train=source), Path(), need_label=False)


def save(rows: Sequence[Row], predictions: Sequence[Prediction], path: Path) -> None:
    """Write answers to a .parquet or .jsonl file, one row a text."""
    records = [{"id": row.id, "text": row.text, **asdict(p)} for row, p in zip(rows, predictions, strict=True)]
    if path.suffix == ".jsonl":
        store.write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        return
    for record in records:
        record["labels"] = list(record["probabilities"])
        record["probabilities"] = list(record["probabilities"].values())
    store.write_table(path, pa.Table.from_pylist(records))


def open_classifier(folder: str | Path, mode: str | None = None) -> TextClassifier:
    """Load a model folder, or a run's recommended arm and mode, as a function from texts to predictions."""
    where, recommended = recommended_in(Path(folder))
    classifier = load(where)
    asked = mode or recommended or classifier.mode
    check_mode(classifier, asked)
    return TextClassifier(classifier, asked)


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


def calibrated(classifier: Classifier, predictions: Iterable[Prediction], mode: str) -> Iterator[Prediction]:
    """Apply the temperature that was fitted on dev rows for a mode; labels stay as they are."""
    temperature = classifier.temperatures.get("label" if mode == "explain" else mode, 1.0)
    for prediction in predictions:
        names = list(prediction.probabilities)
        raw = np.array([[prediction.probabilities[name] for name in names]])
        whole = give_back_pruned(raw, np.array([prediction.pruned]), np.ones_like(raw, dtype=bool))
        scaled = apply_temperature(whole, temperature)[0].tolist()
        yield replace(prediction, probabilities=dict(zip(names, scaled, strict=True)))


def answer(
    classifier: Classifier,
    rows: Sequence[Row],
    mode: str,
    budget: int = BUDGET,
    title: str = "",
    prune: float = PRUNE,
) -> list[Prediction]:
    """Predict rows in one mode, probabilities before temperature, in the order of the rows.

    `budget` bounds the tokens of a forward pass. With a `title` progress is shown under it. A label less likely than
    `prune` times the best one may be left out; its probability is then 0, and `pruned` bounds what is missing.
    """
    check_mode(classifier, mode)
    ask = {"label": _label, "reason": _reason, "explain": _explain}[mode]
    found: list[Prediction] = []
    with track(title, len(rows), "rows", bool(title)) as advance:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            answers = ask(classifier, some, budget, prune)
            advance(len(some), sum(a.tokens for a in answers), "")
            found += answers
    return found


def too_long(classifier: Classifier, rows: Sequence[Row]) -> dict[str, int]:
    """Count the rows whose text does not fit and is cut in the middle, by label."""
    cut = Counter(row.label or "" for row in rows if prompt_ids(classifier.lm.encoder, row_pieces(row))[1])
    return dict(cut)


def _heads(classifier: Classifier, rows: Sequence[Row]) -> list[list[int]]:
    return [prompt_ids(classifier.lm.encoder, row_pieces(row))[0] for row in rows]


def _label(classifier: Classifier, rows: Sequence[Row], budget: int, prune: float) -> list[Prediction]:
    """The label alone, scored behind the prompt."""
    cue = part_ids(classifier.lm.encoder, Part("cue", LABEL_CUE, ""))
    heads = [[*head, *cue] for head in _heads(classifier, rows)]
    return _scored(classifier, rows, heads, budget, prune)


def _reason(classifier: Classifier, rows: Sequence[Row], budget: int, prune: float) -> list[Prediction]:
    """Write the reasoning until the label's cue or the limit, put the canonical cue in its place, score the labels."""
    encoder = classifier.lm.encoder
    opening = part_ids(encoder, Part("cue", REASONING_CUE, ""))
    heads = [[*head, *opening] for head in _heads(classifier, rows)]
    colons = tokens_with_colon(classifier.lm)

    def cue_stands(ids: Sequence[int]) -> bool:
        return ids[-1] in colons and LABEL_CUE in decode(encoder, ids[-16:])

    written = _write(classifier.lm, heads, encoder.prompt.limit, budget, cue_stands)
    texts = [decode(encoder, one.ids).partition(LABEL_CUE) for one in written]
    reasonings = [" ".join(text.split()) for text, _, _ in texts]
    closing = part_ids(encoder, Part("cue", f"\n{LABEL_CUE}", ""))
    asked = [
        [*head, *(part_ids(encoder, Part("reasoning", f" {reasoning}", ""))), *closing]
        for head, reasoning in zip(heads, reasonings, strict=True)
    ]
    predictions = _scored(classifier, rows, asked, budget, prune)
    return [
        replace(
            prediction,
            reasoning=reasoning,
            forced=not cue,
            strict=prediction.label if cue else None,
            tokens=prediction.tokens + one.tokens,
        )
        for prediction, reasoning, (_, cue, _), one in zip(predictions, reasonings, texts, written, strict=True)
    ]


def _explain(classifier: Classifier, rows: Sequence[Row], budget: int, prune: float) -> list[Prediction]:
    """The label first, then the reasoning after it."""
    encoder = classifier.lm.encoder
    predictions = _label(classifier, rows, budget, prune)
    heads = []
    for head, prediction in zip(_heads(classifier, rows), predictions, strict=True):
        cue, label, reasoning_cue, *_ = target("label_then_reason", prediction.label, "")
        heads.append([*head, *(i for part in (cue, label, reasoning_cue) for i in part_ids(encoder, part))])
    written = _write(classifier.lm, heads, encoder.prompt.limit, budget, None)
    return [
        replace(
            prediction,
            reasoning=" ".join(decode(encoder, one.ids).split()),
            forced=not one.ended,
            tokens=prediction.tokens + one.tokens,
        )
        for prediction, one in zip(predictions, written, strict=True)
    ]


def tokens_with_colon(lm: LM) -> frozenset[int]:
    """Give the tokens that can end a cue, so that written texts are read for one only where it may just have ended."""
    tokens = lm.encoder.tokenizer.get_vocab()
    return frozenset(index for token, index in tokens.items() if ":" in token or token == "<0x3A>")


def _write(
    lm: LM, heads: Sequence[Sequence[int]], limit: int, budget: int, stop: Callable[[Sequence[int]], bool] | None
) -> Sequence[Any]:
    asked = [Asked(np.array(head, dtype=np.int64), draws(limit)) for head in heads]
    ends = frozenset([lm.encoder.end])
    return generate(lm.model, asked, ends, lm.encoder.controls, Sampling(), budget, stop, lm.reads_trees)


def _scored(
    classifier: Classifier, rows: Sequence[Row], heads: Sequence[Sequence[int]], budget: int, prune: float
) -> list[Prediction]:
    """Score every label of every row: the probability of its whole token sequence and of what follows it."""
    trie = cache(lambda labels: trie_of(_sequences(classifier, labels)))
    lm, choices = classifier.lm, [row.choices or classifier.task.labels for row in rows]
    prompts = [np.array(head, dtype=np.int64) for head in heads]
    found = score(lm.model, prompts, [trie(labels) for labels in choices], prune, budget, lm.reads_trees)
    return [
        _prediction(labels, log_probs, float(pruned), found.tokens / len(rows))
        for labels, log_probs, pruned in zip(choices, found.log_probs, found.pruned, strict=True)
    ]


def _sequences(classifier: Classifier, labels: Sequence[str]) -> list[list[tuple[int, ...]]]:
    """Give all token sequences that complete each label: its own, and one of those that may follow it."""
    ids = [part_ids(classifier.lm.encoder, Part("label", f" {label}", "")) for label in labels]
    return [[(*label, follow) for follow in _follows(classifier)] for label in ids]


def _follows(classifier: Classifier) -> tuple[int, ...]:
    """Give the tokens that may follow a label: the end, and the cue of the reasoning where labels come first."""
    encoder = classifier.lm.encoder
    if classifier.arm != "label_then_reason":
        return (encoder.end,)
    return (encoder.end, part_ids(encoder, Part("cue", f"\n{REASONING_CUE}", ""))[0])


def _prediction(labels: Sequence[str], log_probs: Floats, pruned: float, tokens: float) -> Prediction:
    values = np.exp(log_probs - log_probs.max())
    values /= values.sum()
    best = labels[int(np.argmax(values))]
    named = dict(zip(labels, values.tolist(), strict=True))
    return Prediction(best, named, tokens=tokens, strict=best, pruned=pruned)
