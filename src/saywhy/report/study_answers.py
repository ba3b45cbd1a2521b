"""What the page of a study shows of single answers: which systems its explorer holds, and their saved rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saywhy import store
from saywhy.report.explorer import Explorer, explore
from saywhy.report.story import System
from saywhy.report.study_story import Finding, short

SYSTEMS = 16  # systems in the explorer, beyond which one could not find one's way

Predictions = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]


def shown(document: Mapping[str, Any], finding: Finding | None) -> list[tuple[Mapping[str, Any], str]]:
    """The settings and systems that the explorer holds, of one task.

    First the headline's pair, then what else its setting has, then the same pair in the other settings.
    """
    by_id = {one["id"]: one for one in document["settings"]}
    done = [one for one in document["settings"] if one["systems"]]
    if not done:
        return []
    home = by_id[finding.a.setting] if finding else done[0]
    pair = [finding.a.system, finding.b.system] if finding else []
    keys = [*pair, *(key for key, each in home["systems"].items() if each["kind"] != "floor" and key not in pair)]
    found = [(home, key) for key in keys]
    alike = [one for one in done if one is not home and one["task"] == home["task"]]
    found += [(one, key) for key in keys[: max(len(pair), 1)] for one in alike if key in one["systems"]]
    return [(one, key) for one, key in found if one["systems"][key]["kind"] != "floor"][:SYSTEMS]


def predictions_of(
    document: Mapping[str, Any], finding: Finding | None, folder: Path
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The saved answers of the first seed, for what the explorer holds; `folder` is where relative folders begin.

    What a run did not save, or no longer has, is left out.
    """
    found = {}
    for setting, key in shown(document, finding):
        name = key.replace("/", "-")
        path = folder / setting["folders"][0] / "predictions" / f"{name}-test.parquet"
        if path.exists():
            found[(setting["id"], name)] = store.read_table(path).to_pylist()
    return found


def explored(document: Mapping[str, Any], finding: Finding | None, predictions: Predictions) -> Explorer | None:
    """The explorer over settings; None without predictions."""
    held = shown(document, finding)
    if not held:
        return None
    known, rows = [], {}
    for setting, key in held:
        arm, mode = key.split("/")
        # The explorer looks predictions up by arm and mode, which several settings share.
        own = f"{setting['id']} {arm}"
        tone = "base" if setting["systems"][key]["kind"] == "label_only" else "reasoned"
        name = key if len({one["id"] for one, _ in held}) == 1 else f"{short(setting['name'])} · {key}"
        known.append(System(name, own, mode, tone, None, None, None, False))
        rows[f"{own}-{mode}"] = predictions.get((setting["id"], f"{arm}-{mode}")) or ()
    return explore(held[0][0]["task"], known, known[:2], rows)
