"""Near-duplicates among the reasonings of other rows, with flat memory.

Two reasonings say nearly the same where the Jaccard similarity of their runs of three words is about 0.8 or more. It is
estimated from MinHash signatures (Broder 1997) of one byte a hash (Li and König 2010), and candidates are found by
bands of them (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from saywhy.checks.names import words

SHINGLE = 3
ALIKE = 0.8

# A signature has 64 hashes of a byte; four of them, read as one whole number, are a band. Eight bands find 98.5% of the
# pairs that are 0.8 alike and 99.98% of those that are 0.9 alike; all 16 decide.
HASHES, PER_BAND, LOOKED_UP = 64, 4, 8
LEAST_COMMON = round(ALIKE * HASHES)

# Reasonings at once, and those read in one band for one question: beyond, the count is drawn from a sample of the rows.
BATCH, MOST_READ = 4096, 1024

Signatures = NDArray[np.uint32]


@dataclass(frozen=True)
class Index:
    """What every row says, for `count_twins`: 100 bytes a reasoning.

    `keys` (n,) uint32 stand for the rows' texts, in rising order; `bands` (16, n) uint32 are the signatures of their
    reasonings; `orders` (8, n) uint32 sort the reasonings by one band each, and by key where it is the same.
    """

    keys: NDArray[np.uint32]
    bands: Signatures
    orders: NDArray[np.uint32]


def signatures(reasonings: Sequence[str]) -> Signatures:
    """The signatures of reasonings, (n, 16) uint32 of four hashes each: the same on every machine."""
    runs, starts = _shingles(reasonings)
    least = np.empty((len(reasonings), HASHES), dtype=np.uint8)
    if len(reasonings):
        numbers = np.arange(HASHES, dtype=np.uint64)
        factors = (_mixed(numbers) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
        for number, factor in enumerate(factors):
            lowest = np.minimum.reduceat(runs * factor, starts)
            # High bits of a lowest product are low by choice and say little: the byte is mixed from all of them.
            least[:, number] = _mixed(lowest.astype(np.uint64)) >> np.uint64(56)
    return least.view("<u4").astype(np.uint32, copy=False)


def index(said: Iterable[tuple[str, str]]) -> Index:
    """Read pairs of a row's text and a reasoning written for it, once."""
    keys, parts = [np.empty(0, dtype=np.uint32)], [np.empty((0, HASHES // PER_BAND), dtype=np.uint32)]
    for some in _batches(said):
        keys.append(_keys([text for text, _ in some]))
        parts.append(signatures([reasoning for _, reasoning in some]))
    unsorted = np.concatenate(keys)
    order = np.argsort(unsorted, kind="stable")
    bands = np.ascontiguousarray(np.concatenate(parts).T)
    for band in bands:
        band[:] = band[order]
    orders = np.stack([np.argsort(band, kind="stable").astype(np.uint32) for band in bands[:LOOKED_UP]])
    return Index(unsorted[order], bands, orders)


def count_twins(within: Index, texts: Sequence[str], reasonings: Sequence[str]) -> NDArray[np.int64]:
    """For each reasoning, written for a row of this text, the rows of other texts that say nearly the same: (n,).

    The reasonings need not be in the index. Counts are those of the signatures; beyond about a thousand they are
    estimated from the rows with the lowest keys, which are as good as drawn at random.
    """
    found = np.empty(len(reasonings), dtype=np.int64)
    for start in range(0, len(reasonings), BATCH):
        some = slice(start, start + BATCH)
        asked = signatures(reasonings[some])
        own = _keys(texts[some])
        spans = [
            [np.searchsorted(band, asked[:, number], side, sorter=order) for side in ("left", "right")]
            for number, (band, order) in enumerate(zip(within.bands, within.orders, strict=False))
        ]
        ends = np.array(spans).reshape(LOOKED_UP, 2, -1)
        found[some] = [_count(within, asked[i], own[i], ends[:, :, i]) for i in range(len(own))]
    return found


def _count(within: Index, asked: Signatures, own: np.uint32, ends: NDArray[np.int64]) -> int:
    """Other rows of which a signature is like `asked`; `ends` (8, 2) are where those alike in a band stand."""
    keys = within.keys
    below = 2**32
    read = []
    for order, (low, high) in zip(within.orders, ends, strict=True):
        if high - low > MOST_READ:
            below = min(below, int(keys[order[low + MOST_READ]]))
        read.append(order[low : min(high, low + MOST_READ)])
    places = np.unique(np.concatenate(read))
    places = places[keys[places] < below]
    differing = np.take(within.bands, places, axis=1) ^ asked[:, None]
    common = (differing.view(np.uint8) == 0).reshape(len(asked), -1, PER_BAND).sum(axis=(0, 2))
    rows = np.unique(keys[places[common >= LEAST_COMMON]])
    return round((len(rows) - int(own in rows)) * (2**32 / max(below, 1)))


def _batches(said: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    left = iter(said)
    while some := list(islice(left, BATCH)):
        yield some


def _keys(texts: Sequence[str]) -> NDArray[np.uint32]:
    hashes = [blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).digest() for text in texts]
    return np.frombuffer(b"".join(hashes), dtype="<u4").astype(np.uint32)


def _shingles(reasonings: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Hashes of all runs of three words, and where each reasoning's begin; a shorter one is filled up to one run."""
    hashes: list[int] = []
    counts = np.empty(len(reasonings), dtype=np.int64)
    for number, reasoning in enumerate(reasonings):
        some = [crc32(word.encode("utf-8", "surrogatepass")) for word in words(reasoning)]
        some += [0] * (SHINGLE - len(some))
        hashes += some
        counts[number] = len(some)
    each = np.array(hashes, dtype=np.uint64)
    runs = np.zeros_like(each)
    for place in range(SHINGLE):
        runs = _mixed(runs + np.roll(each, -place))
    # Runs that reach into the next reasoning are none.
    ends = np.cumsum(counts)
    whole = np.ones(len(each), dtype=bool)
    for place in range(1, SHINGLE):
        whole[ends - place] = False
    starts = np.concatenate([[0], np.cumsum(counts - SHINGLE + 1)[:-1]]).astype(np.int64)
    return (runs[whole] >> np.uint64(32)).astype(np.uint32), starts


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread every bit over all bits (SplitMix64, Steele and others 2014)."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
