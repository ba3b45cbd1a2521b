"""The tables that commands print."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def results(metrics: dict[str, Any]) -> Table:
    """Show arms, modes and floors with their test figures, as metrics.json holds them."""
    n = next((s["n"] for s in metrics["floors"].values() if s), 0)
    table = Table(title=f"{metrics['task']['name']}: {n} test rows")
    for name in ("arm / mode", "accuracy", "95% interval", "macro F1", "mean recall", "tokens a row", "rows/s"):
        table.add_column(name, justify="left" if name == "arm / mode" else "right")
    floors = [(f"{name} (floor)", scores) for name, scores in metrics["floors"].items() if scores]
    arms = [
        (f"{name} / {mode}", scores["test"])
        for name, arm in metrics["arms"].items()
        for mode, scores in arm["modes"].items()
        if mode != "explain"
    ]
    for name, scores in floors + arms:
        low, high = scores["accuracy_ci95"] or (None, None)
        table.add_row(
            name,
            percent(scores["accuracy"]),
            f"{percent(low)}–{percent(high)}",
            percent(scores["macro_f1"]),
            percent(scores["mean_recall"]),
            "–" if not scores["tokens_per_row"] else f"{scores['tokens_per_row']:.0f}",
            "–" if not scores["rows_per_second"] else f"{scores['rows_per_second']:.0f}",
        )
    return table


def setting_results(setting: dict[str, Any]) -> Table:
    """Draw the mean figures of one setting of a study, in percent, narrow enough for any terminal."""
    seeds = ", ".join(map(str, setting["seeds"])) or "none finished"
    table = Table(title=f"{setting['name']} (seeds {seeds}), %", title_justify="left", box=None)
    for name in ("arm / mode", "accuracy", "95%", "recall", "strictly", "tokens"):
        table.add_column(name, justify="left" if name == "arm / mode" else "right", no_wrap=True)
    for name, system in setting["systems"].items():
        test = system["test"]
        shares = [(test.get(key) or {}).get("mean") for key in ("accuracy", "mean_recall", "accuracy_unforced")]
        accuracy, recall, strictly = (percent(one).rstrip("%") for one in shares)
        ends = [percent(end).rstrip("%") for end in test["accuracy"]["ci95"] or ()]
        tokens = test["tokens_per_row"]["mean"]
        shown = f"{tokens:.0f}" if tokens else "–"
        table.add_row(name.replace("floors/", "floor: "), accuracy, "–".join(ends), recall, strictly, shown)
    return table


def voters(counted: dict[str, Any]) -> Table:
    """Draw what each teacher said with each prompt."""
    table = Table(title="answers")
    for name in ("teacher", "prompt", "texts", "unreadable", "unanswered", "as voted"):
        is_name = name in ("teacher", "prompt")
        table.add_column(name, justify="left" if is_name else "right", no_wrap=is_name)
    for each in counted["each"]:
        numbers = (str(each[key]) for key in ("asked", "unreadable", "without"))
        table.add_row(each["teacher"], each["prompt"], *numbers, percent(each["agreed"]))
    return table


def votes(counted: dict[str, Any]) -> list[str]:
    """Say what came of the votes, and how far those who voted agree."""
    rows, labelled = counted["rows"], sum(counted["labels"].values())
    shares = ", ".join(f"{name} {percent(count / labelled)}" for name, count in counted["labels"].items())
    lines = [f"{labelled} of {rows} texts have a label: {shares}"]
    for key, why in (("empty", "are empty"), ("without", "got no answer that could be read")):
        if counted[key]:
            lines.append(f"{counted[key]} texts {why} and are left out")
    alphas = (("answers", counted["alpha"]), ("teachers", counted["alpha_teachers"]))
    told = [f"between {whom} {alpha:.2f}" for whom, alpha in alphas if alpha is not None]
    lines.append(f"mean share of votes for the label {percent(counted['agreement'])}; {counted['disputed']} disputed")
    return [*lines, f"Krippendorff's alpha (1 is agreement, 0 chance): {', '.join(told)}"] if told else lines


def percent(share: float | None) -> str:
    """Write a share as a percentage, a dash where it is not known."""
    return "–" if share is None else f"{100 * share:.1f}%"
