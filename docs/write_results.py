"""Write docs/results/NAME.md and NAME.json from a finished study, without any text of its rows.

    python docs/write_results.py runs/two-stage-small-study --note "two CPU cores, …"

The page has what the study's own report has, as far as it fits into tables: sentences, means over seeds, comparisons,
what became of the reasonings, how far they can be trusted, and the layers of the first seed's models.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saywhy import store
from saywhy.report import study_story, trust

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Write both files and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--note", default="", help="date, machine and time, for the head of the page")
    given = parser.parse_args()
    document = store.read_json(given.study / "study.json")
    for setting in document["settings"]:
        if setting["reasonings"]:
            setting["reasonings"]["samples"] = []
    name = str(document["name"])
    document["command"] = document["command"].partition(" -o ")[0]
    for setting in document["settings"]:
        for failed in setting["failed"]:
            failed["why"] = failed["why"].replace(f"{given.study.resolve()}/", "")
    store.write_text(RESULTS / f"{name}.json", json.dumps(rounded(document), ensure_ascii=False) + "\n")
    store.write_text(RESULTS / f"{name}.md", "\n".join(page(document, given.note)) + "\n")
    print(f"docs/results/{name}.md and .json are written")


def rounded(value: Any) -> Any:
    """Give a value with numbers of six places: more would say nothing and fill the repository."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 6) if isinstance(value, float) else value


def page(document: Mapping[str, Any], note: str) -> Iterator[str]:
    """Give the page line by line."""
    known = study_story.findings(document)
    told = study_story.headline(document, known)
    system = told.finding.a.system if told.finding else None
    yield f"# {document['name']}"
    yield f"\n`{document['command']}`. {note}"
    yield f"\n**{told.verdict}** {told.sentence}\n"
    for one in document["settings"]:
        yield from (f"- Failed: {one['name']}, seed {run['seed']}: {run['why']}" for run in one["failed"])
    yield from (f"- {aside}" for aside in told.asides)
    names = study_story.setting_names(document)
    settings = {one["id"]: one for one in document["settings"]}
    for part in document["parts"]:
        some = [(names[part["name"], one], settings[one]) for one in part["settings"]]
        yield f"\n## {part['name']}\n"
        yield from (f"{line}\n" for line in study_story.part_lines(part, known, document["metric"], system))
        yield from systems(some)
        yield from comparisons([one for one in known if one.part == part["name"]], document["metric"])
        yield from reasonings(some)
    yield from trusted(document["settings"])
    yield from layers(document["settings"])
    yield "\n## What limits these figures\n"
    yield from (f"- {line}" for line in study_story.limits(document, known))


def systems(some: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    """The figures of every system in every setting of a part, means over seeds; what settings share stands once."""
    once: dict[str, tuple[str, str, Mapping[str, Any]]] = {}
    for name, one in some:
        for key, system in one["systems"].items():
            once.setdefault(store.hash_of([key, one["task"], system["test"]]), (name, key, system))
    ordinal = any(one["task"] and one["task"]["ordinal"] for _, one in some)
    heads = ["setting", "arm / mode", "accuracy", "mean recall", "macro F1", "NLL", "read strictly", "tokens a row"]
    yield from table(
        heads + (["MAE", "QWK"] if ordinal else []),
        (
            [
                name,
                key.replace("floors/", "floor: "),
                *(interval(system["test"].get(metric)) for metric in ("accuracy", "mean_recall", "macro_f1")),
                number(system["test"]["nll"], 3),
                percent(system["test"]["accuracy_unforced"]),
                number(system["test"]["tokens_per_row"], 0),
                *([number(system["test"].get("mae"), 2), number(system["test"].get("qwk"), 2)] if ordinal else []),
            ]
            for name, key, system in once.values()
        ),
    )


def comparisons(found: Sequence[study_story.Finding], metric: str) -> Iterator[str]:
    """The comparisons of a part by the study's metric, by accuracy where a task has no other."""
    shown = [one for one in found if one.metric == metric]
    have = {one.a.setting for one in shown}
    shown += [one for one in found if one.metric == "accuracy" and one.a.setting not in have]
    if not shown:
        return
    # What several settings share was compared with the same floor in each of them.
    shown = list({(one.a.system, one.b.system, one.by_seed): one for one in reversed(shown)}.values())[::-1]
    names = list(dict.fromkeys(study_story.metric_name(one.metric) for one in shown))
    where = " (where rows have their own choices)" if len(names) > 1 else ""
    yield f"\nDifferences of {' or '.join(names)}{where} in points, over rows and seeds:\n"
    heads = ["a", "b", "a − b", "95% interval", "each seed", "p", "p (Holm)", "could have been seen", "reading"]
    yield from table(
        heads,
        (
            [
                f"{one.a.system}" + ("" if one.within else f" ({one.a.setting_name})"),
                f"{one.b.system} ({one.b.setting_name})",
                study_story.signed(one.metric, one.difference),
                study_story.span(one.metric, one.ci95) if one.ci95 else "–",
                " ".join(study_story.signed(one.metric, seed) for seed in one.by_seed),
                chance(one.p),
                chance(one.p_holm),
                "–" if one.mde is None else f"{100 * one.mde:.1f}",
                {"clear": "clear", "hint": "a hint", "none": "no difference shown"}[one.case],
            ]
            for one in shown
        ),
    )


def reasonings(some: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    """What became of the reasonings, where settings of the part differ in it."""
    have = [(name, one["reasonings"]) for name, one in some if one["reasonings"]]
    facts = {str([one[key] for key in ("kept_share", "support", "replace", "leakage")]) for _, one in have}
    if len(facts) < 2:
        return
    yield "\nThe reasonings, means over seeds; leakage is what a linear model reads of the label from them alone:\n"
    yield from table(
        ["setting", "kept", "rows without", "support, nats", "leakage, written", "taught", "chance"],
        (
            [
                name,
                share(one["kept_share"]),
                "–" if one["rows_without"] is None else f"{one['rows_without']:.0f}",
                "–" if one["support"] is None else f"{one['support']:.2f}",
                *(share(one["leakage"][key]) for key in ("written", "taught", "chance")),
            ]
            for name, one in have
        ),
    )


def trusted(settings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How far the reasonings of each model can be trusted, first seed."""
    found = {
        (one["name"], key): probe
        for one in settings
        for key, probe in ((one["probes"] or {}).get("faithfulness") or {}).items()
    }
    if not found:
        return
    yield "\n## How far the reasonings can be trusted\n"
    yield "First seed, every test row, shares in percent ([evidence.md](../evidence.md) explains each).\n"
    heads = ["setting", "verdict", "own", "follows a swap", "stays", "mistake changes", "half of it is enough", "RQ"]
    yield from table(
        [*heads, "LAS", "REV"],
        (
            [
                name,
                trust.sections({key: probe}, "result")[0].verdict,
                share(probe["own"]["share"]),
                share(probe["swap_other"]["followed"]["share"]),
                share(probe["swap_other"]["stayed"]["share"]),
                share(probe["mistake"]["changed"]["share"]),
                share(probe["truncated"][5]["same"]["share"]),
                *(_value(probe[measure], 100) for measure in ("rq", "las")),
                "–" if not probe["rev"] else _value({"value": probe["rev"]["all"]["mean"]}, 1),
            ]
            for (name, key), probe in found.items()
        ),
    )


def _value(measure: Mapping[str, Any] | None, scale: float) -> str:
    value = (measure or {}).get("value")
    return "–" if value is None else f"{scale * value:+.{1 if scale > 1 else 2}f}"


def layers(settings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Entropies inside the models of the first seed, by the position at which they decide."""
    rows = [
        (probe["position"], one["name"], key, probe)
        for one in settings
        for key, probe in ((one["probes"] or {}).get("inside") or {}).items()
    ]
    if not rows:
        return
    yield "\n## Inside the models\n"
    yield "First seed, entropies in nats; compare only at the same position. By layer: the embeddings first.\n"
    yield from table(
        ["position", "setting", "arm / mode", "logit lens by layer", "activation by layer", "labels", "margin"],
        (
            [
                position,
                name,
                key,
                " ".join(f"{layer['logit_lens']['mean']:.2f}" for layer in probe["layers"]),
                " ".join(f"{layer['magnitude']['mean']:.2f}" for layer in probe["layers"]),
                f"{probe['label_entropy']['mean']:.2f}",
                f"{probe['margin']['mean']:.2f}",
            ]
            for position, name, key, probe in sorted(rows, key=lambda row: row[0])
        ),
    )


def table(heads: Sequence[str], rows: Any) -> Iterator[str]:
    """A table in Markdown."""
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    yield from (f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


def interval(figure: Mapping[str, Any] | None) -> str:
    """A mean in percent with its interval over rows and seeds."""
    if not figure or figure["mean"] is None:
        return "–"
    ends = figure["ci95"]
    return f"{100 * figure['mean']:.1f}" + (f" ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if ends else "")


def percent(figure: Mapping[str, Any] | None) -> str:
    """A mean in percent."""
    return share((figure or {}).get("mean"))


def chance(value: float | None) -> str:
    """A p value."""
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def share(value: float | None) -> str:
    """A share in percent."""
    return "–" if value is None else f"{100 * value:.1f}"


def number(figure: Mapping[str, Any] | None, places: int) -> str:
    """A mean as it is."""
    value = (figure or {}).get("mean")
    return "–" if value is None else f"{value:.{places}f}"


if __name__ == "__main__":
    main()
