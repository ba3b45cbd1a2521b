"""The words of the project as frozen dataclasses, and its two kinds of error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# The first words of an answer and of its second part. A reasoning that holds one of them could not be read back.
REASONING_CUE = "Reasoning:"
LABEL_CUE = "Label:"


class RequestError(Exception):
    """The request was wrong (config, data, folder): the command line ends with exit code 2 and this message."""


class WorkError(Exception):
    """The work failed although the request was right: the command line ends with exit code 1 and this message."""


@dataclass(frozen=True)
class Task:
    """What is asked of every row.

    `labels` is the order of every table and every probability vector. It is empty where each row brings its own
    `choices`. `ordinal` says that `labels` is a rating scale, lowest first. `text` is the column, or the template over
    columns, that a row's text is made from, and `choices` the column of a row's own answers; prediction needs them to
    read rows as training did.
    """

    name: str
    instruction: str
    labels: tuple[str, ...]
    descriptions: Mapping[str, str] = field(default_factory=dict)
    ordinal: bool = False
    text: str = "text"
    choices: str | None = None


@dataclass(frozen=True)
class Row:
    """One labelled text.

    `pieces` alternates literal and column value (`literal, value, literal, …`) where the text is a template, so that
    what does not fit is cut from the longest column; it is empty where the whole text is one column. Joined, the pieces
    are `text`. `label` is None for a text to predict. `choices` are the row's own answers, None where the task's labels
    hold.
    """

    id: str
    text: str
    label: str | None = None
    choices: tuple[str, ...] | None = None
    pieces: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorkedCase:
    """A question with its answer and the reasoning between them: what the reasoner learns from.

    `of_this_task` says that the question is a text of the task and the answer one of its labels.
    """

    question: str
    answer: str
    reasoning: str
    of_this_task: bool = False


@dataclass(frozen=True)
class Figures:
    """What is measured of one candidate; None where nobody measured it.

    `length` counts the student's tokens. `label_share` is the share of the words that belong to names of labels, and
    `label_at` the share of the words before the first of them (None where none is named). `twins` counts other rows of
    which a candidate says nearly the same. `support` is log p(label | text, reasoning) - log p(label | text), `wins`
    the label that is likeliest behind the reasoning, and `early` the support of the reasoning's first tokens alone, all
    under a scorer that never saw the row. `likelihood` is the mean log-probability of the reasoning's tokens under the
    student's base (ExPO's first condition). Logarithms are natural.
    """

    length: int | None = None
    label_share: float | None = None
    label_at: float | None = None
    twins: int | None = None
    support: float | None = None
    wins: str | None = None
    early: float | None = None
    likelihood: float | None = None


@dataclass(frozen=True)
class Candidate:
    """One reasoning written for one row, with its figures and the verdict of the checks.

    `cut` says that the writer reached its limit before it ended, `prompt_hash` what it was asked, and `prompt_cut` that
    it could not read all of that. `dropped_because` is "" for a kept candidate.
    """

    row_id: str
    reasoning: str
    teacher: str
    index: int = 0
    cut: bool = False
    tokens: int = 0
    prompt_hash: str = ""
    prompt_cut: bool = False
    figures: Figures = Figures()
    dropped_because: str = ""

    @property
    def kept(self) -> bool:
        """Tell whether no check has dropped it."""
        return not self.dropped_because


@dataclass(frozen=True)
class Prediction:
    """One answer of a classifier.

    `probabilities` follows `task.labels` (or the row's choices) and sums to 1. `reasoning` is None in modes that write
    none. `tokens` counts computed tokens, shared ones once, and `prompt_tokens`
    those of them that stand before the first cue. `forced` says that the limit ended the reasoning; `strict`
    is the label that strict reading of the written text gives, None where it gives none. `pruned` bounds the
    probability mass that scoring left out. `expected` is the expected rating where labels are a scale. `abstained` says
    that the label, though the likeliest, is less likely than was asked for. Both are set once probabilities are
    calibrated.
    """

    label: str
    probabilities: Mapping[str, float]
    reasoning: str | None = None
    tokens: float = 0.0
    forced: bool = False
    strict: str | None = None
    pruned: float = 0.0
    expected: float | None = None
    abstained: bool = False
    prompt_tokens: float = 0.0
