"""What the probe `inside` saw in the layers: entropies at the position where the label is decided.

Systems are grouped by that position and never drawn together across groups: behind a reasoning a model has read other
tokens than behind the text alone, so that a difference there would say nothing of how it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saywhy.report import figures
from saywhy.report.figures import Figure, Table
from saywhy.report.page import decimals, interval

MEASURES = {
    "logit_lens": (
        "Entropy of the words that each layer would say, nats",
        "Each layer’s state, read through the model’s own last norm and head: low where the layer already points at "
        "few words.",
    ),
    "magnitude": (
        "Entropy of the activations’ magnitudes, nats",
        "How evenly a layer’s activity is spread over its units: high where many take part.",
    ),
    "softmax": (
        "Entropy of the activations’ softmax, nats",
        "The same with a softmax over the units in the place of their magnitudes.",
    ),
}
OUTPUT = {
    "label_entropy": "entropy over labels",
    "vocabulary_entropy": "entropy over all tokens",
    "top": "highest probability",
    "margin": "margin to the second",
}


@dataclass(frozen=True)
class Place:
    """The systems that were looked at in one position: its name, their figures, and how sharp their output is."""

    position: str
    drawn: tuple[Figure, ...]
    output: Table


def places(found: Mapping[str, Mapping[str, Any]], key: str = "inside") -> list[Place]:
    """A part for each position; `found` is what metrics.json has under `probes.inside`."""
    by_position: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, told in found.items():
        by_position.setdefault(told["position"], {})[name] = told
    return [_place(position, told, f"{key}-{index}") for index, (position, told) in enumerate(by_position.items())]


def _place(position: str, found: Mapping[str, Mapping[str, Any]], key: str) -> Place:
    drawn = [_layers(measure, position, found, f"{key}-{measure.replace('_', '-')}") for measure in MEASURES]
    columns = ["arm / mode", "rows"]
    for name in OUTPUT.values():
        columns += [name, "95% interval"]
    rows = []
    for name, told in found.items():
        row = [name, f"{told['n']:,}"]
        for field in OUTPUT:
            one = told.get(field) or {"mean": None, "ci95": None}
            row += [decimals(one["mean"]), interval(one["ci95"], decimals)]
        rows.append(tuple(row))
    output = Table(f"How sharp the output is, {position}; entropies in nats", tuple(columns), tuple(rows))
    return Place(position, tuple(one for one in drawn if one is not None), output)


def _layers(measure: str, position: str, found: Mapping[str, Mapping[str, Any]], key: str) -> Figure | None:
    """A line over the layers for each system, with its interval."""
    title, caption = MEASURES[measure]
    lines, bands, rows = {}, {}, []
    for name, told in found.items():
        have = [(float(one["layer"]), one[measure]) for one in told["layers"] if one[measure]["mean"] is not None]
        if not have:
            continue
        lines[name] = [(layer, float(one["mean"])) for layer, one in have]
        bands[name] = [(layer, float(one["ci95"][0]), float(one["ci95"][1])) for layer, one in have if one.get("ci95")]
        rows += [
            (name, f"{layer:.0f}", decimals(one["mean"]), interval(one.get("ci95"), decimals), f"{one['n']:,}")
            for layer, one in have
        ]
    if not lines:
        return None
    last = max(layer for line in lines.values() for layer, _ in line)
    across = sorted({float(round(mark)) for mark in figures.ticks(0.0, last, 6) if mark < last} | {0.0, max(last, 1.0)})
    ends = [end for band in bands.values() for _, *span in band for end in span]
    ends += [y for line in lines.values() for _, y in line]
    said = "; ".join(
        f"{name}: from {line[0][1]:.3f} in layer {line[0][0]:.0f} to {line[-1][1]:.3f} in layer {line[-1][0]:.0f}"
        for name, line in lines.items()
    )
    up = figures.ticks(min(ends), max(ends), 4)
    svg = figures.curves(key, f"{title}, {position}", said, lines, across, up, bands=bands)
    table = Table(f"{title}, {position}", ("arm / mode", "layer", "mean", "95% interval", "rows"), tuple(rows))
    legend = tuple((figures.line_sample(index), name) for index, name in enumerate(lines))
    words = f"{caption} Across, the layers; 0 is the embedding. Bands are 95% intervals over rows."
    return Figure(title, svg, table, legend, words)
