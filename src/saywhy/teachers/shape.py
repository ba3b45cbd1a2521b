"""What a teacher is: a function from questions to drafts, and what identifies it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Question:
    """A row put to a teacher, and which candidate is asked for.

    `pieces` are what the teacher sees, `literal, value, literal, …`, so that what does not fit is cut from the longest
    value.
    """

    row_id: str
    pieces: tuple[str, ...]
    index: int


@dataclass(frozen=True)
class Draft:
    """One attempt of a teacher: a paragraph, or why there is none.

    `cut` says that it reached its limit before it ended, `prompt_cut` that the teacher could not read all it was shown.
    `tokens` were written and `prompt_tokens` read, `seconds` it took, and `cost` is in the currency of the price, None
    where nobody reckons it. `failed` is "" for an answer; a failure is `final` where the same question would end alike,
    as one does that a filter stops, and `doubtful` where it may be the teacher that is asked wrongly.
    """

    reasoning: str
    cut: bool = False
    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0
    cost: float | None = None
    failed: str = ""
    final: bool = False
    doubtful: bool = False
    prompt_cut: bool = False


# Some questions that are asked together.
Group = Sequence[Question]
# Drafts come with the place of their question, in any order and as soon as they are there. A failed attempt is given
# too; another one at the same question may follow.
Teacher = Callable[[Group], Iterator[tuple[int, Draft]]]
# What is kept together: the number of a group, and drafts with the place of their question in it.
Answered = tuple[int, list[tuple[int, Draft]]]


@dataclass
class Memory:
    """What a run learns of a teacher while it asks it.

    `given_up` holds the journal's keys of questions that failed finally: they may cost money, and are put again by the
    next run, not by this one. `answered` says that the teacher has given an answer, to this run or an earlier one;
    until then `refused` are the rows of doubtful failures.
    """

    given_up: set[bytes] = field(default_factory=set)
    answered: bool = False
    refused: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Writer:
    """A teacher under its name, not yet begun: `begin` loads a model or connects, and gives the teacher.

    `identity` is everything but the questions that its texts depend on (model and revision, instruction, sampling,
    seed), as plain values. `at_once` questions are asked together; of a `remote` one, which may cost money, only those
    without an answer are asked, and each answer is kept before the next. What is `given` came with the rows: it is
    asked for one candidate. `spread`, where there is one, puts groups to teachers begun elsewhere, and gives what they
    answer as it comes; nobody calls `begin` then. `memory` is what is learnt of it on the way.
    """

    name: str
    identity: Mapping[str, object]
    begin: Callable[[], Teacher]
    at_once: int = 128
    remote: bool = False
    given: bool = False
    sampling: Mapping[str, object] = field(default_factory=dict)
    spread: Callable[[Sequence[Group]], Iterator[Answered]] | None = None
    memory: Memory = field(default_factory=Memory, compare=False)


def paragraph(text: str) -> str:
    """Store a reasoning as one paragraph."""
    return " ".join(text.split())
