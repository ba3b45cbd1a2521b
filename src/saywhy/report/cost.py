"""What right answers cost: what the probe `latency` measured of every arm, mode and batch size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saywhy.report import figures
from saywhy.report.figures import Bar, Figure, Table
from saywhy.report.page import decimals, percent
from saywhy.report.story import System


@dataclass(frozen=True)
class Latency:
    """Where it was measured, in words, the figures and the table of all."""

    where: str
    drawn: tuple[Figure, ...]
    table: Table


def latency(found: Mapping[str, Any], known: Mapping[str, System], key: str = "latency") -> Latency | None:
    """Right answers a second and for 1,000 computed tokens; None where nothing was timed.

    `found` is what metrics.json has under `probes.latency`. Accuracy over seconds a row is right answers a second.
    """
    rows, a_second, by_tokens = [], [], []
    for name, timed in found["systems"].items():
        tone = known[name].tone if name in known else "reasoned"
        for one in timed:
            n, right, seconds, tokens = one["rows"], one["right"], one["seconds"], one["tokens"]
            speed = right / seconds if seconds else None
            yielded = 1000 * right / tokens if tokens else None
            rows.append(
                (
                    name,
                    f"{one['batch']:,}",
                    f"{n:,}",
                    percent(right / n if n else None),
                    decimals(n / seconds if seconds else None, 1),
                    decimals(speed, 1),
                    decimals(tokens / n if n else None, 1),
                    decimals(yielded, 1),
                )
            )
            bar = f"{name}, batch {one['batch']}"
            if speed is not None:
                a_second.append(Bar(bar, speed, f"{speed:,.1f}", tone))
            if yielded is not None:
                by_tokens.append(Bar(bar, yielded, f"{yielded:,.1f}", tone))
    if not rows:
        return None
    columns = (
        *("arm / mode", "batch", "rows", "accuracy, %", "rows a second", "right answers a second", "tokens a row"),
        "right answers for 1,000 tokens",
    )
    drawn = [
        _bars(f"{key}-second", "Right answers a second", a_second, "Accuracy times rows a second, by rows in a batch."),
        _bars(
            f"{key}-tokens", "Right answers for 1,000 computed tokens", by_tokens,
            "The same whatever the machine; where rows share tokens a larger batch computes fewer of them.",
        ),
    ]  # fmt: skip
    where = f"Each system answered the same {found['rows']:,} test rows on {found['device']}"
    threads = found.get("threads")
    where += f" with {threads} thread{'s' if threads != 1 else ''}" if threads else ""
    table = Table("Right answers by time and by computed tokens", columns, tuple(rows))
    return Latency(f"{where}, once for each batch size.", tuple(one for one in drawn if one is not None), table)


def _bars(key: str, title: str, bars: list[Bar], caption: str) -> Figure | None:
    if not bars:
        return None
    said = "; ".join(f"{bar.name} {bar.text}" for bar in bars)
    table = Table(title, ("arm / mode, batch", title.lower()), tuple((bar.name, bar.text) for bar in bars))
    return Figure(title, figures.bars(key, title, said, bars), table, (), caption)
