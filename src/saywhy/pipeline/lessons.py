"""What the arms are taught: the same rows for all, the kept reasonings, or the control that stands in for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saywhy import classifier, controls, evaluate, reasonings
from saywhy.pipeline.stage import Made, Run
from saywhy.records import Row


@dataclass(frozen=True)
class Taught:
    """What the arms learn from: the rows, their reasonings, and how often a row counts where that is more than once.

    `kept` are the reasonings that were kept; others may stand in for them in `reasonings`.
    """

    rows: tuple[Row, ...]
    kept: Mapping[str, tuple[str, ...]]
    reasonings: Mapping[str, tuple[str, ...]]
    weights: Mapping[str, int]


def lesson(this: Run, written: Made | None, base: tuple[str, str]) -> Taught:
    """Give all arms the same rows, as often as each other."""
    if written is None:
        return Taught(this.data.train, {}, {}, {})
    kept, rows, weights = weighed(this, written.folder)
    return Taught(rows, kept, _taught_reasonings(this, rows, kept, base), weights)


def weighed(this: Run, written: Path) -> tuple[dict[str, tuple[str, ...]], tuple[Row, ...], dict[str, int]]:
    """Read the kept reasonings, and give with them the rows that are trained and how often a row counts."""
    settings = this.config.reasonings
    kept = reasonings.read_kept(written)
    whole = settings.without_reasoning == "label_only"
    rows = this.data.train if whole else tuple(row for row in this.data.train if row.id in kept)
    return kept, rows, reasonings.kept_weights(kept, settings.per_row)


def short_of_top_up(this: Run, rows: Sequence[Row], weights: Mapping[str, int]) -> dict[str, float]:
    """Give the classes that topping up left short of the share that was asked for, with what they reached."""
    share = this.config.reasonings.top_up
    return {} if share is None else reasonings.short_of(this.data.train, rows, weights, share)


def _taught_reasonings(
    this: Run, rows: Sequence[Row], kept: Mapping[str, tuple[str, ...]], base: tuple[str, str]
) -> Mapping[str, tuple[str, ...]]:
    """Give what the arms are taught by row: the kept reasonings, or the control that stands in for them."""
    config = this.config
    if config.reasonings.replace == "none":
        return kept
    tokens = classifier.tokens(this.data.task, base[0], config.trust_remote_code)
    return controls.replace(config.reasonings.replace, rows, kept, tokens, config.seed)


def told(this: Run, written: Made | None, learnt: Taught) -> dict[str, Any] | None:
    """Say what became of the candidates, what stands in for the kept ones, and what both tell of the labels."""
    if written is None:
        return None
    config, kept, taught = this.config, learnt.kept, learnt.reasonings
    instead = None if config.reasonings.replace == "none" else taught
    return {
        **reasonings.summary(written.folder),
        "without_reasoning": config.reasonings.without_reasoning,
        "top_up": config.reasonings.top_up,
        "short_of_top_up": short_of_top_up(this, learnt.rows, learnt.weights),
        "samples": reasonings.samples(written.folder),
        "replace": config.reasonings.replace,
        "replaced": sum(new != old for name in taught for new, old in zip(taught[name], kept[name], strict=True)),
        "leakage": asdict(evaluate.leakage(this.data.task, learnt.rows, kept, instead, config.seed)),
    }
