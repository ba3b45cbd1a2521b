"""The bundled task: support tickets triaged by a written handbook, listed in docs/tickets.md."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeVar

from saywhy.records import Candidate, RequestError, Row, Task, WorkedCase

T = TypeVar("T")


@dataclass(frozen=True)
class Fact:
    """One kind of fact in the handbook: its short name, its points while it is open, and the clauses that report it."""

    name: str
    points: int
    wordings: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """One fact as one ticket reports it: the clause and, unless unsaid, the words for its status."""

    fact: Fact
    clause: str
    status: str
    status_words: str = ""


@dataclass(frozen=True)
class Solution:
    """What the handbook says about one ticket: the reasoning with its running sums, the last sum and the label."""

    reasoning: str
    sum: int
    label: str


@dataclass(frozen=True)
class Tickets:
    """Every part of the bundled task for one seed; no text stands in two parts.

    `solutions` gives the true reasoning of each row of train, dev and test by its id. It is for evaluation: training
    sees the reasonings of `worked` and what a teacher writes, nothing else.
    """

    worked: tuple[WorkedCase, ...]
    train: tuple[Row, ...]
    dev: tuple[Row, ...]
    test: tuple[Row, ...]
    solutions: Mapping[str, str]


instruction = (
    "Which priority does the handbook give this ticket? "
    "Add up the points of its facts; closed ones and false alarms count 0."
)
LABELS = ("low", "normal", "high", "urgent")

# The largest sum of every label but the last.
THRESHOLDS = {"low": 0, "normal": 3, "high": 7}

# Every sum in this range is drawn equally often, so that additions far from the middle are practised too.
SMALLEST_SUM, LARGEST_SUM = -4, 11



@dataclass(frozen=True)
class Sizes:
    """How many worked cases and rows are drawn."""

    worked: int = 400
    train: int = 1000
    dev: int = 200
    test: int = 1000


# Shares out of 100, before sums are evened out. An open fact is worth its points, said to be open or not.
FACTS_PER_TICKET = {2: 10, 3: 50, 4: 40}
STATUS_SHARES = {"unsaid": 65, "open": 11, "closed": 14, "false alarm": 10}
FILLER_SHARES = {"none": 40, "opening": 30, "closing": 30}

# A reasoning names each fact by the words that its sentence opens with, then by its name in the handbook.
QUOTED_WORDS = 3

HANDBOOK = (
    Fact(
        "checkout down",
        4,
        (
            "the checkout is down for every buyer",
            "nobody can get past the checkout page",
            "the shop shows an error instead of the checkout",
            "orders stop at the checkout with an error",
        ),
    ),
    Fact(
        "data lost",
        4,
        (
            "customer records are gone from the database",
            "a week of orders has been deleted by accident",
            "the saved files have been wiped and lost",
            "we have lost the data of two stores",
        ),
    ),
    Fact(
        "passwords leaked",
        4,
        (
            "a list of passwords was posted on the web",
            "a stranger got into an admin account",
            "staff passwords have leaked to the public",
            "someone outside can read our private accounts",
        ),
    ),
    Fact(
        "payments fail",
        3,
        (
            "card payments are refused for many people",
            "the bank link rejects most payments",
            "half of the payments fail with a code",
            "customers cannot pay with their cards",
        ),
    ),
    Fact(
        "whole company",
        3,
        (
            "the whole company is waiting for this",
            "every office of the company has the problem",
            "all teams in all branches are stuck",
            "none of our staff can work right now",
        ),
    ),
    Fact(
        "due today",
        3,
        (
            "the deadline for this ends tonight",
            "it is due before the end of today",
            "we must deliver this in a few hours",
            "our audit needs this by five today",
        ),
    ),
    Fact(
        "hospital",
        3,
        (
            "the caller works in a hospital ward",
            "nurses in a hospital depend on it",
            "the clinic needs it to treat patients",
            "doctors use it for their patients",
        ),
    ),
    Fact(
        "backup failed",
        2,
        (
            "the backup job failed last night",
            "no backup has been made this week",
            "the backup disk cannot be read",
            "the nightly copy stopped with a full disk",
        ),
    ),
    Fact(
        "long waits",
        2,
        (
            "pages take a minute to load",
            "the site is very sluggish since the update",
            "each search keeps people waiting for ages",
            "the screen freezes for a minute on every click",
        ),
    ),
    Fact(
        "wrong invoice",
        2,
        (
            "the invoice shows the wrong amount",
            "we were billed twice for one month",
            "the tax on the bill is wrong",
            "an invoice went to the wrong address",
        ),
    ),
    Fact(
        "may leave",
        2,
        (
            "the client wants to cancel the contract",
            "they say they will move to another vendor",
            "the client talks about leaving us",
            "the contract will not be renewed over this",
        ),
    ),
    Fact(
        "asked before",
        2,
        (
            "this is the third message about it",
            "we have written twice and got no answer",
            "the same thing was reported last month",
            "an older ticket about it got no reply",
        ),
    ),
    Fact(
        "mail late",
        1,
        (
            "the daily mail comes an hour late",
            "order mails reach people with a delay",
            "the newsletter was not sent in time",
            "some mails sit in the queue for hours",
        ),
    ),
    Fact(
        "printer stuck",
        1,
        (
            "the big printer jams on every page",
            "the printer at the front desk is stuck",
            "printed pages come out blank",
            "the printer does not take any jobs",
        ),
    ),
    Fact(
        "typo shown",
        1,
        (
            "there is a typo on the start page",
            "a product name is spelled wrong",
            "the help page has a broken picture",
            "the menu shows a word in the wrong language",
        ),
    ),
    Fact(
        "one user",
        -1,
        (
            "only one user sees the problem",
            "it hits a single person in one team",
            "just one account is touched by it",
            "nobody but the caller has noticed it",
        ),
    ),
    Fact(
        "way around",
        -1,
        (
            "there is an easy way around it",
            "people can use the old form for now",
            "a second try always works",
            "they can do the step by hand meanwhile",
        ),
    ),
    Fact(
        "test system",
        -2,
        (
            "this concerns the test system only",
            "it is on a demo server without real users",
            "we saw it in the practice area",
            "the machine is only used for trials",
        ),
    ),
    Fact(
        "no hurry",
        -2,
        (
            "the caller says there is no hurry",
            "any time next month is early enough",
            "they are happy to wait for some weeks",
            "take all the time that you need",
        ),
    ),
    Fact(
        "wish only",
        -2,
        (
            "this is a wish for a new feature",
            "it is an idea for a later version",
            "they would like to have another color",
            "it is meant as a proposal to the makers",
        ),
    ),
)

# What may follow a fact's clause. Only "open" and an unsaid status leave the fact its points.
STATUSES = {
    "open": (
        "and it is still so",
        "and that has not changed",
        "as we see again now",
        "and this goes on",
    ),
    "closed": (
        "but that is over since noon",
        "but that has been settled",
        "which ended an hour ago",
        "though no longer since monday",
    ),
    "false alarm": (
        "but that was a false alarm",
        "but that turned out not true",
        "which proved to be a mistake",
        "though we were wrong about that",
    ),
}

OPENINGS = ("hello team", "good morning", "dear support", "hi all")
CLOSINGS = (
    "thanks for your help",
    "please have a look",
    "kind regards from the desk",
    "we look forward to your answer",
)


def task() -> Task:
    """The bundled task: what `generate` makes rows for."""
    descriptions = {label: _range_of(label) for label in LABELS}
    return Task(name="tickets", instruction=instruction, labels=LABELS, descriptions=descriptions, ordinal=True)


def generate(seed: int, sizes: Sizes = Sizes(), shares: Mapping[str, int] | None = None) -> Tickets:
    """Draw all parts of the task: the same seed gives the same tickets on every machine and Python version.

    `shares` of the labels, out of 100, make some of them rare; without them every sum is drawn equally often.
    """
    rng = Random(seed)
    count = sizes.worked + sizes.train + sizes.dev + sizes.test
    solved = _distinct(rng, count) if shares is None else _of_shares(rng, count, shares)
    worked = tuple(WorkedCase(text, it.label, it.reasoning) for text, it in solved[: sizes.worked])
    parts: dict[str, tuple[Row, ...]] = {}
    solutions: dict[str, str] = {}
    start = sizes.worked
    for name, size in (("train", sizes.train), ("dev", sizes.dev), ("test", sizes.test)):
        part = solved[start : start + size]
        parts[name] = tuple(Row(f"{name}-{i:04}", text, it.label) for i, (text, it) in enumerate(part, 1))
        solutions |= {row.id: it.reasoning for row, (_, it) in zip(parts[name], part, strict=True)}
        start += size
    return Tickets(worked, parts["train"], parts["dev"], parts["test"], solutions)


def write(folder: Path, seed: int, sizes: Sizes = Sizes(), shares: Mapping[str, int] | None = None) -> None:
    """Write worked.jsonl (question, answer, reasoning) and train, dev, test.jsonl (id, text, label) into `folder`."""
    tickets = generate(seed, sizes, shares)
    folder.mkdir(parents=True, exist_ok=True)
    cases = ({"question": it.question, "answer": it.answer, "reasoning": it.reasoning} for it in tickets.worked)
    _write_lines(folder / "worked.jsonl", cases)
    for name, rows in (("train", tickets.train), ("dev", tickets.dev), ("test", tickets.test)):
        _write_lines(folder / f"{name}.jsonl", ({"id": it.id, "text": it.text, "label": it.label} for it in rows))


def explain(text: str) -> Solution:
    """Recompute the true reasoning, sum and label of a ticket from its text alone.

    Raises RequestError for a text that has a sentence which is not in the handbook.
    """
    sentences = text.removesuffix(".").split(". ")
    fillers = (*OPENINGS, *CLOSINGS)
    return _solve([_read_sentence(sentence) for sentence in sentences if sentence not in fillers])


def label_of(sum: int) -> str:
    """The label that the handbook gives to a sum of points."""
    return next((label for label, largest in THRESHOLDS.items() if sum <= largest), LABELS[-1])


def last_sum(reasoning: str) -> int | None:
    """The last sum that a reasoning writes down, None where it writes none."""
    # Four digits at most: int() refuses the endless numbers that an untrained model may write.
    found = re.findall(r"\bsum (-?[0-9]{1,4})(?![0-9])", reasoning)
    return int(found[-1]) if found else None


def sum_of_another_label(task: Task, row: Row, candidate: Candidate) -> bool:
    """A check for reasonings: true where the last sum is missing or leads to another label than the row's."""
    total = last_sum(candidate.reasoning)
    return total is None or label_of(total) != row.label


def _range_of(label: str) -> str:
    if label == LABELS[-1]:
        return f"sum {THRESHOLDS[LABELS[-2]] + 1} or more"
    if label == LABELS[0]:
        return f"sum {THRESHOLDS[label]} or less"
    below = LABELS[LABELS.index(label) - 1]
    return f"sum {THRESHOLDS[below] + 1} to {THRESHOLDS[label]}"


def _distinct(rng: Random, count: int) -> list[tuple[str, Solution]]:
    sums = range(SMALLEST_SUM, LARGEST_SUM + 1)
    return _filled(rng, count, dict.fromkeys(sums, -(-count // len(sums))), lambda solution: solution.sum)


def _of_shares(rng: Random, count: int, shares: Mapping[str, int]) -> list[tuple[str, Solution]]:
    room = {label: -(-count * share // 100) for label, share in shares.items()}
    return _filled(rng, count, room, lambda solution: solution.label)


def _filled(rng: Random, count: int, room: dict[T, int], of: Callable[[Solution], T]) -> list[tuple[str, Solution]]:
    """Draw tickets until there are as many of each kind as it has room, and give `count` of them in random order."""
    solved: dict[str, Solution] = {}
    while any(room.values()):
        reports = _draw_reports(rng)
        text, solution = _ticket_text(rng, reports), _solve(reports)
        if text not in solved and room.get(of(solution), 0):
            solved[text] = solution
            room[of(solution)] -= 1
    # The rare sums fill up last: in the order of drawing they would all be test rows.
    return sorted(solved.items(), key=lambda _: rng.random())[:count]


def _draw_reports(rng: Random) -> list[Report]:
    pool = list(HANDBOOK)
    return [_draw_report(rng, pool.pop(_below(rng, len(pool)))) for _ in range(_by_share(rng, FACTS_PER_TICKET))]


def _draw_report(rng: Random, fact: Fact) -> Report:
    clause = _one_of(rng, fact.wordings)
    status = _by_share(rng, STATUS_SHARES)
    if status == "unsaid":
        return Report(fact, clause, "open")
    return Report(fact, clause, status, _one_of(rng, STATUSES[status]))


def _ticket_text(rng: Random, reports: Sequence[Report]) -> str:
    sentences = [f"{it.clause}, {it.status_words}" if it.status_words else it.clause for it in reports]
    filler = _by_share(rng, FILLER_SHARES)
    if filler == "opening":
        sentences.insert(0, _one_of(rng, OPENINGS))
    elif filler == "closing":
        sentences.append(_one_of(rng, CLOSINGS))
    return ". ".join(sentences) + "."


def _solve(reports: Sequence[Report]) -> Solution:
    total = 0
    steps: list[str] = []
    for it in reports:
        points = it.fact.points if it.status == "open" else 0
        total += points
        name = it.fact.name if it.status == "open" else f"{it.fact.name}, {it.status}"
        quoted = " ".join(it.clause.split()[:QUOTED_WORDS])
        steps.append(f"{quoted}: {name} {points}, sum {total}.")
    return Solution(" ".join(steps), total, label_of(total))


def _read_sentence(sentence: str) -> Report:
    clause, _, words = sentence.partition(", ")
    fact = next((fact for fact in HANDBOOK if clause in fact.wordings), None)
    status = next((name for name, wordings in STATUSES.items() if words in wordings), None if words else "open")
    if fact is None or status is None:
        raise RequestError(f'the handbook has no sentence "{sentence}"; explain reads tickets that generate made')
    return Report(fact, clause, status, words)


# Every draw comes from Random.random(), the only method whose sequence Python promises to keep between versions.
def _below(rng: Random, count: int) -> int:
    return int(rng.random() * count)


def _one_of(rng: Random, wordings: Sequence[str]) -> str:
    return wordings[_below(rng, len(wordings))]


def _by_share(rng: Random, shares: Mapping[T, int]) -> T:
    return [value for value, share in shares.items() for _ in range(share)][_below(rng, 100)]


def _write_lines(path: Path, records: Iterable[Mapping[str, str | None]]) -> None:
    lines = (json.dumps(record, ensure_ascii=True) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
