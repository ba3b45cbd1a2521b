"""What answers take by the number of rows that are asked together, as a server is asked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from saywhy.predict import Classifier, answer
from saywhy.records import Row

# Rows that are asked at each size; of more, one at a time takes minutes and says the same.
TIMED_ROWS = 256


def latency(classifier: Classifier, rows: Sequence[Row], mode: str, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Ask a mode about the first TIMED_ROWS rows, so many at a time: one entry a size, as metrics.json has them.

    `seconds` is wall-clock time after one warm-up, `right` counts right answers, `tokens` computed tokens, of which
    what all rows of a call share counts once a call.
    """
    rows = rows[:TIMED_ROWS]
    answer(classifier, rows[: max(sizes)], mode)
    found = []
    for size in sizes:
        began = time.perf_counter()
        given = [one for at in range(0, len(rows), size) for one in answer(classifier, rows[at : at + size], mode)]
        seconds = time.perf_counter() - began
        right = sum(one.label == row.label for one, row in zip(given, rows, strict=True))
        tokens = sum(one.tokens for one in given)
        found.append({"batch": size, "rows": len(rows), "seconds": seconds, "right": right, "tokens": tokens})
    return found


def machine() -> dict[str, Any]:
    """Say what answers: the name of the device, and how many threads a CPU has for it."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "threads": torch.get_num_threads()}
