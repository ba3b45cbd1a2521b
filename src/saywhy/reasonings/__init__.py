"""Stage 2: for every training row, candidates are written, measured, checked, and kept or dropped with a reason."""

from saywhy.reasonings.asking import NOT_ANSWERED, begun_once
from saywhy.reasonings.judging import Measure, Measured, extra_of, in_turn, measures
from saywhy.reasonings.parts import (
    kept_weights,
    lines,
    listed,
    read_kept,
    samples,
    short_of,
    spent_line,
    summary,
    unread,
)
from saywhy.reasonings.writing import Job, first_drafts, write

__all__ = [
    "NOT_ANSWERED",
    "Job",
    "Measure",
    "Measured",
    "begun_once",
    "extra_of",
    "first_drafts",
    "in_turn",
    "kept_weights",
    "lines",
    "listed",
    "measures",
    "read_kept",
    "samples",
    "short_of",
    "spent_line",
    "summary",
    "unread",
    "write",
]
