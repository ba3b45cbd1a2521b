"""The figures of a reasoning that its words alone give."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from saywhy.checks.names import Named, labels_of, named, normalised, words
from saywhy.records import Row, Task


def text_figures(task: Task, row: Row, reasoning: str) -> tuple[float, float | None]:
    """`label_share` and `label_at` of Figures: shares from 0 to 1, `label_at` None where no label is named.

    A name counts as one word where it has neither letters nor digits, such as an emoji. Without words the share is 0.
    """
    text = normalised(reasoning)
    spans = _merged(named(labels_of(task, row), text))
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    counts = [len(words(text[start:end])) for start, end in pairwise(edges)]
    # Texts between names stand at even places, names at odd ones.
    names = sum(max(1, count) for count in counts[1::2])
    total = names + sum(counts[::2])
    if not spans:
        return 0.0, None
    return names / total, counts[0] / total


def _merged(places: Iterable[Named]) -> list[tuple[int, int]]:
    """Spans that overlap as one; `places` come in order."""
    spans: list[tuple[int, int]] = []
    for place in places:
        if spans and place.start < spans[-1][1]:
            spans[-1] = (spans[-1][0], max(place.end, spans[-1][1]))
        else:
            spans.append((place.start, place.end))
    return spans
