"""Controls: what stands in for the kept reasonings, to learn which part of them helps (2511.02044 shuffles and bags).

A control replaces every kept reasoning by one paragraph that is as long in the student's tokens. Draws depend on the
seed, the control, the row's id and the number of the reasoning alone: order changes nothing. What a bag or a swap draws
from is the reasonings that there are, so other rows beside it change it; the other controls need no other row.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from saywhy.records import LABEL_CUE, REASONING_CUE, RequestError, Row

MEANINGS = {
    "shuffle": "the words of the row's own reasoning in random order",
    "bag_corpus": "words drawn by their frequency in all reasonings",
    "bag_class": "words drawn by their frequency in the reasonings of the row's label",
    "random_vocab": "tokens drawn evenly from the vocabulary",
    "swap_same": "the reasoning of another row with the same label",
    "swap_other": "the reasoning of another row with another label",
    "filler": "one mark again and again",
}
KINDS = tuple(MEANINGS)
CORRUPT = re.compile(r"corrupt\((0?\.[0-9]+|0|1|1\.0+|0\.0+)\)")

# A text whose length is not right is drawn again so often; the nearest is taken.
DRAWS = 16
# A swap chooses among so many reasonings of the nearest length, and all that are as near as the last of them.
NEAR = 4
# What `filler` may repeat: the first of which every one more is one token more, with or without a space between them.
MARKS = (".", "…", "-", "_", "*")
STEADY = 32
# Draws that may fail for each token of `random_vocab`, and at least; then the text of the nearest length is taken.
TRIES, LEAST_TRIES = 20, 200
# A cue in any case and spacing, up to its last colon.
CUE = re.compile(rf"({'|'.join(cue.removesuffix(':') for cue in (REASONING_CUE, LABEL_CUE))})[\s:]*:", re.IGNORECASE)


@dataclass(frozen=True)
class Tokens:
    """The student's tokens, as a control needs them.

    `encode` gives the ids that training gives a reasoning, `decode` the text of ids. `plain` are the ids that stand for
    ordinary text; only `random_vocab` needs them. No replacement holds one of the spellings in `controls`.
    """

    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]
    plain: Sequence[int] = ()
    controls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kept:
    """A kept reasoning: its row, its number in it, its text without cues and its length in tokens."""

    row: Row
    number: int
    text: str
    length: int


Write = Callable[[Kept, Random], str]


def replace(
    kind: str, rows: Sequence[Row], kept: Mapping[str, tuple[str, ...]], tokens: Tokens, seed: int
) -> dict[str, tuple[str, ...]]:
    """Replace the kept reasonings of `rows` by a control of the same length; `none` gives them as they are.

    `corrupt(p)` gives a row its `swap_other` with probability p, and a row corrupted at one p is so at every higher
    one. A reasoning without any text stays. Raises RequestError for an unknown kind, and where a row has nobody to swap
    with.
    """
    corrupt = CORRUPT.fullmatch(kind)
    if kind not in ("none", *KINDS) and not corrupt:
        raise RequestError(
            f"reasonings.replace: there is no control {kind!r}; there are {', '.join(KINDS)}, corrupt(p)"
        )
    if kind == "none":
        return dict(kept)
    drawn_as, share = ("swap_other", float(corrupt[1])) if corrupt else (kind, 1.0)
    every = [
        Kept(row, number, plain_text(text, tokens.controls), len(tokens.encode(text)))
        for row in rows
        for number, text in enumerate(kept.get(row.id, ()))
    ]
    write = _writer(drawn_as, [one for one in every if one.text], tokens)
    replaced = {row.id: kept[row.id] for row in rows if row.id in kept}
    for one in every:
        if one.text and _draws(seed, "corrupt", one.row.id).random() < share:
            text = plain_text(write(one, _draws(seed, drawn_as, one.row.id, one.number)), tokens.controls)
            others = replaced[one.row.id]
            replaced[one.row.id] = (*others[: one.number], text, *others[one.number + 1 :])
    return replaced


def meaning(kind: str) -> str:
    """Say in a few words what a control puts in the place of a reasoning."""
    corrupt = CORRUPT.fullmatch(kind)
    return f"{MEANINGS['swap_other']}, in {float(corrupt[1]):.0%} of the rows" if corrupt else MEANINGS[kind]


def plain_text(text: str, controls: Sequence[str] = ()) -> str:
    """Make one paragraph of a text, without the colon of a cue and without control tokens."""
    for control in controls:
        text = text.replace(control, " ")
    return " ".join(CUE.sub(r"\1", text).split())


def _draws(*of: object) -> Random:
    return Random(repr(of))


def _writer(kind: str, every: Sequence[Kept], tokens: Tokens) -> Write:
    """Prepare what writes one replacement."""
    if kind == "shuffle":
        return lambda one, draws: _fitting(lambda aim: _shuffled(one.text, draws), one.length, tokens)
    if kind == "filler":
        return _filler(tokens)
    if kind == "random_vocab":
        return _random_vocab(tokens)
    if kind in ("bag_corpus", "bag_class"):
        return _bags(every, tokens, by_class=kind == "bag_class")
    return _swap(every, tokens, same=kind == "swap_same")


def _fitting(draw: Callable[[int], str], length: int, tokens: Tokens) -> str:
    """Give the first drawn text of this length, else the nearest; `draw` is told which length to aim at.

    Words drawn one by one may together take another number of tokens than each alone: the next aim is as far beside.
    """
    aim, nearest, least = length, "", 0
    for _ in range(DRAWS):
        text = draw(aim)
        off = len(tokens.encode(text)) - length
        if not nearest or abs(off) < least:
            nearest, least = text, abs(off)
        if not off:
            break
        aim = max(1, aim - off)
    return nearest


def _shuffled(text: str, draws: Random) -> str:
    words = text.split()
    draws.shuffle(words)
    return " ".join(words)


def _bags(every: Sequence[Kept], tokens: Tokens, by_class: bool) -> Write:
    """Draw words as often as they occur, in all reasonings or in those of a label.

    Where a word is longer than what is left, one that just fills it is drawn instead.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for one in every:
        counts[_class(one, by_class)].update(one.text.split())
    sizes = {word: len(tokens.encode(word)) for bag in counts.values() for word in bag}
    # Sorted, so that the order of the rows changes no draw.
    bags = {name: sorted(bag.elements()) for name, bag in counts.items()}
    by_size: dict[str, dict[int, list[str]]] = {}
    for name, bag in bags.items():
        by_size[name] = defaultdict(list)
        for word in bag:
            by_size[name][sizes[word]].append(word)

    def fill(name: str, left: int, draws: Random) -> str:
        drawn = [] if min(by_size[name]) <= left else [draws.choice(by_size[name][min(by_size[name])])]
        while fitting := [size for size in by_size[name] if size <= left]:
            word = draws.choice(bags[name])
            if sizes[word] > left:
                word = draws.choice(by_size[name][max(fitting)])
            drawn.append(word)
            left -= sizes[word]
        return " ".join(drawn)

    return lambda one, draws: _fitting(lambda aim: fill(_class(one, by_class), aim, draws), one.length, tokens)


def _class(one: Kept, by_class: bool) -> str:
    return one.row.label or "" if by_class else ""


def _filler(tokens: Tokens) -> Write:
    def steady(mark: str, joint: str) -> bool:
        sizes = [len(tokens.encode(joint.join([mark] * count))) for count in range(1, STEADY)]
        return all(later - size == 1 for size, later in pairwise(sizes))

    mark, joint = next(((m, j) for j in (" ", "") for m in MARKS if steady(m, j)), (MARKS[0], " "))
    return lambda one, draws: _cut([mark] * one.length, one.length, tokens, joint)


def _random_vocab(tokens: Tokens) -> Write:
    """Draw tokens evenly; one that would not be read back as itself where it stands is drawn again."""

    def write(one: Kept, draws: Random) -> str:
        found: list[int] = []
        nearest, off = MARKS[0], one.length
        for _ in range(max(LEAST_TRIES, TRIES * one.length)):
            ids = [*found, *draws.choices(tokens.plain, k=one.length - len(found))]
            text = " ".join(tokens.decode(ids).split())
            if not text or plain_text(text, tokens.controls) != text:
                continue  # together they spell a cue or a control token
            again = list(tokens.encode(text))
            if again == ids:
                return text
            if abs(len(again) - one.length) < off:
                nearest, off = text, abs(len(again) - one.length)
            same = [one_id == other for one_id, other in zip(ids, again, strict=False)]
            found = ids[: max([*same, False].index(False), len(found))]
        return nearest

    return write


def _swap(every: Sequence[Kept], tokens: Tokens, same: bool) -> Write:
    """Take the reasoning of another row and text, of about the same length, then cut or extend it at a word's end."""
    pools: dict[str, list[Kept]] = defaultdict(list)
    for one in sorted(every, key=lambda one: (one.length, one.row.id, one.number)):
        pools[_class(one, same)].append(one)

    def write(one: Kept, draws: Random) -> str:
        def usable(other: Kept) -> bool:
            return (
                (other.row.label == one.row.label) is same
                and other.row.id != one.row.id
                and other.row.text != one.row.text
                and other.text != one.text
            )

        near = _near(pools[_class(one, same)], one.length, usable)
        if not near:
            raise RequestError(
                f"reasonings.replace: row {one.row.id} ({one.row.label}) has nobody to swap with: no other row of "
                f"{'the same' if same else 'another'} label has another text and another reasoning; give more rows, or "
                "take shuffle or bag_corpus"
            )

        def take(_: int) -> str:
            words = draws.choice(near).text.split()
            while len(tokens.encode(" ".join(words))) < one.length:
                words += draws.choice(near).text.split()
            return _cut(words, one.length, tokens)

        return _fitting(take, one.length, tokens)

    return write


def _near(pool: Sequence[Kept], length: int, usable: Callable[[Kept], bool]) -> list[Kept]:
    """Give the usable ones of the nearest lengths, NEAR or more; `pool` is sorted by length."""
    found: list[Kept] = []
    above = bisect_left(pool, length, key=lambda one: one.length)
    below = above - 1
    while below >= 0 or above < len(pool):
        upwards = below < 0 or (above < len(pool) and pool[above].length - length <= length - pool[below].length)
        other = pool[above if upwards else below]
        above, below = (above + 1, below) if upwards else (above, below - 1)
        if len(found) >= NEAR and abs(other.length - length) > abs(found[-1].length - length):
            break
        if usable(other):
            found.append(other)
    return found


def _cut(pieces: Sequence[str], length: int, tokens: Tokens, joint: str = " ") -> str:
    """Join as many pieces, one at least, as come nearest to a length; of two as near the shorter."""
    counts = range(1, len(pieces) + 1)
    most = bisect_right(counts, length, key=lambda count: len(tokens.encode(joint.join(pieces[:count]))))
    return _nearest([joint.join(pieces[:count]) for count in (most, most + 1) if count in counts], length, tokens)


def _nearest(texts: Sequence[str], length: int, tokens: Tokens) -> str:
    """Give the first text whose length is nearest."""
    return min(texts, key=lambda text: abs(len(tokens.encode(text)) - length))
