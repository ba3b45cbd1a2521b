"""How a training computes: the layout of its packs and its precision, measured where the settings leave them open."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saywhy import store
from saywhy.config import Train
from saywhy.lm.load import why_no_tree
from saywhy.progress import say
from saywhy.train import ranks
from saywhy.train.deal import Lay
from saywhy.train.loss import Losses, autocast
from saywhy.train.selfcheck import check_packs
from saywhy.train.steps import Example
from saywhy.trees import Branch, pack_alone, pack_rows, pack_trees

LAYOUTS: dict[str, Lay] = {"tree": pack_trees, "rows": pack_rows, "alone": pack_alone}
TIMED_STEPS = 2


def choose(
    model: Any,
    examples: Sequence[Example],
    batch: Sequence[int],
    settings: Train,
    folder: Path,
) -> dict[str, str]:
    """Settle layout and precision once a training: both are timed where the settings leave them open.

    The choice is written down, since a training that goes on, and every process of one, must use the same arithmetic.
    """
    path = folder / "choice.json"

    def written() -> dict[str, str]:
        if not path.exists():
            branches = [branch for row in batch for branch in examples[row].branches]
            store.write_json(path, _measured(model, branches, settings))
        return dict(store.read_json(path))

    return dict(ranks.told(written))


def _measured(model: Any, branches: Sequence[Branch], settings: Train) -> dict[str, str]:
    layouts = ["tree", "rows"] if settings.layout == "auto" else [settings.layout]
    if reason := why_no_tree(model):
        say(f"this model cannot read token trees ({reason}); it is trained row by row")
        layouts = ["alone"]
    precisions = ["float32", "bf16"] if settings.precision == "auto" else [settings.precision]
    layout = _fastest(model, branches, settings, [(layout, precisions[0]) for layout in layouts])[0]
    precision = _fastest(model, branches, settings, [(layout, precision) for precision in precisions])[1]
    if layout == "tree":
        check_packs(model, branches, settings.pack_tokens, lambda: autocast(model, precision), precision)
    return {"layout": layout, "precision": precision}


def _fastest(
    model: Any, branches: Sequence[Branch], settings: Train, ways: Sequence[tuple[str, str]]
) -> tuple[str, str]:
    if len(ways) == 1:
        return ways[0]
    took: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    # The first round warms up and is not counted; the ways take turns, so that a slow moment hits them all.
    for _ in range(1 + TIMED_STEPS):
        for layout, precision in ways:
            began = time.monotonic()
            losses = Losses(model, precision)
            for pack in LAYOUTS[layout](branches, settings.pack_tokens):
                losses(pack).backward()
            took[layout, precision].append(time.monotonic() - began)
    seconds = {way: min(times[1:]) for way, times in took.items()}
    model.zero_grad()
    best = min(seconds, key=lambda way: seconds[way])
    say("measured a step: " + ", ".join(f"{' '.join(way)} {s:.3f} s" for way, s in seconds.items()))
    return best
