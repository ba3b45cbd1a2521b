"""What a training has done so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trained:
    """What a training took: `tokens` computed, `target_tokens` and `label_tokens` trained on, `curve` of (step, loss).

    `best_step` is the checkpoint that the dev split chose, `dev` what it scored there, `highest` the best of all, and
    `stale` counts the evaluations since. `ended` says why there were no more steps: "steps" where all that were planned
    are done, "patience" where dev gained nothing for too long. `pack_tokens` is the longest pack that fits into memory,
    `plan` the hash of the rows of every step.
    """

    steps: int = 0
    rows: int = 0
    tokens: int = 0
    target_tokens: int = 0
    label_tokens: int = 0
    seconds: float = 0.0
    curve: tuple[tuple[int, float], ...] = ()
    layout: str = ""
    precision: str = ""
    best_step: int = 0
    dev: float | None = None
    highest: float = 0.0
    stale: int = 0
    ended: str = ""
    pack_tokens: int = 0
    plan: str = ""
