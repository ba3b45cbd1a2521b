"""The page of a study, and of finished runs set side by side: a pure function of study.json and saved predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saywhy import store
from saywhy.records import RequestError
from saywhy.report import page, study_answers, study_probes, study_story, trust
from saywhy.report.study_answers import Predictions
from saywhy.report.study_parts import TOP_UP, part_view, rarest, systems_of, value_of
from saywhy.report.study_story import Finding

NEEDED = ("name", "kind", "metric", "parts", "settings", "comparisons", "headline")
RARE_SETTINGS = 12  # settings whose samples of the rarest class are shown


def render_study(document: Mapping[str, Any], predictions: Predictions) -> str:
    """The page of a study as HTML.

    `document` is the content of study.json, `predictions` the rows of predictions/<arm>-<mode>-test.parquet of the
    first seed under the key (setting id, "<arm>-<mode>"). The same input gives the same bytes.
    """
    known = study_story.findings(document)
    headline = study_story.headline(document, known)
    metric = headline.finding.metric if headline.finding else "accuracy"
    system = headline.finding.a.system if headline.finding else None
    palette = systems_of(document["settings"])
    done = [one for one in document["settings"] if one["systems"]]
    return page.render(
        "study.html",
        document=document,
        headline=headline,
        metric=metric,
        settings=done,
        parts=[
            part_view(at, part, document, known, metric, system, palette) for at, part in enumerate(document["parts"])
        ],
        tasks=_tasks(done),
        ordinal=[one for one in done if one["task"]["ordinal"]],
        scales=_scales(document),
        comparisons=_comparisons(known, metric),
        rare=_rare(done),
        topped=_topped(document),
        unequal=_unequal(done),
        failed=[(one, cell) for one in document["settings"] for cell in one.get("failed") or ()],
        limits=study_story.limits(document, known),
        story=study_story,
        probed=study_probes.probed(done),
        probe_setting=trust.SETTING,
        explorer=study_answers.explored(document, headline.finding, predictions),
    )


def write_study(folder: Path) -> Path:
    """Write report.html into a study's folder from what stands there and return its path.

    RequestError where study.json is missing or lacks what the page needs.
    """
    path = folder / "study.json"
    if not path.exists():
        raise RequestError(f"{path}: missing. The report shows what `saywhy study` gathered: run that first.")
    document = store.read_json(path)
    lacking = [key for key in NEEDED if key not in document]
    if lacking:
        raise RequestError(f"{path}: lacks {', '.join(lacking)}. Write it again with `saywhy study`.")
    target = folder / "report.html"
    store.write_text(target, render_study(document, study_predictions(document, folder)))
    return target


def study_predictions(document: Mapping[str, Any], folder: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The saved answers that the page of a study shows, as `render_study` takes them.

    `folder` is where the relative folders of the document begin.
    """
    headline = study_story.headline(document, study_story.findings(document))
    return study_answers.predictions_of(document, headline.finding, folder)


def _tasks(settings: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """The settings by their task, which several scales of one data set, or several data sets, make different."""
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for one in settings:
        found.setdefault((one["task"]["name"], *one["task"]["labels"]), []).append(one)
    return [(some[0]["task"], some) for some in found.values()]


def _comparisons(known: Sequence[Finding], metric: str) -> list[tuple[str, list[Finding]]]:
    """The comparisons by metric, that of the headline first; what two parts share stands there once."""
    found: dict[str, dict[tuple[str, ...], Finding]] = {metric: {}}
    for one in known:
        key = (one.a.setting, one.a.system, one.b.setting, one.b.system)
        found.setdefault(one.metric, {}).setdefault(key, one)
    return [(name, list(rows.values())) for name, rows in found.items() if rows]


def _rare(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The class with the fewest test rows of each task: how every setting finds it, and what is written for it."""
    found = []
    for task, some in _tasks(settings):
        label = rarest(some)
        if label is None:
            continue
        rows = [
            (one, key, each["per_class"][label])
            for one in some
            for key, each in one["systems"].items()
            if (each.get("per_class") or {}).get(label)
        ]
        samples = [(one, one["reasonings"]["samples"]) for one in some if (one.get("reasonings") or {}).get("samples")]
        found.append({
            "task": task, "label": label, "support": rows[0][2]["support"], "rows": rows,
            "samples": samples[:RARE_SETTINGS], "all_samples": len(samples),
        })  # fmt: skip
    return found


def _topped(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every class before and after the rare ones were topped up, for each model that both settings have."""
    by_id = {one["id"]: one for one in document["settings"]}
    found = []
    for part in document["parts"]:
        settings = [by_id[one] for one in part["settings"] if by_id[one]["systems"]]
        if TOP_UP not in part["axes"] or len(settings) < 2 or settings[0]["id"] != part["settings"][0]:
            continue
        before = settings[0]
        for after in settings[1:]:
            rows = [
                (key, label, told, each["per_class"][label])
                for key, each in after["systems"].items()
                if each["kind"] != "floor" and each.get("per_class") and key in before["systems"]
                for label, told in (before["systems"][key].get("per_class") or {}).items()
                if label in each["per_class"]
            ]
            if rows:
                found.append({"before": before, "after": after, "rows": rows})
    return found


def _scales(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts whose settings are scales of one data set: what each system reaches on every one."""
    by_id = {one["id"]: one for one in document["settings"]}
    found = []
    for part in document["parts"]:
        if "task.label" not in part["axes"]:
            continue
        settings = [
            (value_of(part, at, by_id[one], "task.label"), by_id[one])
            for at, one in enumerate(part["settings"])
            if by_id[one]["systems"]
        ]
        keys = list(dict.fromkeys(key for _, one in settings for key in one["systems"]))
        if settings and all(one["task"]["ordinal"] for _, one in settings):
            found.append({"part": part, "settings": settings, "keys": keys})
    return found


def _unequal(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings whose models did not take the same number of steps over the same number of rows."""
    found = []
    for one in settings:
        trained = [each["train"] for each in one["systems"].values() if each.get("train")]
        if len({(facts.get("steps"), facts.get("rows")) for facts in trained}) > 1:
            found.append(one["name"])
    return found
