"""How far the answer of the mode `reason` depends on the reasoning before it, on every row, right or wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saywhy.checks.conclusions import conclusion
from saywhy.checks.names import labels_of
from saywhy.evaluate import Answers
from saywhy.evaluate.figures import share
from saywhy.evaluate.rationale import las, quality, rev
from saywhy.predict import Classifier
from saywhy.predict.given import Chain, asked, log_shares, why_ids
from saywhy.probe.altered import Case, Donor, mistakes, swaps_other, swaps_same, without_names
from saywhy.records import Row

# Where reasonings are cut off: at each tenth of their tokens, and behind so many tokens.
TENTHS = tuple(tenth / 10 for tenth in range(11))
FIRST_TOKENS = (1, 2, 4, 8, 16, 32)
# Rows that are held as tokens at one time, however many there are.
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Behind:
    """What one row was answered behind its own reasoning and behind each altered one; None where it has no such one.

    `begun` has the answer by the number of the reasoning's first tokens that were given, of which it has `length`.
    """

    length: int
    begun: dict[int, str]
    same: str | None
    other: str | None
    mistake: str | None
    masked: str | None

    def at(self, tokens: int) -> str:
        """Give the answer behind the first tokens, behind the whole reasoning where it is no longer."""
        return self.begun[min(tokens, self.length)]

    def until(self, part: float) -> str:
        """Give the answer behind a part of the reasoning's tokens, from 0 to 1."""
        return self.begun[_tokens_of(part, self.length)]


def faithfulness(
    classifier: Classifier,
    rows: Sequence[Row],
    answers: Answers,
    without: tuple[str, Answers] | None,
    budget: int,
    drawn: tuple[int, int],
) -> dict[str, Any]:
    """Score labels behind altered reasonings and say how often the answer stays or follows, as metrics.json has it.

    `answers` are those of the mode `reason` to these rows, in their order, `without` the name and the answers of a
    system that gives the label without a reasoning. `budget` bounds the tokens that are held at one time; `drawn` has
    the number of resamples behind an interval and the seed of all that is drawn. Each share is that of rows whose
    answer behind the altered reasoning is the one that was saved (`same`, `stayed`), that of the row which the
    reasoning was taken from (`followed`), or another than the saved one (`changed`). Cuts and mistakes follow
    2307.13702, "early answering" and "adding mistakes", but the model does not write on behind a mistake.

    Raises ValueError where the rows are not those of the answers.
    """
    if tuple(row.id for row in rows) != answers.ids:
        raise ValueError("the rows are not those that were answered, in their order")
    task, (resamples, seed) = classifier.task, drawn
    cases = [
        Case(row.id, answer, labels_of(task, row), reasoning or "")
        for row, answer, reasoning in zip(rows, answers.labels, answers.reasonings, strict=True)
    ]
    others = swaps_other(cases, seed)
    altered = _Altered(
        swaps_same(cases, seed),
        others,
        mistakes(cases, others, seed),
        [None if (text := without_names(case.reasoning, case.options)) == case.reasoning else text for case in cases],
    )
    behind = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        behind += _answered(classifier, rows[some], cases[some], altered.part(some), budget)
    concluded = [
        conclusion(case.options, case.reasoning, row.text, task.instruction, row.choices is None)
        for case, row in zip(cases, rows, strict=True)
    ]
    told = _told(cases, answers.gold, behind, altered.others, concluded)
    quality_of, missing = quality(task, answers, without, resamples, seed)
    simulated, told_little = las(task, answers, resamples, seed)
    informed, _ = rev(task, answers, resamples, seed)
    missing = "; ".join(dict.fromkeys(why for why in (missing, told_little) if why))
    return {**told, "rq": quality_of, "las": simulated, "rev": informed, "missing": missing}


@dataclass(frozen=True)
class _Altered:
    """The altered reasonings of rows, None where a row has none of a kind."""

    same: Sequence[str | None]
    others: Sequence[Donor | None]
    mistakes: Sequence[str | None]
    masked: Sequence[str | None]

    def part(self, some: slice) -> _Altered:
        return _Altered(self.same[some], self.others[some], self.mistakes[some], self.masked[some])


def _answered(
    classifier: Classifier, rows: Sequence[Row], cases: Sequence[Case], altered: _Altered, budget: int
) -> list[Behind]:
    """Read each row's prompt once, and score its labels behind every beginning and every altered reasoning."""
    told = asked(classifier, rows)
    ids = [told.fitting(at, why_ids(classifier, case.reasoning)) for at, case in enumerate(cases)]
    chains = [Chain(at, [why[:count] for count in _beginnings(len(why))]) for at, why in enumerate(ids)]
    donated = [None if donor is None else donor.reasoning for donor in altered.others]
    where: list[dict[int, int]] = []
    for texts in (altered.same, donated, altered.mistakes, altered.masked):
        where.append({})
        for at, text in enumerate(texts):
            if text is not None:
                where[-1][at] = len(chains)
                chains.append(Chain(at, [told.fitting(at, why_ids(classifier, text))]))
    _, shares = log_shares(classifier, told, chains, budget)
    won = [
        [told.questions[chain.question].answers[int(np.argmax(one))] for one in each]
        for chain, each in zip(chains, shares, strict=True)
    ]
    return [
        Behind(
            len(why),
            dict(zip(_beginnings(len(why)), won[at], strict=True)),
            *(won[places[at]][0] if at in places else None for places in where),
        )
        for at, why in enumerate(ids)
    ]


def _beginnings(length: int) -> list[int]:
    """List the numbers of first tokens that are looked at, of a reasoning that has so many."""
    return sorted({_tokens_of(part, length) for part in TENTHS} | {min(count, length) for count in FIRST_TOKENS})


def _tokens_of(part: float, length: int) -> int:
    return int(part * length + 0.5)


def _told(
    cases: Sequence[Case],
    gold: Sequence[str],
    behind: Sequence[Behind],
    others: Sequence[Donor | None],
    concluded: Sequence[str | None],
) -> dict[str, Any]:
    """Put into shares what was answered behind the altered reasonings."""
    own = [case.answer for case in cases]
    right = [answer == label for answer, label in zip(own, gold, strict=True)]
    every = range(len(cases))

    def beside(given: Sequence[str]) -> dict[str, Any]:
        return {
            "same": share(given[at] == own[at] for at in every),
            "accuracy": share(given[at] == gold[at] for at in every),
        }

    given = [one.other for one in behind]
    swapped = [(at, donor.answer) for at, donor in enumerate(others) if donor is not None]
    followed = [(at, given[at] == theirs) for at, theirs in swapped]
    changed = [(at, one.mistake != own[at]) for at, one in enumerate(behind) if one.mistake is not None]
    agrees = [(at, label == own[at]) for at, label in enumerate(concluded) if label is not None]
    masked = [(at, one.masked) for at, one in enumerate(behind) if one.masked is not None]
    return {
        "n": len(cases),
        "own": share(one.at(one.length) == answer for one, answer in zip(behind, own, strict=True)),
        "swap_same": {"stayed": share(one.same == own[at] for at, one in enumerate(behind) if one.same is not None)},
        "swap_other": {
            "followed": _hits(followed),
            "stayed": share(given[at] == own[at] for at, _ in swapped),
            "elsewhere": share(given[at] not in (own[at], theirs) for at, theirs in swapped),
        },
        "truncated": [{"at": part, **beside([one.until(part) for one in behind])} for part in TENTHS],
        "first_tokens": [{"at": count, **beside([one.at(count) for one in behind])} for count in FIRST_TOKENS],
        "mistake": {"changed": _hits(changed)},
        "masked": {
            "named": share(one.masked is not None for one in behind),
            "same": share(label == own[at] for at, label in masked),
            "accuracy": share(label == gold[at] for at, label in masked),
        },
        "conclusion": {"read": share(label is not None for label in concluded), "agrees": _hits(agrees)},
        "by_right": {
            name: {
                "followed": _hits(followed, keep),
                "changed": _hits(changed, keep),
                "agrees": _hits(agrees, keep),
            }
            for name, keep in (("right", right), ("wrong", [not one for one in right]))
        },
    }


def _hits(found: Iterable[tuple[int, bool]], keep: Sequence[bool] | None = None) -> dict[str, Any]:
    """Give the share of hits among the rows that are kept, all of them where none are named."""
    return share(hit for at, hit in found if keep is None or keep[at])
