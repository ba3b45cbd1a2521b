"""From the answers about one row to its label, and from all votes to what they say of those who voted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saywhy.metrics import Ints, coincidences, krippendorff_alpha, scale_of
from saywhy.records import Task

# Two points of a scale count as equally near where rounding alone tells them apart.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Answer:
    """What one teacher said of a row with one prompt; `label` is None where it gave no answer that could be read.

    `probability` is that of the label among all labels, None where only a text is known. `cut` says that the reasoning
    reached its limit, `prompt_cut` that the teacher could not read the text whole. `unreadable` counts the answers
    before this one, or all of them, that could not be read.
    """

    teacher: str
    prompt: str
    label: str | None
    probability: float | None = None
    reasoning: str = ""
    cut: bool = False
    prompt_cut: bool = False
    unreadable: int = 0


@dataclass(frozen=True)
class Vote:
    """The outcome of a row: its label, the mean of the scale (None for labels without order), the share of votes."""

    label: str
    score_mean: float | None
    agreement: float


def vote(answers: Sequence[Answer], task: Task) -> Vote | None:
    """Count the answers that have a label; None where there is none.

    Labels without order: the label with most votes; of several the one whose votes are likeliest in sum (a vote without
    a probability adds nothing), then the one that stands first in the task. A scale (2511.02044): the point nearest to
    the mean of the votes, each label counting as its number, or its place from 1 on where labels are no numbers; of two
    equally near points the one that stands later in the task.
    """
    given = [answer for answer in answers if answer.label is not None]
    if not given:
        return None
    votes = Counter(answer.label for answer in given)
    if not task.ordinal:
        sure = {label: sum(a.probability or 0.0 for a in given if a.label == label) for label in task.labels}
        label = max(task.labels, key=lambda one: (votes[one], sure[one]))
        return Vote(label, None, votes[label] / len(given))
    scale = scale_of(task.labels)
    mean = float(np.mean([scale[task.labels.index(str(answer.label))] for answer in given]))
    distance = np.abs(scale - mean)
    label = task.labels[int(np.flatnonzero(distance <= distance.min() + ROUNDING)[-1])]
    return Vote(label, mean, votes[label] / len(given))


def supporting(answers: Sequence[Answer], label: str) -> list[Answer]:
    """Give the answers with a reasoning that leads to the label, whole ones first, then the surest teacher's first."""
    found = [answer for answer in answers if answer.label == label and answer.reasoning]
    return sorted(found, key=lambda answer: (answer.cut, -(answer.probability or 0.0)))


class Tally:
    """Votes added up row by row: memory does not grow with the rows."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.counts: Counter[str] = Counter()
        self.agreement = 0.0
        self.labels: Counter[str] = Counter()
        # By teacher and prompt: rows asked, answers that could not be read, rows without any, votes for the label.
        self.each: dict[tuple[str, str], Counter[str]] = {}
        nothing = np.zeros((len(task.labels), len(task.labels)))
        self.of_all, self.of_teachers = nothing, nothing

    def add(self, rows: Sequence[Sequence[Answer]], disputed_below: float) -> None:
        """Add the answers of some rows; a row with none was not asked."""
        said = [[answer.label for answer in answers] for answers in rows]
        own = [[won.label for each in _by_teacher(answers) if (won := vote(each, self.task))] for answers in rows]
        self.of_all = self.of_all + coincidences(self._votes(said))
        self.of_teachers = self.of_teachers + coincidences(self._votes(own))
        for answers in rows:
            outcome = vote(answers, self.task)
            self.counts["rows"] += 1
            self.counts["empty"] += not answers
            self.counts["without"] += bool(answers) and outcome is None
            if outcome is not None:
                self.labels[outcome.label] += 1
                self.agreement += outcome.agreement
                self.counts["disputed"] += outcome.agreement < disputed_below
            for answer in answers:
                each = self.each.setdefault((answer.teacher, answer.prompt), Counter())
                each["asked"] += 1
                each["unreadable"] += answer.unreadable
                each["without"] += answer.label is None
                each["agreed"] += outcome is not None and answer.label == outcome.label

    def _votes(self, rows: Sequence[Sequence[str | None]]) -> Ints:
        """Count the votes for each label, (rows, labels)."""
        votes = np.zeros((len(rows), len(self.task.labels)), dtype=np.int64)
        for at, labels in enumerate(rows):
            for label in labels:
                if label is not None:
                    votes[at, self.task.labels.index(label)] += 1
        return votes

    def summary(self) -> dict[str, Any]:
        """Give what was counted as plain values; shares are None where there is nothing to divide by.

        `alpha` is Krippendorff's between all teachers and prompts, `alpha_teachers` between the teachers' own votes.
        """
        scale = scale_of(self.task.labels) if self.task.ordinal else None
        labelled = sum(self.labels.values())
        return {
            **{key: self.counts[key] for key in ("rows", "empty", "without", "disputed")},
            "labels": {label: self.labels[label] for label in self.task.labels},
            "agreement": self.agreement / labelled if labelled else None,
            "alpha": krippendorff_alpha(self.of_all, scale),
            "alpha_teachers": krippendorff_alpha(self.of_teachers, scale),
            "each": [
                {
                    "teacher": teacher,
                    "prompt": prompt,
                    **{key: each[key] for key in ("asked", "unreadable", "without")},
                    "agreed": each["agreed"] / answered if (answered := each["asked"] - each["without"]) else None,
                }
                for (teacher, prompt), each in self.each.items()
            ],
        }


def _by_teacher(answers: Sequence[Answer]) -> list[list[Answer]]:
    names = dict.fromkeys(answer.teacher for answer in answers)
    return [[answer for answer in answers if answer.teacher == name] for name in names]
