"""Labels scored behind reasonings that are given, not written: a row's prompt is read once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saywhy.lm.cache import Alone, Reading, batches, open_reading, reckoned
from saywhy.lm.encode import part_ids, prompt_ids
from saywhy.lm.forward import reads_trunk
from saywhy.lm.load import context_of
from saywhy.lm.score import Trie, score
from saywhy.predict.folder import Classifier
from saywhy.predict.modes import answers_of
from saywhy.prompts import row_pieces, target
from saywhy.records import Row
from saywhy.trees import Floats, Ints


@dataclass(frozen=True)
class Question:
    """A row as the model reads it: the tokens of its prompt, and its answers."""

    head: Ints
    answers: tuple[str, ...]
    trie: Trie


@dataclass(frozen=True)
class Asked:
    """Rows to be asked, by their places, with the cues that stand around a label and around a reasoning.

    `room` is the number of tokens that the model can read.
    """

    questions: tuple[Question, ...]
    cue: list[int]
    opening: list[int]
    closing: list[int]
    room: int

    def alone(self, question: int) -> Ints:
        """Give a prompt with the cue of the label, as the mode `label` decides behind it."""
        return np.append(self.questions[question].head, self.cue)

    def opened(self, question: int) -> Ints:
        """Give a prompt with the cue of the reasoning."""
        return np.append(self.questions[question].head, self.opening)

    def closed(self, question: int, why: Ints) -> Ints:
        """Give a prompt with a reasoning and the cue of the label, as the mode `reason` decides behind it."""
        return np.concatenate([self.opened(question), why, np.array(self.closing, dtype=np.int64)])

    def fitting(self, question: int, why: Sequence[int]) -> Ints:
        """Give a reasoning's tokens, without the end that would not fit behind its prompt and before the label."""
        one = self.questions[question]
        around = len(one.head) + len(self.opening) + len(self.closing) + int(one.trie.depth.max())
        return np.array(why[: max(0, self.room - around)], dtype=np.int64)


@dataclass(frozen=True)
class Chain:
    """Reasonings to be given for one question, one after another: what each begins with as the last did stays read."""

    question: int
    whys: Sequence[Ints]


def asked(classifier: Classifier, rows: Sequence[Row]) -> Asked:
    """Encode the prompts of rows."""
    encoder = classifier.lm.encoder
    cue = part_ids(encoder, target("label_only", "", None)[0])
    opening, _, closing, *_ = (part_ids(encoder, part) for part in target("reason_then_label", "", ""))
    tries: dict[tuple[str, ...], Trie] = {}
    questions = []
    for row in rows:
        answers = row.choices or classifier.task.labels
        if answers not in tries:
            tries[answers] = answers_of(classifier, answers)
        head = np.array(prompt_ids(encoder, row_pieces(row))[0], dtype=np.int64)
        questions.append(Question(head, answers, tries[answers]))
    return Asked(tuple(questions), cue, opening, closing, context_of(classifier.lm.model.config))


def why_ids(classifier: Classifier, reasoning: str) -> list[int]:
    """Encode a reasoning as it stands in a target."""
    return part_ids(classifier.lm.encoder, target("reason_then_label", "", reasoning)[1])


def log_shares(
    classifier: Classifier, told: Asked, chains: Sequence[Chain], budget: int, alone: bool = False
) -> tuple[list[Floats], list[list[Floats]]]:
    """Give the log-probability of each answer among all of its row's, natural, behind every reasoning of every chain.

    The first list has those without a reasoning, by question, where `alone` wants them (else it is empty); the second
    has one list a chain, one entry (answers,) a reasoning. `budget` bounds the tokens that are held at one time.
    """
    lm, trunk = classifier.lm, classifier.trunk
    budget = budget if lm.reads_trees else 0
    known = len(trunk.ids) if trunk is not None and reads_trunk(lm.model) else 0
    of_question: list[list[int]] = [[] for _ in told.questions]
    for at, chain in enumerate(chains):
        of_question[chain.question].append(at)
    own = [len(one.head) - known + len(told.opening) for one in told.questions]
    held = [length + len(one.trie.token) for length, one in zip(own, told.questions, strict=True)]
    without: dict[int, Floats] = {}
    behind: list[list[Floats]] = [[] for _ in chains]
    for places in batches(reckoned(lm.model, held, own, budget), budget):
        tries = [told.questions[at].trie for at in places]
        first = told.alone if alone else told.opened
        reading = open_reading(lm.model, trunk, [first(at) for at in places])
        if alone:
            without.update(zip(places, _scored(reading, tries), strict=True))
            reading.read([told.opened(at) for at in places])
        # Which row of the reading each chain stands behind; those of equal length stand together.
        mine = [(row, at) for row, place in enumerate(places) for at in of_question[place]]
        new = [max(map(len, chains[at].whys)) + len(told.closing) for _, at in mine]
        whole = [held[places[row]] + length for (row, _), length in zip(mine, new, strict=True)]
        for some in batches(reckoned(lm.model, whole, new, budget), budget):
            _follow(reading, tries, told, [mine[at] for at in some], chains, behind)
    return [without[at] for at in range(len(told.questions))] if alone else [], behind


def _follow(
    reading: Reading | Alone,
    tries: Sequence[Trie],
    told: Asked,
    going: Sequence[tuple[int, int]],
    chains: Sequence[Chain],
    behind: list[list[Floats]],
) -> None:
    """Read chains, each given by its row of the reading and its place, and note in `behind` what follows."""
    part, step = reading.part([row for row, _ in going]), 0
    while going:
        part.read([told.closed(chains[at].question, chains[at].whys[step]) for _, at in going])
        for (_, at), found in zip(going, _scored(part, [tries[row] for row, _ in going]), strict=True):
            behind[at].append(found)
        step += 1
        staying = [place for place, (_, at) in enumerate(going) if len(chains[at].whys) > step]
        if 0 < len(staying) < len(going):
            part = part.part(staying)
        going = [going[place] for place in staying]


def _scored(reading: Reading | Alone, tries: Sequence[Trie]) -> list[Floats]:
    return [found - np.logaddexp.reduce(found) for found in score(reading, tries, 0.0).log_probs]
