"""What the arms are taught: the same rows for all, the kept reasonings, or the control that stands in for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from saywhy import classifier, controls, evaluate, reasonings
from saywhy.config import Arm
from saywhy.pipeline.measures import course
from saywhy.pipeline.stage import Made, Run
from saywhy.records import RequestError, Row
from saywhy.train.folder import Course, Lesson, encode


@dataclass(frozen=True)
class Taught:
    """What the arms learn from: the rows, their reasonings, and how often a row counts where that is more than once.

    `kept` are the reasonings that were kept; others may stand in for them in `reasonings`. `dropped` counts by class
    the rows that are in no arm because they do not fit.
    """

    rows: tuple[Row, ...]
    kept: Mapping[str, tuple[str, ...]]
    reasonings: Mapping[str, tuple[str, ...]]
    weights: Mapping[str, int]
    dropped: Mapping[str, int] = field(default_factory=dict)


def lesson(this: Run, written: Made | None, base: tuple[str, str], arms: Sequence[Arm]) -> Taught:
    """Give all arms the same rows, as often as each other."""
    if written is None:
        learnt = Taught(this.data.train, {}, {}, {})
    else:
        kept, rows, weights = weighed(this, written.folder)
        learnt = Taught(rows, kept, _taught_reasonings(this, rows, kept, base), weights)
    return _fitting(this, learnt, base, arms) if this.config.data.on_overflow == "drop" else learnt


def planned(this: Run, arm: Arm, base: str, learnt: Taught) -> tuple[Course, list[Lesson]]:
    """Say how an arm is trained, and what it is taught."""
    kept = {} if arm.arm == "label_only" else learnt.reasonings
    taught = classifier.lessons(arm.arm, learnt.rows, kept, learnt.weights)
    return course(this.config, this.data.task, arm.arm, base, arm.train, learnt.rows), taught


def _fitting(this: Run, learnt: Taught, base: tuple[str, str], arms: Sequence[Arm]) -> Taught:
    rows, dropped = fitting(learnt.rows, [planned(this, arm, base[0], learnt) for arm in arms])
    return replace(learnt, rows=rows, dropped=dropped)


def fitting(
    rows: Sequence[Row], plans: Sequence[tuple[Course, Sequence[Lesson]]]
) -> tuple[tuple[Row, ...], Mapping[str, int]]:
    """Leave rows out that do not fit beside the answers of one arm, and count them by class.

    They are left out of all arms, whose `plans` drop what does not fit: arms are to differ in what they say alone.
    Raises RequestError where no row is left.
    """
    fit = set.intersection(*({one.id for one in encode(*plan).lessons} for plan in plans))
    left = tuple(row for row in rows if row.id in fit)
    if not left:
        raise RequestError(
            "data.on_overflow: no training row fits beside the answers of every arm; set it to cut, or take a base "
            "with a larger context"
        )
    return left, Counter(row.label or "" for row in rows if row.id not in fit)


def untrained(this: Run, learnt: Taught) -> list[str]:
    """Say which labels of train no arm has a row of, because none was left; no sentence where there is none."""
    rows, taught = Counter(row.label or "" for row in this.data.train), {row.label for row in learnt.rows}
    gone = {label: count for label, count in rows.items() if label not in taught}
    if not gone or not this.data.task.labels:
        return []
    return [
        f"No arm is trained on a row of these classes: {reasonings.listed(gone)}. All their rows are left out, for "
        "want of a kept reasoning (reasonings.without_reasoning) or of room (data.on_overflow)."
    ]


def left_out(dropped: Mapping[str, int]) -> list[str]:
    """Say in a sentence how many rows are in no arm because they do not fit, by class; none where all do."""
    count = f"{sum(dropped.values())} texts of train did not fit beside the answers of every arm"
    return [f"{count} and were left out of all arms ({reasonings.listed(dropped)})."] if dropped else []


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
