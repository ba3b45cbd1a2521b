"""Pure rules that keep or drop a reasoning.

A check is a function (task, row, candidate) → bool: true drops the candidate, and the function's name is the reason.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from saywhy.checks.conclusions import concludes_with_another
from saywhy.checks.languages import differs
from saywhy.checks.names import is_named, labels_of, normalised, places, sentences, words
from saywhy.checks.phrases import holds_control_tokens, refuses
from saywhy.records import LABEL_CUE, REASONING_CUE, Candidate, RequestError, Row, Task

Check = Callable[[Task, Row, Candidate], bool]

# So many rows may say the same, however few there are.
FEW_ROWS = 20
COPIED_SHARE = 0.9


@dataclass(frozen=True)
class Limits:
    """The limits of the built-in checks.

    `too_long` and `too_short` are tokens of the student, `generic` other rows, `least_support` nats. Each limit itself
    is still kept.
    """

    too_long: int
    too_short: int
    generic: int
    least_support: float


def empty(task: Task, row: Row, candidate: Candidate) -> bool:
    """The reasoning holds no letter and no digit."""
    return not any(character.isalnum() for character in candidate.reasoning)


def too_long(limit: int) -> Check:
    """Make the check `too_long`: the reasoning has more than `limit` tokens."""

    def too_long(task: Task, row: Row, candidate: Candidate) -> bool:
        return _length(candidate) > limit

    return too_long


def too_short(limit: int) -> Check:
    """Make the check `too_short`: the reasoning has fewer than `limit` tokens, where anybody counted them."""

    def too_short(task: Task, row: Row, candidate: Candidate) -> bool:
        return 0 < _length(candidate) < limit

    return too_short


def cut_off(task: Task, row: Row, candidate: Candidate) -> bool:
    """The writer reached its limit before the reasoning ended."""
    return candidate.cut


def refusal(task: Task, row: Row, candidate: Candidate) -> bool:
    """The writer says that it cannot, or that it is a language model, in English, German, French or Spanish."""
    return refuses(candidate.reasoning, row.text)


def other_language(task: Task, row: Row, candidate: Candidate) -> bool:
    """The reasoning is clearly in another script or language than the row's text, and than the instruction."""
    return differs(candidate.reasoning, (row.text, task.instruction))


def copy_of_text(task: Task, row: Row, candidate: Candidate) -> bool:
    """Nine tenths or more of the reasoning's words stand in the row's text, in the same order."""
    said = words(candidate.reasoning)
    return bool(said) and _common_in_order(said, words(row.text)) >= COPIED_SHARE * len(said)


def generic(limit: int) -> Check:
    """Make the check `generic`: more than `limit` other rows have nearly the same reasoning."""

    def generic(task: Task, row: Row, candidate: Candidate) -> bool:
        return candidate.figures.twins is not None and candidate.figures.twins > limit

    return generic


def special_tokens(task: Task, row: Row, candidate: Candidate) -> bool:
    """The texts of control tokens, such as <|im_start|> or [INST], stand in the reasoning and not in the row's text."""
    return holds_control_tokens(candidate.reasoning, row.text)


def cue_inside(task: Task, row: Row, candidate: Candidate) -> bool:
    """The reasoning holds a cue, or a line of it starts with one in any spelling: it could not be read back."""
    cues = (REASONING_CUE, LABEL_CUE)
    lines = unicodedata.normalize("NFKC", candidate.reasoning).casefold().splitlines()
    starts = [re.sub(r"^\W+|\s+(?=:)", "", line) for line in lines]
    return any(cue in candidate.reasoning or any(start.startswith(cue.casefold()) for start in starts) for cue in cues)


def label_named_first(task: Task, row: Row, candidate: Candidate) -> bool:
    """The first sentence names a label, the row's own or another: the reasoning starts with its conclusion."""
    first = normalised(next(iter(sentences(candidate.reasoning)), ""))
    return any(is_named(normalised(label), first) for label in labels_of(task, row))


def another_label_named(task: Task, row: Row, candidate: Candidate) -> bool:
    """A label other than the row's is named, neither inside the row's label nor taken from the row's text."""
    reasoning, text = normalised(candidate.reasoning), normalised(row.text)
    own = list(places(normalised(row.label), reasoning)) if row.label is not None else []
    for label in labels_of(task, row):
        name = normalised(label)
        others = [place for place in places(name, reasoning) if not _inside(place, own)]
        if label != row.label and others and not is_named(name, text):
            return True
    return False


def contradiction(task: Task, row: Row, candidate: Candidate) -> bool:
    """The reasoning concludes with a label other than the row's; one that weighs labels and ends with its own stays."""
    if row.label is None:
        return False
    labels, nouns = labels_of(task, row), row.choices is None
    return concludes_with_another(labels, row.label, candidate.reasoning, row.text, task.instruction, nouns)


def no_support(least: float) -> Check:
    """Make the check `no_support`: the reasoning gives its label less than `least` nats, and another label wins."""

    def no_support(task: Task, row: Row, candidate: Candidate) -> bool:
        support, wins = candidate.figures.support, candidate.figures.wins
        return support is not None and wins is not None and support < least and wins != row.label

    return no_support


def generic_limit(share: float, rows: int) -> int:
    """How many other rows may say nearly the same among `rows` rows: `share` of them, and twenty in any case.

    Few rows have few things to say, and each of those for many of them.
    """
    return max(FEW_ROWS, math.floor(share * rows))


def by_name(names: Sequence[str], limits: Limits) -> tuple[Check, ...]:
    """The built-in checks of these names, in this order.

    Raises RequestError for a name that no built-in check has.
    """
    checks = (
        empty,
        too_long(limits.too_long),
        too_short(limits.too_short),
        cut_off,
        refusal,
        other_language,
        copy_of_text,
        generic(limits.generic),
        special_tokens,
        cue_inside,
        label_named_first,
        another_label_named,
        contradiction,
        no_support(limits.least_support),
    )
    known = {check.__name__: check for check in checks}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"the checks are {', '.join(known)}"
            raise RequestError(f'reasonings.checks: there is no check "{name}"; {hint}')
    return tuple(known[name] for name in names)


def first_failing(checks: Sequence[Check], task: Task, row: Row, candidate: Candidate) -> str:
    """The name of the first check that drops this candidate, "" where all keep it."""
    return next((check.__name__ for check in checks if check(task, row, candidate)), "")


def _length(candidate: Candidate) -> int:
    """The student's tokens where they were counted, else its writer's."""
    return candidate.tokens if candidate.figures.length is None else candidate.figures.length


def _inside(place: tuple[int, int], spans: Sequence[tuple[int, int]]) -> bool:
    return any(start <= place[0] and place[1] <= end for start, end in spans)


def _common_in_order(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, one bit a word of `first` (Hyyrö 2004): fast for long texts."""
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << i
    unmatched = everything = (1 << len(first)) - 1
    for word in second:
        hits = unmatched & places.get(word, 0)
        unmatched = ((unmatched + hits) | (unmatched - hits)) & everything
    return len(first) - unmatched.bit_count()
