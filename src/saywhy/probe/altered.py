"""Reasonings altered to see whether the answer depends on them. Pure, and seeded by the row, not by its place."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from saywhy.checks.names import is_named, joins, named, normalised, words

# What stands in the place of a label's name.
MASK = "…"
NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Case:
    """What was answered about one row: the answer and the reasoning before it, and the answers it could have had."""

    id: str
    answer: str
    options: tuple[str, ...]
    reasoning: str


@dataclass(frozen=True)
class Donor:
    """The reasoning of another row, and the answer that was given behind it there."""

    answer: str
    reasoning: str


def swaps_same(cases: Sequence[Case], seed: int) -> list[str | None]:
    """Draw for each case the reasoning of another that has the same answer, one that reads differently.

    None where there is no such reasoning.
    """
    groups = _by_answer(cases)
    return [
        _other(groups[case.answer], case.reasoning, Random(f"{seed} same {case.id}")) if case.answer in groups else None
        for case in cases
    ]


def swaps_other(cases: Sequence[Case], seed: int) -> list[Donor | None]:
    """Draw for each case the reasoning of another whose answer is another one that this case could have had.

    The answers are drawn alike, however many cases have each. None where there is no such reasoning.
    """
    groups = _by_answer(cases)
    found: list[Donor | None] = []
    for case in cases:
        random = Random(f"{seed} other {case.id}")
        answers = [answer for answer in case.options if answer != case.answer and answer in groups]
        random.shuffle(answers)
        drawn = (Donor(answer, text) for answer in answers if (text := _other(groups[answer], case.reasoning, random)))
        found.append(next(drawn, None))
    return found


def _by_answer(cases: Sequence[Case]) -> dict[str, list[str]]:
    """Sort the reasonings of each answer, every text once: what is drawn depends on no order of the cases."""
    groups: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        if case.reasoning.strip():
            groups[case.answer].add(case.reasoning)
    return {answer: sorted(group) for answer, group in groups.items()}


def _other(group: Sequence[str], own: str, random: Random) -> str | None:
    start = random.randrange(len(group))
    return next((text for text in (group[start], group[(start + 1) % len(group)]) if text != own), None)


def mistakes(cases: Sequence[Case], others: Sequence[Donor | None], seed: int) -> list[str | None]:
    """Put one mistake into each reasoning; None where none can be put. Names of labels stay as they are.

    Where it holds numbers, the last digit of one of them becomes another. Else one word becomes a word of the donor's
    reasoning (`swaps_other`): each is the most telling of its reasoning, whose share among the reasonings with its
    answer lies furthest above its share among all others; of equals the first. The rest stays. (In
    2307.13702, "adding mistakes", another model writes the mistake and the model goes on behind it.)
    """
    telling = _telling(cases)
    found: list[str | None] = []
    for case, donor in zip(cases, others, strict=True):
        names = {word for label in case.options for word in words(label)}
        numbers = [place for place in NUMBER.finditer(case.reasoning) if place.group() not in names]
        if numbers:
            random = Random(f"{seed} mistake {case.id}")
            last = random.choice(numbers).end() - 1
            other = str((int(case.reasoning[last]) + random.randint(1, 9)) % 10)
            found.append(case.reasoning[:last] + other + case.reasoning[last + 1 :])
            continue
        found.append(None if donor is None else _with_word_of(donor, case, names, telling))
    return found


def _with_word_of(donor: Donor, case: Case, names: set[str], telling: Mapping[tuple[str, str], float]) -> str | None:
    own = list(_spans(case.reasoning))
    known = names | {word for _, _, word in own}
    best = _most_telling(own, case.answer, names, telling)
    theirs = _most_telling(list(_spans(donor.reasoning)), donor.answer, known, telling)
    if best is None or theirs is None:
        return None
    return case.reasoning[: best[0]] + donor.reasoning[theirs[0] : theirs[1]] + case.reasoning[best[1] :]


def _most_telling(
    spans: Sequence[tuple[int, int, str]], answer: str, but: set[str], telling: Mapping[tuple[str, str], float]
) -> tuple[int, int] | None:
    """Find where the word stands that tells most of an answer, None where none tells anything; `but` do not count."""
    some = [span for span in spans if span[2] not in but and telling.get((answer, span[2]), 0.0) > 0]
    best = max(some, key=lambda span: (telling[answer, span[2]], -span[0]), default=None)
    return None if best is None else best[:2]


def _telling(cases: Sequence[Case]) -> dict[tuple[str, str], float]:
    """Say of each answer and word how much larger its share of that answer's reasonings is than of all others."""
    holding: dict[str, Counter[str]] = defaultdict(Counter)
    of_answer = Counter(case.answer for case in cases)
    for case in cases:
        holding[case.answer].update({word for _, _, word in _spans(case.reasoning)})
    everywhere: Counter[str] = Counter()
    for counts in holding.values():
        everywhere.update(counts)
    others = {answer: max(1, len(cases) - count) for answer, count in of_answer.items()}
    return {
        (answer, word): count / of_answer[answer] - (everywhere[word] - count) / others[answer]
        for answer, counts in holding.items()
        for word, count in counts.items()
    }


def _spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Find the words of a text, case-folded, with where each starts and ends; one character where none are spaced."""
    start = None
    for at, character in enumerate(f"{text} "):
        if joins(character):
            start = at if start is None else start
            continue
        if start is not None:
            yield start, at, text[start:at].casefold()
            start = None
        if character.isalnum():
            yield at, at + 1, character.casefold()


def without_names(reasoning: str, labels: Sequence[str]) -> str:
    """Put a mask in the place of every label's name that stands as a word; the text as it is where none does."""
    text = reasoning
    for label in sorted(labels, key=len, reverse=True):
        name = normalised(label)
        spelt = re.compile(r"[\s_-]+".join(map(re.escape, name.split())), re.IGNORECASE)
        places = [place.span() for place in spelt.finditer(text) if name and _stands(name, text, *place.span())]
        for start, end in reversed(places):
            text = text[:start] + MASK + text[end:]
    folded = normalised(text)
    if not named(labels, folded):
        return text
    # Spelt in a way that folding alone shows, such as with wide letters.
    while found := named(labels, folded):
        folded = folded[: found[0].start] + MASK + folded[found[0].end :]
    return folded


def _stands(name: str, text: str, start: int, end: int) -> bool:
    """Whether what stands between two places is the name as a whole word: two characters beside it tell."""
    return is_named(name, normalised(text[max(0, start - 2) : end + 2]))
