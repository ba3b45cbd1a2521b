"""Pure rules that keep or drop a reasoning.

A check is a function (task, row, candidate) → bool: true drops the candidate, and the function's name is the reason.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from saywhy.records import LABEL_CUE, REASONING_CUE, Candidate, RequestError, Row, Task

Check = Callable[[Task, Row, Candidate], bool]

COPIED_SHARE = 0.9

# Scripts that write words without spaces between them: there a name has no edges to look for.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


def empty(task: Task, row: Row, candidate: Candidate) -> bool:
    """The reasoning holds no letter and no digit."""
    return not any(character.isalnum() for character in candidate.reasoning)


def cut_off(task: Task, row: Row, candidate: Candidate) -> bool:
    """The writer reached its limit before the reasoning ended."""
    return candidate.cut


def too_long(limit: int) -> Check:
    """Make the check `too_long`: the reasoning has more than `limit` tokens."""

    def too_long(task: Task, row: Row, candidate: Candidate) -> bool:
        return candidate.tokens > limit

    return too_long


def copy_of_text(task: Task, row: Row, candidate: Candidate) -> bool:
    """Nine tenths or more of the reasoning's words stand in the row's text, in the same order."""
    words = _words(candidate.reasoning)
    return bool(words) and _common_in_order(words, _words(row.text)) >= COPIED_SHARE * len(words)


def label_named_first(task: Task, row: Row, candidate: Candidate) -> bool:
    """The first sentence names a label, the row's own or another: the reasoning starts with its conclusion."""
    first = _normalised(_first_sentence(candidate.reasoning))
    return any(_is_named(_normalised(label), first) for label in _labels(task, row))


def another_label_named(task: Task, row: Row, candidate: Candidate) -> bool:
    """A label other than the row's is named, neither inside the row's label nor taken from the row's text."""
    reasoning, text = _normalised(candidate.reasoning), _normalised(row.text)
    own = list(_places(_normalised(row.label), reasoning)) if row.label is not None else []
    for label in _labels(task, row):
        name = _normalised(label)
        places = [place for place in _places(name, reasoning) if not _inside(place, own)]
        if label != row.label and places and not _is_named(name, text):
            return True
    return False


def cue_inside(task: Task, row: Row, candidate: Candidate) -> bool:
    """The reasoning holds a cue, or a line of it starts with one in any spelling: it could not be read back."""
    cues = (REASONING_CUE, LABEL_CUE)
    lines = unicodedata.normalize("NFKC", candidate.reasoning).casefold().splitlines()
    starts = [re.sub(r"^\W+|\s+(?=:)", "", line) for line in lines]
    return any(cue in candidate.reasoning or any(start.startswith(cue.casefold()) for start in starts) for cue in cues)


@dataclass(frozen=True)
class Limits:
    """The limits of the checks that have one; `generic` is the most twins a reasoning may have."""

    too_long: int
    too_short: int = 0
    generic: int = 10**9
    least_support: float = 0.0


def generic_limit(share: float, rows: int) -> int:
    """Give the most twins that a reasoning may have among so many rows."""
    return max(2, int(share * rows))


def text_figures(task: Task, row: Row, reasoning: str) -> tuple[float, float | None]:
    """Give the share of words that name labels, and the share of words before the first."""
    return 0.0, None


class TwinIndex:
    """Counts near-duplicates."""

    @staticmethod
    def of(texts: Iterable[tuple[str, str]]) -> TwinIndex:
        """Read the candidates of all rows."""
        for _ in texts:
            pass
        return TwinIndex()

    def count(self, row: Row, reasoning: str) -> int:
        """Count rows."""
        return 0


def by_name(names: Sequence[str], limits: Limits) -> tuple[Check, ...]:
    """The built-in checks of these names, in this order.

    Raises RequestError for a name that no built-in check has.
    """
    checks = (
        empty,
        too_long(limits.too_long),
        cut_off,
        copy_of_text,
        label_named_first,
        another_label_named,
        cue_inside,
    )
    known = {check.__name__: check for check in checks}
    names = [name for name in names if name in known]
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"the checks are {', '.join(known)}"
            raise RequestError(f'reasonings.checks: there is no check "{name}"; {hint}')
    return tuple(known[name] for name in names)


def first_failing(checks: Sequence[Check], task: Task, row: Row, candidate: Candidate) -> str:
    """The name of the first check that drops this candidate, "" where all keep it."""
    return next((check.__name__ for check in checks if check(task, row, candidate)), "")


def names(text: str, label: str) -> bool:
    """Whether a label stands in a text as a word of its own, in any case."""
    return _is_named(_normalised(label), _normalised(text))


def _labels(task: Task, row: Row) -> tuple[str, ...]:
    return task.labels if row.choices is None else row.choices


def _first_sentence(reasoning: str) -> str:
    text = reasoning.lstrip(" \t\r\n.!?…")
    end = re.search(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？｡।]|[\r\n]", text)
    return text[: end.start()] if end else text


def _normalised(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    # A hyphen or underscore equals a space between letters or digits only: `-1` is not `1`.
    return " ".join(re.sub(r"(?<=[^\W_])[-_]+(?=[^\W_])", " ", folded).split())


def _is_named(name: str, text: str) -> bool:
    return next(_places(name, text), None) is not None


def _places(name: str, text: str) -> Iterator[tuple[int, int]]:
    """Where `name` stands as a whole word in `text`, both normalised: start and end of each place."""
    start = text.find(name) if name else -1
    while start >= 0:
        end = start + len(name)
        if not _runs_on(text[max(0, start - 2) : start], name) and not _runs_back(name, text[end : end + 2]):
            yield start, end
        start = text.find(name, start + 1)


def _runs_on(before: str, name: str) -> bool:
    """Whether `name` continues a word, a number or a minus sign that ends `before` (its last two characters)."""
    if not before:
        return False
    if name[0].isdigit() and (before[-1] in "-−" or (before[-1] in ".," and before[:-1].isdigit())):
        return True
    apostrophe = before[-1] in "'’" and _joins(before[0]) and len(before) == 2
    return _joins(name[0]) and (_joins(before[-1]) or apostrophe)


def _runs_back(name: str, after: str) -> bool:
    """Whether a word or number that `name` ends goes on in `after` (the next two characters)."""
    if not after:
        return False
    if name[-1].isdigit() and after[0] in ".," and after[1:].isdigit():
        return True
    return _joins(name[-1]) and _joins(after[0])


def _joins(character: str) -> bool:
    """Whether this character makes one word with a neighbour that does: letters, digits and marks of spaced scripts."""
    if character.isascii():
        return character.isalnum()
    return unicodedata.category(character)[0] in "LNM" and not unicodedata.name(character, "").startswith(UNSPACED)


def _inside(place: tuple[int, int], spans: Sequence[tuple[int, int]]) -> bool:
    return any(start <= place[0] and place[1] <= end for start, end in spans)


def _words(text: str) -> list[str]:
    """Runs of letters, digits and marks, case-folded; one character each where a script has no spaces."""
    words: list[str] = []
    joined = False
    for character in unicodedata.normalize("NFKC", text).casefold():
        joins = _joins(character)
        if joins and joined:
            words[-1] += character
        elif joins or character.isalnum():
            words.append(character)
        joined = joins
    return words


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
