"""The report of a run: one HTML file, a pure function of metrics.json and of the test split's predictions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saywhy import store
from saywhy.records import RequestError
from saywhy.report import classes, cost, explorer, figures, inside, page, story, trust
from saywhy.report.explorer import LENGTH, calibrated, drawing
from saywhy.report.figures import Figure, Table
from saywhy.report.page import amount, cut, interval, percent, points
from saywhy.report.story import System
from saywhy.report.study import render_study, study_predictions, write_study

__all__ = ["render", "render_study", "study_predictions", "write", "write_study"]

EXAMPLES = 10  # right answers shown, and wrong ones
ANSWERED = (1.0, 0.9, 0.8, 0.5)  # shares of the rows to answer that the table of the surest rows has


def render(metrics: Mapping[str, Any], predictions: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The report as HTML.

    `metrics` is the content of metrics.json, `predictions` the rows of predictions/<arm>-<mode>-test.parquet under the
    key "<arm>-<mode>". The same input gives the same bytes.
    """
    known = story.systems(metrics)
    headline = story.headline(metrics, known)
    main = next((one for one in known if one.recommended), headline.systems[0] if headline.systems else None)
    base = next((one for one in headline.systems if one.tone == "base"), None)
    probes = metrics.get("probes") or {}
    return page.render(
        "report.html",
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
        classes=classes.by_class(metrics, headline.systems),
        confusions=[
            classes.confusion(metrics, one, index) for index, one in enumerate(_with_confusion(headline, known))
        ],
        rare=classes.rarest(metrics, known, headline, predictions),
        comparisons=_comparisons(metrics),
        sureness=_sureness(headline.systems),
        training=story.training(metrics),
        curves=_curves(metrics),
        cost_figure=_cost_figure(known),
        latency=cost.latency(probes["latency"], {one.key: one for one in known}) if "latency" in probes else None,
        trusted=trust.sections(probes.get("faithfulness") or {}),
        untrusted="" if "faithfulness" in probes else trust.unmeasured(known),
        trust_setting=trust.SETTING,
        places=inside.places(probes.get("inside") or {}),
        explorer=explorer.explore(metrics["task"], known, _pair(main, headline), predictions),
        examples=_examples(metrics, known, main, headline, predictions),
        reasonings=_reasonings(metrics.get("reasonings")),
        audit=_audit(metrics),
        limits=story.limits(metrics, known, main),
        class_limit=classes.CLASSES,
    )


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


def _accuracy_figure(known: Sequence[System]) -> Figure | None:
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
    title = "Accuracy on the test split with 95% intervals, in percent"
    cells = tuple((row.name, f"{row.value:.1f}", f"[{row.low:.1f}, {row.high:.1f}]") for row in rows)
    table = Table(title, ("arm / mode", "accuracy", "95% interval"), cells)
    return Figure(title, figures.dots("accuracy", title, said, rows), table)


def _difference_figure(metrics: Mapping[str, Any], known: Sequence[System], base: System | None) -> Figure | None:
    """What every other system gains or loses in accuracy against the best label_only arm."""
    rows, cells = [], []
    for one in known:
        row = story.difference(metrics, one.key, base.key) if base is not None else None
        if row is not None:
            shape = "diamond" if one.recommended else "square" if one.tone == "floor" else "circle"
            low, high = 100 * row.low, 100 * row.high
            text = f"{story.points(row.difference, sign=True)}  [{story.points(row.low)}, {story.points(row.high)}]"
            rows.append(figures.Dot(_short(one), 100 * row.difference, low, high, text, one.tone, shape))
            span = interval((row.low, row.high), points)
            cells.append((one.key, points(row.difference), span, page.p_value(row.p), percent(row.mde)))
    if not rows or base is None:
        return None
    title = f"Difference in accuracy to {base.key}, in points, with 95% intervals"
    said = "; ".join(f"{row.name} {row.text}" for row in rows)
    table = Table(title, ("arm / mode", "points", "95% interval", "McNemar p", "could have shown"), tuple(cells))
    return Figure(title, figures.dots("difference", title, said, rows, zero=True, clip=False), table)


def _pair(main: System | None, headline: story.Headline) -> list[System]:
    """The systems that the explorer begins with: the recommended one, and those of the headline."""
    return [*([main] if main else []), *(one for one in headline.systems if one != main)]


def _with_confusion(headline: story.Headline, known: Sequence[System]) -> list[System]:
    """Systems with a confusion matrix, the headline's first."""
    order = [*headline.systems, *(one for one in known if one not in headline.systems)]
    return [one for one in order if one.test and one.test.get("confusion")]


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
    columns = ("arm / mode", "mean probability", "share right", "rows")
    cells = tuple(
        (key, percent(part["confidence"]), percent(part["right"]), f"{part['n']:,}")
        for key, test in tests.items()
        for part in test["reliability"]
    )
    in_bins = Table("Bins of test rows, the least sure first, in percent", columns, cells)
    points_ = tuple((key, f"{x:.1f}", f"{y:.1f}") for key, line in answered.items() for x, y in line)
    by_coverage = Table(title, ("arm / mode", "answered", "accuracy"), points_)
    return {
        "reliability_numbers": in_bins,
        "coverage_numbers": by_coverage,
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
    cells = tuple(
        (arm, f"{step:,.0f}", f"{loss:.4f}") for arm, line in lines.items() for step, loss in _some(line)
    )
    return {
        "numbers": Table("Training loss, about twenty steps of each curve", ("arm", "step", "loss"), cells),
        "figure": figures.curves("curves", "Training loss over steps", said, lines),
        "legend": [
            (figures.line_sample(index), arm, f"{line[-1][1]:.3f}") for index, (arm, line) in enumerate(lines.items())
        ],
    }


def _some(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """About twenty points of a curve, evenly taken, its first and last among them."""
    return [line[round(place * (len(line) - 1) / 19)] for place in range(20)] if len(line) > 20 else list(line)


def _cost_figure(known: Sequence[System]) -> Figure | None:
    """Computed tokens a row of every arm and mode."""
    rows = []
    for one in known:
        tokens = one.test.get("tokens_per_row") if one.test and one.tone != "floor" else None
        if tokens is not None:
            rows.append(figures.Bar(_short(one), tokens, f"{tokens:,.1f}", one.tone))
    said = "; ".join(f"{row.name} {row.text}" for row in rows)
    title = "Computed tokens a row on the test split"
    table = Table(title, ("arm / mode", "tokens a row"), tuple((row.name, row.text) for row in rows))
    return Figure(title, figures.bars("cost", title, said, rows), table) if rows else None


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
    rows = sorted(predictions[f"{shown.arm}-{shown.mode}"], key=lambda row: drawing(row["id"]))
    groups = []
    for right in (True, False):
        found = [row for row in rows if (row["label"] == row["gold"]) is right]
        shown_rows = [_example(metrics, shown, row, beside.get(row["id"])) for row in found[:EXAMPLES]]
        groups.append({"right": right, "of": len(found), "rows": shown_rows})
    return {"system": shown, "base": base, "groups": groups, "reasoned": bool(said), "n": len(rows)}


def _example(metrics: Mapping[str, Any], one: System, row: Mapping[str, Any], beside: str | None) -> dict[str, Any]:
    labels = list(row.get("choices") or metrics["task"]["labels"])
    shares = calibrated(labels, one, row)
    probability = shares[labels.index(row["label"])] if shares and row["label"] in labels else None
    return {
        "text": cut(row["text"], LENGTH),
        "reasoning": cut(row.get("reasoning") or "", LENGTH),
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
        "numbers": Table(
            "What became of the candidates",
            ("verdict", "candidates", "%"),
            tuple(
                (name.replace("_", " "), amount(n), percent(n / candidates if candidates else None)) for name, n in rows
            ),
        ),
        "classes": sorted((summary.get("by_class") or {}).items(), key=lambda one: -one[1]["rows"])[:classes.CLASSES],
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
    return f"{one.mode.replace('_', '-')} (floor)" if one.tone == "floor" else f"{one.arm} / {one.mode}"
