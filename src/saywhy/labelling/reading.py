"""Read the label out of a text that a server wrote: tolerant of its dress, and silent where it is not certain."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator

from saywhy.prompts import described
from saywhy.records import LABEL_CUE, REASONING_CUE, Task

# What a model dresses an answer in, Markdown, quotes and brackets, and what it closes it with.
_DRESS = " \t\r\n*_`#>~\"'“”‘’«»()[]{}<"
_CLOSING = ".,;:!?。，；：！？…"
_CUE = re.compile(
    rf"(?<!\w)(final\s+)?(?P<name>{LABEL_CUE[:-1]}|{REASONING_CUE[:-1]})[*_`\"'”’]*[ \t]*[:：][*_`]*", re.IGNORECASE
)
# "4", "4.0", "4/5", "4 out of 5".
_RATING = re.compile(r"(?P<value>[+-]?\d+(\.\d+)?)(\s*(/|out of|of)\s*(?P<most>\d+(\.\d+)?))?")


def read_answer(text: str, task: Task) -> tuple[str | None, str]:
    """Give the label that a text names and its reasoning.

    The label is None where the text names none of the task's labels, more than one, or one with words around it that
    nobody can be sure of. The reasoning is one paragraph, "" where there is none.
    """
    cues = list(_CUE.finditer(text))
    ends = [*(cue.start() for cue in cues), len(text)][1:]
    said = [text[cue.end() : end] for cue, end in zip(cues, ends, strict=True)]
    labels = [words.strip().partition("\n") for cue, words in zip(cues, said, strict=True) if _is_label(cue)]
    if not labels:
        # An answer of the label alone is one; a label somewhere among other words is not.
        return (None if cues else label_named(text, task)), ""
    reasonings = [words for cue, words in zip(cues, said, strict=True) if not _is_label(cue)]
    if not reasonings:
        reasonings = [text[: cues[0].start()], *(rest for _, _, rest in labels)]
    named = {label_named(line, task) for line, _, _ in labels}
    reasoning = " ".join(" ".join(words.rstrip(" \t\r\n*_#>-") for words in reasonings).split())
    return (named.pop() if len(named) == 1 else None), reasoning


def _is_label(cue: re.Match[str]) -> bool:
    return cue["name"].casefold() == LABEL_CUE[:-1].casefold()


def label_named(said: str, task: Task) -> str | None:
    """Give the one label that these few words are, None where they are none, or could be two.

    Case, Markdown, quotes and closing punctuation do not matter, and a label may bring its description. On a scale of
    numbers a label may be written as another number of the same value, and with the highest: 4.0, 4/5, 4 out of 5.
    """
    for found in _readings(said, task):
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _readings(said: str, task: Task) -> Iterator[set[str]]:
    """Give the labels that words may mean, the least tolerant way to read them first."""
    yield {label for label in task.labels if label == said.strip()}
    undressed = said.strip(_DRESS)
    bare = undressed.rstrip(_CLOSING + _DRESS)
    for form in (said.strip(), undressed, bare):
        yield {label for label in task.labels if _folded(label) == _folded(form)}
    words = _words(said)
    yield {label for label in task.descriptions if words and _words(described(task, label)) == words}
    if task.ordinal and (rating := _RATING.fullmatch(_folded(bare))):
        yield _rated(float(rating["value"]), rating["most"], task)


def _rated(value: float, most: str | None, task: Task) -> set[str]:
    """Give the labels of a scale of numbers that have this value; none where it is called one of another scale."""
    scale = {label: _number(label) for label in task.labels}
    if not all(map(math.isfinite, scale.values())) or (most is not None and float(most) != max(scale.values())):
        return set()
    return {label for label, number in scale.items() if number == value}


def _number(label: str) -> float:
    try:
        return float(label)
    except ValueError:
        return math.nan


def _folded(words: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", words).casefold().split())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", _folded(text))
