"""Pure rules that keep or drop a reasoning, and the figures that its words give."""

from saywhy.checks.figures import text_figures
from saywhy.checks.names import names_label
from saywhy.checks.rules import Check, Limits, by_name, cue_inside, first_failing, generic_limit
from saywhy.checks.twins import Index, count_twins, index, signatures

__all__ = [
    "Check",
    "Index",
    "Limits",
    "by_name",
    "count_twins",
    "cue_inside",
    "first_failing",
    "generic_limit",
    "index",
    "names_label",
    "signatures",
    "text_figures",
]
