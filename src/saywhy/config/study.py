"""Settings of `saywhy study`: which cells there are, every one of them a whole run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import Field, field_validator, model_validator

from saywhy.config.basis import Items, Settings

SEED = "seed"
SEEDS = (0, 1, 2, 3, 4)
# The name of the one part of a study that names none.
GRID = "grid"


class Study(Settings):
    """Settings to vary, in all combinations."""

    grid: dict[str, Items[Any]] = Field(
        default={}, description="a key that --set knows to its values; without seed there are five, 0 to 4"
    )
    parts: dict[str, dict[str, Any]] = Field(
        default={},
        description="questions, each with keys and their values, or names and the keys that each sets; every "
        "combination of them and of the grid is a run, in which what a name sets wins",
    )

    @field_validator("grid")
    @classmethod
    def _check_grid(cls, grid: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        if not all(grid.values()):
            raise ValueError("should hold at least one key, each with a list of values")
        return grid

    @field_validator("parts")
    @classmethod
    def _check_parts(cls, parts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, part in parts.items():
            if not part:
                raise ValueError(f"{name}: should hold a key with a list of values, or a name with the keys it sets")
            for key, value in part.items():
                if not (isinstance(value, dict) or (isinstance(value, list) and value)):
                    raise ValueError(f"{name}: {key} should be a list of values, or a mapping of keys, not {value!r}")
        return parts

    @model_validator(mode="after")
    def _check(self) -> Study:
        if not self.grid and not self.parts:
            raise ValueError("should hold a grid or parts: keys, each with a list of values")
        for name, part in self.parts.items():
            if twice := sorted(part.keys() & self.grid.keys()):
                raise ValueError(f"parts.{name}: {twice[0]} stands in grid too, so that every part has it")
        return self


@dataclass(frozen=True)
class Combination:
    """What one cell changes: `values` are what tables call it by, `sets` the keys with what each becomes.

    They are the same but for a named variant, which stands in `values` under the name of its part.
    """

    part: str
    values: Mapping[str, Any]
    sets: Mapping[str, Any]


def combinations(study: Study) -> Iterator[Combination]:
    """Give every combination, part by part; those that differ only in their seed follow each other."""
    seeds = {} if any(SEED in part for part in study.parts.values()) else {SEED: study.grid.get(SEED, SEEDS)}
    shared = {key: values for key, values in study.grid.items() if key != SEED}
    for name, part in (study.parts or {GRID: {}}).items():
        axes = {**shared, **{key: value for key, value in part.items() if isinstance(value, list)}}
        variants = {key: value for key, value in part.items() if isinstance(value, dict)}
        if SEED in axes:
            axes[SEED] = axes.pop(SEED)
        axes |= seeds
        for variant in variants or {"": {}}:
            for values in product(*axes.values()):
                chosen = dict(zip(axes, values, strict=True))
                called = {name: variant, **chosen} if variant else chosen
                yield Combination(name, called, {**chosen, **variants.get(variant, {})})
