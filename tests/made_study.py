"""Made-up studies: study.json as `saywhy study` writes it, with figures that disagree, and predictions beside it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reported import faithful, inside

Predictions = dict[tuple[str, str], list[dict[str, Any]]]

URGENCY = ("low", "normal", "high", "urgent")
SHARES = {"low": 0.42, "normal": 0.35, "high": 0.19, "urgent": 0.04}
ROWS = 400
TOKENS = {"label": 46.0, "reason": 91.5, "vote": 312.0, "explain": 88.0}
LABEL, REASON, VOTE, AFTER = (
    "label_only/label",
    "reason_then_label/reason",
    "reason_then_label/vote",
    "label_then_reason/label",
)
MAJORITY, LINEAR = "floors/majority", "floors/linear"
T975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


def draw(*key: object) -> np.random.Generator:
    """A generator of its own for every key, so that a setting more changes no other's figures."""
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def figure(mean: float | None, by_seed: Sequence[float | None], half: float | None = None) -> dict[str, Any]:
    """G: a mean over seeds; `half` is half the width of its interval."""
    known = [one for one in by_seed if one is not None]
    spread = float(np.std(known, ddof=1)) if len(known) > 1 else None
    interval = None if half is None or mean is None else [mean - half, mean + half]
    return {"mean": mean, "by_seed": list(by_seed), "ci95": interval, "sd": spread}


def system(
    name: str, key: str, accuracy: float, seeds: Sequence[int], labels: Sequence[str], ordinal: bool, replace: str
) -> dict[str, Any]:
    arm, mode = key.split("/")
    noise = draw(name, key).normal(0, 0.008 if arm != "floors" else 0.0, len(seeds))
    seen = [round(accuracy + float(one), 4) for one in noise]
    mean = float(np.mean(seen))
    half = 1.96 * math.sqrt(mean * (1 - mean) / ROWS + 0.00006 / len(seeds))

    def moved(by: float, half_: float | None = half) -> dict[str, Any]:
        values = [one + by for one in seen]
        return figure(float(np.mean(values)), values, half_)

    test = {
        "accuracy": moved(0.0), "macro_f1": moved(-0.04, 1.4 * half), "mean_recall": moved(-0.03, 1.3 * half),
        "nll": figure(1.9 - 1.6 * mean, [1.9 - 1.6 * one for one in seen]),
        "brier": figure(0.9 - 0.8 * mean, [0.9 - 0.8 * one for one in seen]),
        "ece": figure(0.04 + 0.03 * len(mode) / 6, [0.04 + 0.03 * len(mode) / 6] * len(seeds)),
        "rows_per_second": figure(5000 / TOKENS.get(mode, 50), [5000 / TOKENS.get(mode, 50)] * len(seeds)),
        "tokens_per_row": figure(TOKENS.get(mode, 0.0), [TOKENS.get(mode, 0.0)] * len(seeds)),
    }  # fmt: skip
    if mode in ("reason", "vote"):
        forced = [0.062 + 0.002 * seed for seed in range(len(seeds))]
        test["forced"] = figure(float(np.mean(forced)), forced)
        test["accuracy_unforced"] = moved(-0.033, None)
    if ordinal:
        error = [0.62 * (1.35 - one) for one in seen]
        test["mae"] = figure(float(np.mean(error)), error, 0.05)
        test["mae_expected"] = figure(float(np.mean(error)) + 0.07, [one + 0.07 for one in error])
        test["qwk"] = moved(-0.12, 1.2 * half)
    per_class = None
    if labels:
        per_class = {}
        for label in labels:
            support = round(ROWS * SHARES.get(label, 1 / len(labels)))
            recall = min(mean + 0.1 - 1.6 * (0.2 - min(0.2, support / ROWS)), 0.99)
            wide = 1.96 * math.sqrt(max(recall * (1 - recall), 0.01) / max(support, 1))
            per_class[label] = {
                "recall": figure(recall, [recall + 0.5 * (one - mean) for one in seen], wide),
                "precision": figure(recall + 0.03, [recall + 0.03] * len(seeds), 1.2 * wide),
                "f1": figure(recall + 0.01, [recall + 0.01] * len(seeds)),
                "support": support,
            }
    floor = arm == "floors"
    return {
        "kind": "floor" if floor else arm,
        "replace": "none" if floor or arm == "label_only" else replace,
        "dev": {"macro_f1": None if floor else mean - 0.05, "accuracy": None if floor else mean - 0.01},
        "test": test,
        "per_class": per_class,
        "train": None
        if floor
        else {"steps": 456, "rows": 14592, "tokens": 812345 + 90_000 * len(arm), "seconds": 512.5},
    }


def setting(
    ident: str,
    name: str,
    values: Mapping[str, Any],
    accuracies: Mapping[str, float],
    seeds: Sequence[int] = (0, 1, 2),
    labels: Sequence[str] = URGENCY,
    ordinal: bool = False,
    train: int = 1200,
    replace: str = "none",
    task: str = "tickets",
    kept: float | None = None,
    failed: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """A setting whose systems have about these accuracies."""
    reasonings = None
    if kept is not None:
        reasonings = {
            "rows": train, "candidates": 4 * train, "kept": round(4 * kept * train), "kept_share": kept,
            "rows_without": round(train * (1 - kept) / 4),
            "dropped": {"label_named_first": round(2 * train * (1 - kept)), "cut_off": round(2 * train * (1 - kept))},
            "support": 0.9 * kept, "likelihood": -1.1, "replace": replace,
            "leakage": {"written": 0.5 + 0.4 * kept, "taught": None if replace == "none" else 0.31, "chance": 0.25},
            "samples": [
                {"label": labels[-1], "reasoning": f"Every customer is hit and money is lost, sum 9 ({name}).",
                 "dropped_because": None},
                {"label": labels[-1], "reasoning": "Nobody can work: the sum is far above the limit.",
                 "dropped_because": None},
            ] if labels else [],
        }  # fmt: skip
    return {
        "id": ident, "name": name, "values": dict(values), "seeds": list(seeds),
        "folders": [f"cells/{ident}-{seed}" for seed in seeds], "failed": list(failed),
        "task": {"name": task, "labels": list(labels), "ordinal": ordinal},
        "rows": {"train": train, "dev": 150, "test": ROWS},
        "systems": {key: system(name, key, accuracy, seeds, labels, ordinal, replace)
                    for key, accuracy in accuracies.items()},
        "recommended": [{"seed": seed, "arm": "reason_then_label" if seed else "label_only",
                         "mode": "reason" if seed else "label"} for seed in seeds],
        "reasonings": reasonings, "probes": None,
    }  # fmt: skip


def comparison(
    part: str, a: tuple[dict[str, Any], str], b: tuple[dict[str, Any], str], metric: str = "accuracy", tests: int = 20
) -> dict[str, Any]:
    """What a paired comparison of two systems gives, from their figures by seed."""
    (one, a_key), (other, b_key) = a, b
    left, right = one["systems"][a_key], other["systems"][b_key]
    if metric.startswith("recall:"):
        label = metric.removeprefix("recall:")
        pair = [side["per_class"][label]["recall"]["by_seed"] for side in (left, right)]
    else:
        pair = [side["test"][metric]["by_seed"] for side in (left, right)]
    seeds = sorted(set(one["seeds"]) & set(other["seeds"]))
    by_seed = [x - y for x, y in zip(*pair, strict=False)][: len(seeds)]
    mean = float(np.mean(by_seed))
    error = 0.011 * (3 if ":" in metric else 1)
    spread = float(np.std(by_seed, ddof=1)) / math.sqrt(len(seeds)) if len(seeds) > 1 else 0.0
    wide = T975.get(len(seeds) - 1, 2.2) * spread
    both = 1.96 * math.hypot(error, spread)
    p = [min(1.0, 2 * math.exp(-0.5 * (one_ / error) ** 2)) for one_ in by_seed]
    p_both = math.erfc(abs(mean) / math.hypot(error, spread) / math.sqrt(2))
    return {
        "part": part,
        "a": {"setting": one["id"], "system": a_key},
        "b": {"setting": other["id"], "system": b_key},
        "metric": metric, "difference": mean, "by_seed": by_seed, "ci95": [mean - both, mean + both],
        "seed_ci95": None if len(seeds) < 2 else [mean - wide, mean + wide],
        "p": p_both, "p_holm": min(1.0, tests * p_both),
        "p_mcnemar": p if metric == "accuracy" else None,
        "p_mcnemar_holm": [min(1.0, tests * x) for x in p] if metric == "accuracy" else None,
        "mde": 2.8 * math.hypot(error, spread), "n": ROWS, "seeds": seeds,
    }  # fmt: skip


def compared(part: Mapping[str, Any], settings: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Within each setting every system against label_only, and each against itself in the part's first setting."""
    rows = []
    first = settings[part["settings"][0]]
    for ident in part["settings"]:
        one = settings[ident]
        for metric in ("accuracy", "macro_f1", *(["mae", "qwk"] if one["task"]["ordinal"] else [])):
            for key in one["systems"]:
                if (one["systems"][key]["test"].get(metric) or {}).get("mean") is None:
                    continue
                if key not in (LABEL, MAJORITY):
                    pair = ((one, key), (one, LABEL)) if key != LINEAR else ((one, LABEL), (one, LINEAR))
                    rows.append(comparison(part["name"], *pair, metric))
                if one is not first and key not in (MAJORITY, LINEAR) and one["task"] == first["task"]:
                    rows.append(comparison(part["name"], (one, key), (first, key), metric))
    return rows


def probes(control: bool = False) -> dict[str, Any]:
    """All three probes; a control's layers are less decided, and its answers do not hang on what stands there."""
    batches = ((1, 9.0), (8, 4.0), (32, 2.5))
    return {
        "faithfulness": {REASON: faithful(0.2, 0.7) if control else faithful()},
        "inside": {
            LABEL: inside("after the text", 6.2),
            AFTER: inside("after the text", 6.0),
            REASON: inside("after the reasoning", 6.4 if control else 5.2),
        },
        "latency": {
            "rows": 200, "device": "cpu", "threads": 2,
            "systems": {
                key: [{"batch": batch, "rows": 200, "seconds": seconds * slow, "right": right, "tokens": 200 * tokens}
                      for batch, seconds in batches]
                for key, slow, right, tokens in ((LABEL, 1, 146, 46), (REASON, 5, 158, 92))
            },
        },
    }  # fmt: skip


def document(parts: Sequence[Mapping[str, Any]], settings: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
    by_id = {one["id"]: one for one in settings}
    first = parts[0]
    rows = [row for part in parts for row in compared(part, by_id)]
    last = first["settings"][-1]
    return {
        "name": "tickets", "kind": "study", "metric": "macro_f1", "parts": list(parts), "settings": list(settings),
        "comparisons": rows,
        "headline": {"part": first["name"], "a": {"setting": last, "system": REASON},
                     "b": {"setting": last, "system": LABEL}, "metric": "accuracy"},
        "notes": ["3 test texts stand in train, too."],
        "versions": {"saywhy": "0.1.0", "python": "3.12.4", "torch": "2.13.0"},
        "command": "saywhy study tickets.yaml",
    } | more  # fmt: skip


def systems(label: float, reason: float, linear: float = 0.62) -> dict[str, float]:
    return {
        LABEL: label, REASON: reason, VOTE: reason + 0.012, AFTER: (label + reason) / 2 + 0.01,
        MAJORITY: 0.42, LINEAR: linear,
    }  # fmt: skip


def full(seeds: Sequence[int] = (0, 1, 2)) -> dict[str, Any]:
    """Every kind of question: sizes, controls, top-up, several axes of a scale, two keys at once, kinds of reasoner."""
    parts: list[dict[str, Any]] = []
    made: dict[str, dict[str, Any]] = {}

    def part(name: str, axes: Sequence[str], settings: Sequence[dict[str, Any]]) -> None:
        made.update((one["id"], one) for one in settings)
        parts.append({"name": name, "axes": list(axes), "settings": [one["id"] for one in settings]})

    sizes = [
        setting(f"s{i}", f"data.rows={rows}", {"data.rows": rows}, systems(label, reason, 0.5 + 0.04 * i), seeds,
                train=1200 if rows == "all" else int(rows), kept=0.7)
        for i, (rows, label, reason) in enumerate(
            [(64, 0.55, 0.49), (256, 0.62, 0.62), (512, 0.66, 0.69), ("all", 0.70, 0.785)])
    ]  # fmt: skip
    sizes[1]["failed"] = [{"seed": 3, "why": "CUDA out of memory. Lower classifier.train.tokens_per_pack."}]
    sizes[-1]["probes"] = probes()
    part("sizes", ["data.rows"], sizes)
    whole = sizes[-1]
    controls = [
        setting(f"c{i}", f"reasonings.replace={kind}", {"reasonings.replace": kind}, systems(0.70, reason), seeds,
                replace=kind, kept=0.7)
        for i, (kind, reason) in enumerate([("bag_class", 0.75), ("swap_other", 0.41), ("corrupt(0.2)", 0.76)])
    ]  # fmt: skip
    controls[0]["probes"] = probes(control=True)
    part("controls", ["reasonings.replace"], [whole, *controls])
    topped = setting("t1", "reasonings.top_up=200", {"reasonings.top_up": 200}, systems(0.70, 0.79), seeds, kept=0.72)
    for one in topped["systems"].values():
        for what, by in (("recall", 0.14), ("precision", -0.06)):
            rare = one["per_class"]["urgent"][what]
            rare["mean"] += by
            rare["ci95"] = [value + by for value in rare["ci95"]]
            rare["by_seed"] = [value + by for value in rare["by_seed"]]
    part("the rare class", ["reasonings.top_up"], [whole, topped])
    scales = [
        setting(f"o{i}", f"task.label={name}", {"task.label": name}, systems(label, label + by), seeds,
                labels=("1", "2", "3", "4", "5"), ordinal=True, task=f"reviews, {name}", kept=0.6)
        for i, (name, label, by) in enumerate([("service", 0.6, 0.02), ("price", 0.55, -0.05), ("food", 0.7, 0.05)])
    ]  # fmt: skip
    part("scales", ["task.label"], scales)
    crossed = [
        setting(f"w{i}{j}", f"classifier.train.label_weight={weight}, data.rows={rows}",
                {"classifier.train.label_weight": weight, "data.rows": rows},
                systems(0.6 + 0.05 * j, 0.58 + 0.08 * j - 0.05 * (weight == "tokens")), seeds,
                train=1200 if rows == "all" else int(rows))
        for i, weight in enumerate(("balanced", "tokens", 4.0))
        for j, rows in enumerate((64, "all"))
    ]  # fmt: skip
    part("weights", ["classifier.train.label_weight", "data.rows"], crossed)
    reasoners = [
        setting(f"r{i}", name, {"reasoner": name}, systems(0.70, reason), seeds, kept=kept)
        for i, (name, reason, kept) in enumerate(
            [("general cases", 0.77, 0.64), ("cases of this task", 0.79, 0.81), ("the base as it is", 0.71, 0.22),
             ("not shown the label", 0.69, 0.35)])
    ]  # fmt: skip
    part("reasoner", [], reasoners)
    found = document(parts, list(made.values()))
    for one in ("t1", "s3"):
        for key in (LABEL, REASON):
            if one == "t1":
                found["comparisons"].append(
                    comparison("the rare class", (made["t1"], key), (made["s3"], key), "recall:urgent")
                )
    return found


def choices() -> dict[str, Any]:
    """One seed, rows that bring their own answers, no classes, and no floor but the most frequent position."""
    made = [
        setting(f"s{i}", name, {"base": name}, {LABEL: 0.6 + 0.02 * i, REASON: 0.61 + 0.02 * i, MAJORITY: 0.26}, (0,),
                labels=(), task="questions")
        for i, name in enumerate(("small", "large"))
    ]  # fmt: skip
    for one in made:
        for each in one["systems"].values():
            for metric in ("macro_f1", "mean_recall"):
                each["test"][metric] = figure(None, [None])
    return document([{"name": "grid", "axes": ["base"], "settings": ["s0", "s1"]}], made)


def runs() -> dict[str, Any]:
    """Two finished runs side by side, as `saywhy compare` writes them."""
    made = [
        setting("r0", "emotion", {}, systems(0.66, 0.63), (0,), kept=0.5),
        setting("r1", "emotion-large", {}, systems(0.70, 0.78), (0,), kept=0.8),
    ]
    for one in made:
        one["folders"] = [f"/runs/{one['name']}"]
    values = [{"run": one["name"]} for one in made]
    part = {"name": "runs", "axes": ["run"], "settings": ["r0", "r1"], "values": values}
    return document([part], made, kind="compare", name="2 runs", command="saywhy compare emotion emotion-large")


def many(count: int = 40) -> dict[str, Any]:
    """A study of as many settings, with names as long as real ones."""
    made = [
        setting(f"s{i}", f"reasonings.candidates={i}, reasoner.base=HuggingFaceTB/SmolLM2-{i}M-Instruct",
                {"reasonings.candidates": i, "reasoner.base": f"SmolLM2-{i % 4}M"},
                systems(0.6 + 0.003 * i, 0.58 + 0.005 * i), (0, 1, 2, 3, 4), kept=0.3 + 0.01 * i)
        for i in range(count)
    ]  # fmt: skip
    return document([{"name": "grid", "axes": [], "settings": [one["id"] for one in made]}], made)


def predictions(found: Mapping[str, Any], n: int = 60) -> Predictions:
    """Answers of the first seed for every model of every setting, on the same rows where the task is the same."""
    answers: Predictions = {}
    for one in found["settings"]:
        labels = one["task"]["labels"] or ["first", "second", "third"]
        gold = draw(one["task"]["name"]).integers(len(labels), size=n)
        for key, each in one["systems"].items():
            if each["kind"] == "floor":
                continue
            own = draw(one["id"], key)
            right = own.random(n) < each["test"]["accuracy"]["by_seed"][0]
            given = np.where(right, gold, (gold + 1 + own.integers(len(labels) - 1, size=n)) % len(labels))
            sure = own.uniform(0.5, 0.98, size=n)
            reasoned = key.split("/")[1] in ("reason", "vote", "explain")
            answers[(one["id"], key.replace("/", "-"))] = [
                {
                    "id": f"row-{i:03}", "text": f"Ticket {i}: the checkout page shows an error to every customer.",
                    "gold": labels[gold[i]], "label": labels[given[i]],
                    "probabilities": [float(sure[i]) if at == given[i] else float(1 - sure[i]) / (len(labels) - 1)
                                      for at in range(len(labels))],
                    "reasoning": f"An error weighs {3 + i % 4}; the sum is {3 + i % 4}." if reasoned else None,
                    "tokens": TOKENS[key.split("/")[1]], "forced": bool(reasoned and own.random() < 0.08),
                    "pruned": 0.0, "choices": None if one["task"]["labels"] else labels,
                }
                for i in range(n)
            ]  # fmt: skip
    return answers
