"""Figures of stage 2 that need a model: what a reasoning does for its label under a scorer that never saw the row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from saywhy import store
from saywhy.config import Reasonings
from saywhy.data.split import text_key
from saywhy.lm import LM
from saywhy.lm.cache import Alone, Reading, batches, open_reading, reckoned
from saywhy.lm.encode import part_ids, prompt_ids
from saywhy.lm.forward import reads_trunk
from saywhy.lm.load import context_of
from saywhy.lm.score import Trie, likelihood, score
from saywhy.predict import Classifier
from saywhy.predict.modes import answers_of
from saywhy.prompts import row_pieces, target
from saywhy.records import Figures, RequestError, Row, Task
from saywhy.train.folder import Course, Lesson, encode
from saywhy.train.folder import train as train_folder
from saywhy.train.steps import plan_steps
from saywhy.trees import Floats, Ints

# A scorer is asked with and without the reasoning, so it is taught both.
ARM = "both"
FOLDS = 2
# Tokens of a tree that the likelihood is read off: of more, attention over the whole of it costs more than it saves.
MOST_IN_TREE = 2048
Measure = Callable[[Sequence[tuple[Row, str]]], list[Figures]]


def fold_of(text: str, folds: int = FOLDS) -> int:
    """Give the fold of a text, from 0: by a hash of what it is but for case and spacing, so duplicates share one."""
    digest = hashlib.sha256(text_key(Row("", text)).encode()).digest()
    return int.from_bytes(digest[:8], "little") % folds


def steps_of(plan: Course, taught: Sequence[Lesson]) -> int:
    """Count the steps that a course takes on its lessons."""
    return plan.settings.steps or len(plan_steps(encode(plan, taught).examples, plan.settings, plan.seed))


def course(plan: Course, arms: Sequence[int], share: float) -> Course:
    """Shorten the course of the arm `both` to a share of the steps of the longest of the `arms`, given by their steps.

    Raises ValueError where the course teaches another arm.
    """
    if plan.arm != ARM:
        raise ValueError(f"a scorer is asked with and without a reasoning; the arm {plan.arm} was not taught both")
    steps = max(1, round(share * max(arms)))
    return replace(plan, settings=plan.settings.model_copy(update={"steps": steps}))


def train(folder: Path, task: Task, plan: Course, taught: Sequence[Lesson], title: str) -> None:
    """Train a scorer into `folder`, which `saywhy.predict.load` then reads; no dev rows choose its checkpoint.

    `taught` are the lessons of all folds but the one that it will be asked about.
    """
    store.write_json(folder / "task.json", asdict(task))
    train_folder(folder, plan, taught, title)


def measure(scorers: Sequence[Classifier], base: LM | None, settings: Reasonings, budget: int) -> Measure:
    """Give the function that measures reasonings: length, support, wins, early and likelihood, the others None.

    `scorers[k]` is asked about the rows of fold k, `fold_of(row.text, len(scorers))`, and was trained on all rows but
    these. It reads row and reasoning as `both` is taught them. `base` has the weights that the student starts from, and
    is asked with the scorer's tokens; where it is None (from scratch its weights are random and say nothing) the
    scorer stands in. `length` counts the tokens of the whole reasoning; of one that does not fit behind its text,
    the end is left out of the other figures. `budget` bounds the tokens that are held at one time.

    The function raises RequestError for a row without a label, or with one that is not among its answers.
    """
    for scorer in scorers:
        if scorer.arm != ARM:
            raise ValueError(f"a scorer is a model of the arm {ARM}, and this one was taught {scorer.arm}")

    def measured(asked: Sequence[tuple[Row, str]]) -> list[Figures]:
        found: dict[int, Figures] = {}
        folds = [fold_of(row.text, len(scorers)) for row, _ in asked]
        for fold, scorer in enumerate(scorers):
            mine = [at for at, one in enumerate(folds) if one == fold]
            if mine:
                some = _asked(scorer, [asked[at] for at in mine])
                supports = _supports(scorer, some, settings.early_tokens, budget)
                likely = _likely(scorer.lm if base is None else base, some, budget)
                for at, why, figures, mean in zip(mine, some.whys, supports, likely, strict=True):
                    known = None if np.isnan(mean) else float(mean)
                    found[at] = replace(figures, length=why.length, likelihood=known)
        return [found[at] for at in range(len(asked))]

    return measured


@dataclass(frozen=True)
class _Question:
    """A row as the scorer reads it: its prompt, its answers, and which of them is its label."""

    head: Ints
    answers: tuple[str, ...]
    trie: Trie
    gold: int


@dataclass(frozen=True)
class _Why:
    """A reasoning of the question at a place: the tokens that fit, and how many it has."""

    question: int
    ids: Ints
    length: int


@dataclass(frozen=True)
class _Asked:
    """Reasonings in the order they were given, the questions they are about, and the cues that stand around them."""

    questions: list[_Question]
    whys: list[_Why]
    cue: list[int]
    opening: list[int]
    closing: list[int]

    def opened(self, question: int) -> Ints:
        """Give a prompt with the cue of the reasoning."""
        return np.append(self.questions[question].head, self.opening)

    def with_why(self, why: int, most: int | None = None) -> Ints:
        """Give a prompt with the reasoning behind its cue, or with its first tokens alone."""
        return np.append(self.opened(self.whys[why].question), self.whys[why].ids[:most])


def _asked(scorer: Classifier, pairs: Sequence[tuple[Row, str]]) -> _Asked:
    """Encode rows, each once, and their reasonings."""
    encoder = scorer.lm.encoder
    room = context_of(scorer.lm.model.config)
    cue = part_ids(encoder, target("label_only", "", None)[0])
    opening, _, closing, *_ = (part_ids(encoder, part) for part in target("reason_then_label", "", ""))
    tries: dict[tuple[str, ...], Trie] = {}
    places: dict[Row, int] = {}
    asked = _Asked([], [], cue, opening, closing)
    for row, reasoning in pairs:
        if row not in places:
            places[row] = len(places)
            asked.questions.append(_question(scorer, row, tries))
        at = places[row]
        question = asked.questions[at]
        ids = part_ids(encoder, target("reason_then_label", "", reasoning)[1])
        around = len(question.head) + len(opening) + len(closing) + int(question.trie.depth.max())
        fits = np.array(ids[: max(0, room - around)], dtype=np.int64)
        asked.whys.append(_Why(at, fits, len(ids)))
    return asked


def _question(scorer: Classifier, row: Row, tries: dict[tuple[str, ...], Trie]) -> _Question:
    answers = row.choices or scorer.task.labels
    if row.label is None or row.label not in answers:
        raise RequestError(
            f"row {row.id}: support is that of the row's label, and {row.label!r} is none of its answers "
            f"({', '.join(answers[:10])}); give the row one of them, or set reasonings.support to never"
        )
    if answers not in tries:
        tries[answers] = answers_of(scorer, answers)
    head = np.array(prompt_ids(scorer.lm.encoder, row_pieces(row))[0], dtype=np.int64)
    return _Question(head, answers, tries[answers], answers.index(row.label))


def _supports(scorer: Classifier, asked: _Asked, early: int, budget: int) -> list[Figures]:
    """Measure support, wins and early. A prompt is read once for all its reasonings, and their beginnings once."""
    lm, trunk = scorer.lm, scorer.trunk
    budget = budget if lm.reads_trees else 0
    known = len(trunk.ids) if trunk is not None and reads_trunk(lm.model) else 0
    of_question: list[list[int]] = [[] for _ in asked.questions]
    for at, why in enumerate(asked.whys):
        of_question[why.question].append(at)
    own = [len(one.head) - known + len(asked.opening) for one in asked.questions]
    held = [length + len(one.trie.token) for length, one in zip(own, asked.questions, strict=True)]
    found: dict[int, Figures] = {}
    for places in batches(reckoned(lm.model, held, own, budget), budget):
        tries = [asked.questions[at].trie for at in places]
        reading = open_reading(lm.model, trunk, [np.append(asked.questions[at].head, asked.cue) for at in places])
        alone = _log_shares(reading, tries)
        reading.read([asked.opened(at) for at in places])
        # Which row of the reading each reasoning stands behind; those of equal length stand together.
        behind = [(row, why) for row, at in enumerate(places) for why in of_question[at]]
        new = [len(asked.whys[why].ids) + len(asked.closing) for _, why in behind]
        whole = [held[places[row]] + length for (row, _), length in zip(behind, new, strict=True)]
        for some in batches(reckoned(lm.model, whole, new, budget), budget):
            rows, whys = zip(*(behind[at] for at in some), strict=True)
            part = reading.part(rows)
            part.read([np.append(asked.with_why(why, early), asked.closing) for why in whys])
            begun = _log_shares(part, [tries[row] for row in rows])
            part.read([np.append(asked.with_why(why), asked.closing) for why in whys])
            ended = _log_shares(part, [tries[row] for row in rows])
            for row, why, first, last in zip(rows, whys, begun, ended, strict=True):
                question = asked.questions[places[row]]
                before = alone[row][question.gold]
                found[why] = Figures(
                    support=float(last[question.gold] - before),
                    wins=question.answers[int(np.argmax(last))],
                    early=float(first[question.gold] - before),
                )
    return [found[at] for at in range(len(asked.whys))]


def _log_shares(reading: Reading | Alone, tries: Sequence[Trie]) -> list[Floats]:
    """Give the log-probability of each answer among all answers of its row."""
    return [found - np.logaddexp.reduce(found) for found in score(reading, tries, 0.0).log_probs]


def _likely(lm: LM, asked: _Asked, budget: int) -> Floats:
    """Measure the mean log-probability of the tokens of each reasoning behind its prompt, nan where it has none."""
    paths = [asked.with_why(at) for at in range(len(asked.whys))]
    starts = [len(path) - len(why.ids) for path, why in zip(paths, asked.whys, strict=True)]
    return likelihood(lm.model, paths, starts, min(budget, MOST_IN_TREE), lm.reads_trees)
