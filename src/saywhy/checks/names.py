"""Where the names of labels stand in a text, as whole words of any script."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from saywhy.records import Row, Task

# Scripts that write words without spaces between them: there a name has no edges to look for.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


class Named(NamedTuple):
    """One place of a label's name in a normalised text: where it starts and ends, and the label."""

    start: int
    end: int
    label: str


def labels_of(task: Task, row: Row) -> tuple[str, ...]:
    """The labels that this row may have: its own choices, or those of the task."""
    return task.labels if row.choices is None else row.choices


def normalised(text: str) -> str:
    """The one spelling that names are looked for in: case-folded, with hyphens and runs of space as one space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # A hyphen or underscore equals a space between letters or digits only: `-1` is not `1`.
    return " ".join(re.sub(r"(?<=[^\W_])[-_]+(?=[^\W_])", " ", folded).split())


def is_named(name: str, text: str) -> bool:
    """Whether `name` stands as a whole word in `text`, both normalised."""
    return next(places(name, text), None) is not None


def names_label(text: str, label: str) -> bool:
    """Whether a label stands in a text as a word of its own, in any case."""
    return is_named(normalised(label), normalised(text))


def named(labels: Sequence[str], text: str) -> list[Named]:
    """Every place in the normalised `text` that names a label, in order; names inside longer ones are left out."""
    found = [Named(*place, label) for label in labels for place in places(normalised(label), text)]
    found.sort(key=lambda it: (it.start, -it.end))
    outer: list[Named] = []
    for it in found:
        if not outer or it.end > outer[-1].end:
            outer.append(it)
    return outer


def places(name: str, text: str) -> Iterator[tuple[int, int]]:
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
    apostrophe = before[-1] in "'’" and joins(before[0]) and len(before) == 2
    return joins(name[0]) and (joins(before[-1]) or apostrophe)


def _runs_back(name: str, after: str) -> bool:
    """Whether a word or number that `name` ends goes on in `after` (the next two characters)."""
    if not after:
        return False
    if name[-1].isdigit() and after[0] in ".," and after[1:].isdigit():
        return True
    return joins(name[-1]) and joins(after[0])


def joins(character: str) -> bool:
    """Whether this character makes one word with a neighbour that does: letters, digits and marks of spaced scripts."""
    if character.isascii():
        return character.isalnum()
    return unicodedata.category(character)[0] in "LNM" and not unicodedata.name(character, "").startswith(UNSPACED)


def words(text: str) -> list[str]:
    """Runs of letters, digits and marks, case-folded; one character each where a script has no spaces."""
    if text.isascii():
        return re.findall(r"[a-z0-9]+", text.lower())
    found: list[str] = []
    joined = False
    for character in unicodedata.normalize("NFKC", text).casefold():
        joining = joins(character)
        if joining and joined:
            found[-1] += character
        elif joining or character.isalnum():
            found.append(character)
        joined = joining
    return found


# A full stop ends a sentence only before a space; a line break and the stops of other scripts always do.
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？｡।]|[\r\n]")


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with its stop; what is stops and spaces alone is none."""
    ends = [0, *(end.end() for end in SENTENCE_END.finditer(text)), len(text)]
    parts = (text[start:end].strip() for start, end in pairwise(ends))
    return [part for part in parts if part.strip(".!?…。！？｡।")]
