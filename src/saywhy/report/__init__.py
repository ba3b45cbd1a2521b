"""The report of a run: one HTML file, a pure function of metrics.json and of the test split's predictions."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from saywhy import metrics as scores
from saywhy import store
from saywhy.records import RequestError
from saywhy.report import figures, story
from saywhy.report.story import System

EXAMPLES = 10  # right answers shown, and wrong ones
EXAMPLE_LENGTH = 600  # characters shown of a text or a reasoning
LABEL_LENGTH = 60  # characters shown of a label in a table
ANSWERED = (1.0, 0.9, 0.8, 0.5)  # shares of the rows to answer that the table of the surest rows has
CLASSES = 20  # classes, and confusions, that a figure shows where there are more
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
UNDEFINED = Markup('<abbr title="undefined">–</abbr>')


def render(metrics: Mapping[str, Any], predictions: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The report as HTML.

    `metrics` is the content of metrics.json, `predictions` the rows of predictions/<arm>-<mode>-test.parquet under the
    key "<arm>-<mode>". The same input gives the same bytes.
    """
    known = story.systems(metrics)
    headline = story.headline(metrics, known)
    main = next((one for one in known if one.recommended), headline.systems[0] if headline.systems else None)
    base = next((one for one in headline.systems if one.tone == "base"), None)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        amount=_amount, cut=cut, decimals=_decimals, percent=_percent, points=_points, seconds=_seconds, p=_p
    )
    page = environment.from_string((files("saywhy") / "report.html").read_text("utf-8")).render(
        metrics=metrics,
        task=metrics["task"],
        known=known,
        headline=headline,
        main=main,
        base=base,
        recommended=metrics.get("recommended") or {},
        metric_names=story.METRIC_NAMES,
        accuracy_figure=_accuracy_figure(known),
        difference_figure=_difference_figure(metrics, known, base),
        classes=_classes(metrics, headline.systems),
        confusions=[_confusion(metrics, one, index) for index, one in enumerate(_with_confusion(headline, known))],
        comparisons=_comparisons(metrics),
        sureness=_sureness(headline.systems),
        training=story.training(metrics),
        curves=_curves(metrics),
        cost_figure=_cost_figure(known),
        examples=_examples(metrics, known, main, headline, predictions),
        reasonings=_reasonings(metrics.get("reasonings")),
        audit=_audit(metrics),
        limits=story.limits(metrics, known, main),
        undefined=UNDEFINED,
        class_limit=CLASSES,
    )
    return CONTROL.sub("\ufffd", page)


def write(run_folder: Path) -> Path:
    """Write report.html into a run's folder from what stands there and return its path.

    RequestError where metrics.json is missing or lacks what the report needs.
    """
    path = run_folder / "metrics.json"
    if not path.exists():
        raise RequestError(f"{path}: missing. The report shows what `saywhy evaluate` measured: run that first.")
    metrics = store.read_json(path)
    lacking = [key for key in ("task", "arms", "floors", "comparisons") if key not in metrics]
    if lacking:
        raise RequestError(f"{path}: lacks {', '.join(lacking)}. Write it again with `saywhy evaluate`.")
    predictions = {
        part.name.removesuffix("-test.parquet"): store.read_table(part).to_pylist()
        for part in sorted((run_folder / "predictions").glob("*-test.parquet"))
    }
    target = run_folder / "report.html"
    store.write_text(target, render(metrics, predictions))
    return target


def cut(text: object, length: int) -> str:
    """The text on one line, at most `length` characters, with an ellipsis where it was cut."""
    line = " ".join(str(text).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def _accuracy_figure(known: Sequence[System]) -> Markup | None:
    """Accuracy with its interval for everything that answers, best first."""
    shown = [one for one in known if one.test and one.test.get("accuracy_ci95") and one.test["accuracy"] is not None]
    if not shown:
        return None
    rows = []
    for one in sorted(shown, key=lambda one: -(one.test or {})["accuracy"]):
        test = one.test or {}
        low, high = (100 * value for value in test["accuracy_ci95"])
        shape = "diamond" if one.recommended else "square" if one.tone == "floor" else "circle"
        text = f"{100 * test['accuracy']:.1f}  [{low:.1f}, {high:.1f}]"
        rows.append(figures.Dot(_short(one), 100 * test["accuracy"], low, high, text, one.tone, shape))
    said = "; ".join(f"{row.name} {row.text}" for row in rows)
    return figures.dots("accuracy", "Accuracy on the test split with 95% intervals, in percent", said, rows)


def _difference_figure(metrics: Mapping[str, Any], known: Sequence[System], base: System | None) -> Markup | None:
    """What every other system gains or loses in accuracy against the best label_only arm."""
    rows = []
    for one in known:
        row = story.difference(metrics, one.key, base.key) if base is not None else None
        if row is not None:
            shape = "diamond" if one.recommended else "square" if one.tone == "floor" else "circle"
            low, high = 100 * row.low, 100 * row.high
            text = f"{story.points(row.difference, sign=True)}  [{story.points(row.low)}, {story.points(row.high)}]"
            rows.append(figures.Dot(_short(one), 100 * row.difference, low, high, text, one.tone, shape))
    if not rows or base is None:
        return None
    title = f"Difference in accuracy to {base.key}, in points, with 95% intervals"
    said = "; ".join(f"{row.name} {row.text}" for row in rows)
    return figures.dots("difference", title, said, rows, zero=True, clip=False)


def _classes(metrics: Mapping[str, Any], pair: Sequence[System]) -> dict[str, Any] | None:
    """F1 per class of the headline's systems, worst classes only where there are many."""
    shown = [one for one in pair if one.test and one.test.get("per_class")]
    if not shown:
        return None
    rows = []
    for label in metrics["task"]["labels"]:
        each = [(one.test or {})["per_class"][label] for one in shown]
        rows.append(figures.ClassBars(label, each[0]["support"], tuple(one["f1"] for one in each)))
    drawn = sorted(rows, key=_mean_f1)[:CLASSES] if len(rows) > CLASSES else rows
    said = "; ".join(
        f"{figures.fit(row.label, 30)}: " + ", ".join("undefined" if v is None else story.points(v) for v in row.values)
        for row in drawn
    )
    title = f"F1 by class in percent: {' and '.join(one.key for one in shown)}"
    figure = figures.class_bars("classes", title, said, drawn, [one.tone for one in shown])
    recalls = [one for one in shown if (one.test or {}).get("recall_at_fpr")]
    rates = list(next(iter((recalls[0].test or {})["recall_at_fpr"].values()))) if recalls else []
    return {
        "systems": shown,
        "figure": figure,
        "drawn": len(drawn),
        "labels": metrics["task"]["labels"],
        "recalls": recalls,
        "rates": rates,
    }


def _mean_f1(row: figures.ClassBars) -> float:
    """The mean of what is defined; a class without any figure comes last."""
    defined = [value for value in row.values if value is not None]
    return sum(defined) / len(defined) if defined else math.inf


def _with_confusion(headline: story.Headline, known: Sequence[System]) -> list[System]:
    """Systems with a confusion matrix, the headline's first."""
    order = [*headline.systems, *(one for one in known if one not in headline.systems)]
    return [one for one in order if one.test and one.test.get("confusion")]


def _confusion(metrics: Mapping[str, Any], one: System, index: int) -> dict[str, Any]:
    """A matrix, or the most frequent confusions where there are many labels."""
    labels, counts = metrics["task"]["labels"], (one.test or {})["confusion"]
    wrong = [
        (count, gold, answer)
        for gold, row in enumerate(counts)
        for answer, count in enumerate(row)
        if count and gold != answer
    ]
    wrong.sort(key=lambda found: (-found[0], found[1], found[2]))
    most = [
        f"{figures.fit(labels[gold], 30)} answered as {figures.fit(labels[answer], 30)}: {count}"
        for count, gold, answer in wrong[:5]
    ]
    said = "Most frequent confusions: " + "; ".join(most) if most else "No confusions."
    title, key = f"Confusions of {one.key} on the test split", f"confusion-{index}"
    if len(labels) <= figures.MATRIX_LABELS:
        figure = figures.matrix(key, title, said, labels, counts)
    else:
        bars = [
            figures.Bar(
                f"{figures.fit(labels[gold], 17)} → {figures.fit(labels[answer], 17)}",
                count,
                f"{count} of {sum(counts[gold])}",
                one.tone,
            )
            for count, gold, answer in wrong[:CLASSES]
        ]
        figure = figures.bars(key, title, said, bars)
    return {"system": one, "figure": figure, "many": len(labels) > figures.MATRIX_LABELS, "kinds": len(wrong)}


def _comparisons(metrics: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of `comparisons` by metric, accuracy first."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(metrics["comparisons"], key=lambda row: row["metric"] != "accuracy"):
        found.setdefault(row["metric"], []).append(row)
    return found


def _sureness(pair: Sequence[System]) -> dict[str, Any] | None:
    """Whether what the headline's systems are sure of is right, and what answering only the surest rows gives."""
    # Label only comes first: it has the same colour everywhere.
    shown = sorted(pair, key=lambda one: one.tone != "base")
    tests = {one.key: one.test for one in shown if one.test and one.test.get("coverage")}
    if not tests:
        return None
    shown = [one for one in shown if one.key in tests]
    bins = {
        key: [(100 * part["confidence"], 100 * part["right"]) for part in test["reliability"]]
        for key, test in tests.items()
    }
    answered = {
        key: sorted({(100 * one["coverage"], 100 * one["accuracy"]) for one in test["coverage"] if one["coverage"]})
        for key, test in tests.items()
    }
    title = "Share of right answers over their probability, in percent, in bins of equally many test rows"
    said = "; ".join(f"{key} (probability, right): {_pairs(points)}" for key, points in bins.items())
    both = figures.ticks(min(min(point) for points in bins.values() for point in points), 100.0)
    reliability = figures.curves("reliability", title, said, bins, both, both, even=True)
    title = "Accuracy over the share of test rows that is answered, the surest first, in percent"
    said = "; ".join(f"{key} (answered, accuracy): {_pairs(points)}" for key, points in answered.items())
    least = min(accuracy for points in answered.values() for _, accuracy in points)
    marks = (figures.ticks(0.0, 100.0), figures.ticks(least, 100.0, 4))
    coverage = figures.curves("coverage", title, said, answered, *marks)
    by_share = [{point["share"]: point for point in test["coverage"]} for test in tests.values()]
    return {
        "reliability": reliability,
        "coverage": coverage,
        "systems": shown,
        "legend": [(figures.line_sample(index), one) for index, one in enumerate(shown)],
        "rows": [(share, [points[share] for points in by_share]) for share in ANSWERED],
        "abstaining": [one for one in shown if tests[one.key].get("abstained") is not None],
    }


def _pairs(points: Sequence[tuple[float, float]]) -> str:
    return ", ".join(f"({x:.1f}, {y:.1f})" for x, y in points)


def _curves(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """The training loss of each arm."""
    lines = {}
    for arm, facts in metrics["arms"].items():
        curve = (facts.get("train") or {}).get("curve") or []
        points = [(float(step), float(loss)) for step, loss in curve if loss is not None and math.isfinite(loss)]
        if points:
            lines[arm] = points
    if not lines:
        return None
    said = "; ".join(f"{arm} from {line[0][1]:.3f} to {line[-1][1]:.3f}" for arm, line in lines.items())
    return {
        "figure": figures.curves("curves", "Training loss over steps", said, lines),
        "legend": [
            (figures.line_sample(index), arm, f"{line[-1][1]:.3f}") for index, (arm, line) in enumerate(lines.items())
        ],
    }


def _cost_figure(known: Sequence[System]) -> Markup | None:
    """Computed tokens a row of every arm and mode."""
    rows = []
    for one in known:
        tokens = one.test.get("tokens_per_row") if one.test and one.tone != "floor" else None
        if tokens is not None:
            rows.append(figures.Bar(_short(one), tokens, f"{tokens:,.1f}", one.tone))
    said = "; ".join(f"{row.name} {row.text}" for row in rows)
    return figures.bars("cost", "Computed tokens a row on the test split", said, rows) if rows else None


def _examples(
    metrics: Mapping[str, Any],
    known: Sequence[System],
    main: System | None,
    headline: story.Headline,
    predictions: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any] | None:
    """Right and wrong answers of the recommended system, or of the first one with reasonings where it writes none."""
    order = [*([main] if main else []), *headline.systems, *known]
    have = [one for one in order if one.tone != "floor" and predictions.get(f"{one.arm}-{one.mode}")]
    if not have:
        return None
    said = [one for one in have if any(row.get("reasoning") for row in predictions[f"{one.arm}-{one.mode}"])]
    shown = (said or have)[0]
    base = next((one for one in have if one.tone == "base" and one.key != shown.key), None)
    beside = {row["id"]: row["label"] for row in predictions[f"{base.arm}-{base.mode}"]} if base else {}
    # The order of the ids' hashes is as good as a drawing and the same in every report.
    rows = sorted(predictions[f"{shown.arm}-{shown.mode}"], key=_drawing)
    groups = []
    for right in (True, False):
        found = [row for row in rows if (row["label"] == row["gold"]) is right]
        shown_rows = [_example(metrics, shown, row, beside.get(row["id"])) for row in found[:EXAMPLES]]
        groups.append({"right": right, "of": len(found), "rows": shown_rows})
    return {"system": shown, "base": base, "groups": groups, "reasoned": bool(said), "n": len(rows)}


def _drawing(row: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(str(row["id"]).encode("utf-8", "surrogatepass")).digest()


def _example(metrics: Mapping[str, Any], one: System, row: Mapping[str, Any], beside: str | None) -> dict[str, Any]:
    labels = row.get("choices") or metrics["task"]["labels"]
    given = row.get("probabilities")
    probability = None
    if given is not None and row["label"] in labels:
        calibrated = scores.apply_temperature(np.asarray([given], dtype=np.float64), one.temperature or 1.0)
        if one.prior:
            calibrated = scores.apply_prior(calibrated, np.array([one.prior.get(label, 1.0) for label in labels]))
        probability = float(calibrated[0][list(labels).index(row["label"])])
    return {
        "text": cut(row["text"], EXAMPLE_LENGTH),
        "reasoning": cut(row.get("reasoning") or "", EXAMPLE_LENGTH),
        "gold": row["gold"],
        "label": row["label"],
        "probability": probability,
        "forced": bool(row.get("forced")),
        "beside": beside,
        "id": row["id"],
    }


def _reasonings(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What became of the candidates, and what reasonings tell of the label."""
    if not summary:
        return None
    candidates, kept, dropped = summary.get("candidates") or 0, summary.get("kept") or 0, summary.get("dropped") or {}
    rows = [("kept", kept), *sorted(dropped.items(), key=lambda found: (-found[1], found[0]))]
    spare = candidates - kept - sum(dropped.values())
    rows += [("passed the checks, not needed", spare)] if spare > 0 else []
    bars = [
        figures.Bar(
            name.replace("_", " "), n, f"{n:,} ({100 * n / candidates:.1f}%)" if candidates else f"{n:,}",
            "reasoned" if name == "kept" else "floor",
        )
        for name, n in rows
    ]  # fmt: skip
    said = "; ".join(f"{bar.name} {bar.text}" for bar in bars)
    leakage = summary.get("leakage") or {}
    kind = summary.get("replace")
    shown = {"written": "written", "taught": f"taught ({kind})", "crossed": f"taught ({kind}), read as if written"}
    return {
        **summary,
        "figure": figures.bars("reasonings", "What became of the candidates", said, bars),
        "classes": sorted((summary.get("by_class") or {}).items(), key=lambda one: -one[1]["rows"])[:CLASSES],
        "reasons": [name for name, _ in rows[1:] if name in dropped],
        "shown": _by_reason(summary.get("samples") or ()),
        "leakage_said": story.leakage(leakage),
        "read": [(name, leakage[key]) for key, name in shown.items() if leakage.get(key)],
    }


def _by_reason(samples: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Candidates under their verdicts, kept ones first."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in samples:
        found.setdefault(one["dropped_because"] or "kept", []).append(one)
    return sorted(found.items(), key=lambda item: (item[0] != "kept", item[0]))


def _audit(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Splits, overlap, notes, and the class balance of the splits by label."""
    audit = metrics.get("audit")
    if not audit:
        return None
    splits = audit.get("splits") or {}
    balance = [
        (label, [((one.get("classes") or {}).get(label, 0), one.get("rows")) for one in splits.values()])
        for label in metrics["task"]["labels"]
    ]
    overlap = [(_overlap_name(name), n) for name, n in (audit.get("overlap") or {}).items()]
    return {"splits": splits, "overlap": overlap, "notes": audit.get("notes") or [], "balance": balance}


def _overlap_name(name: str) -> str:
    """`test_in_train_other_label` in words."""
    found = re.fullmatch("([a-z]+)_in_([a-z]+)(_other_label)?", name)
    if not found:
        return name.replace("_", " ")
    return f"{found[1]} texts that stand in {found[2]}, too" + (", with another label" if found[3] else "")


def _short(one: System) -> str:
    return f"{one.mode} (floor)" if one.tone == "floor" else f"{one.arm} / {one.mode}"


def _given(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _percent(value: float | None) -> str:
    return f"{100 * value:.1f}" if value is not None and _given(value) else UNDEFINED


def _decimals(value: float | None, places: int = 3) -> str:
    return f"{value:,.{places}f}".replace("-", "−") if value is not None and _given(value) else UNDEFINED


def _amount(value: float | None) -> str:
    return story.amount(value) if value is not None and _given(value) else UNDEFINED


def _points(value: float | None) -> str:
    return story.points(value, sign=True) if value is not None and _given(value) else UNDEFINED


def _p(value: float | None) -> str:
    return story.p_value(value).removeprefix("p\u00a0").removeprefix("=\u00a0") if value is not None else UNDEFINED


def _seconds(value: float | None) -> str:
    """A duration as people say it."""
    if value is None or not _given(value):
        return UNDEFINED
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
