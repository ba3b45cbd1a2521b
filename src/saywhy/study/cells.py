"""The cells of a study put in order: which settings there are, and the run of every setting and seed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from saywhy.config import Cell, Config, dump

# What a table calls a setting that changes nothing.
AS_WRITTEN = "as written"
# Characters of a folder's name, beyond which its end becomes a hash.
LONGEST_NAME = 80
LONGEST_VALUE = 40


@dataclass(frozen=True)
class CellRun:
    """One run: its seed, its config, and the folder that it is in; `why` says why it failed, "" where it did not."""

    seed: int
    config: Config
    folder: Path
    why: str = ""


@dataclass(frozen=True)
class Setting:
    """Runs that differ only in their seed. `values` are what its study changed, the seed left out."""

    name: str
    values: Mapping[str, Any]
    runs: tuple[CellRun, ...]


@dataclass(frozen=True)
class Part:
    """One question of a study: the keys that it varies, its settings by their place among all, and each one's values.

    A setting may belong to several parts, under other values in each.
    """

    name: str
    axes: tuple[str, ...]
    settings: tuple[int, ...] = ()
    values: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Plan:
    """All settings of a study, and the parts that they belong to."""

    settings: tuple[Setting, ...]
    parts: tuple[Part, ...]

    @property
    def runs(self) -> list[CellRun]:
        """Every run once: all settings with their first seed, then with their second, and so on."""
        rounds = zip_longest(*(setting.runs for setting in self.settings))
        return [run for one in rounds for run in one if run is not None]


@dataclass
class _Gathering:
    """A setting while its cells are still being read."""

    part: str
    values: dict[str, Any]
    runs: dict[int, Config] = field(default_factory=dict)


def plan(cells: Sequence[Cell], folder: Path) -> Plan:
    """Put cells that are the same but for their seed into one setting, and give each run a folder below `folder`."""
    found: dict[str, _Gathering] = {}
    parts: dict[str, dict[str, dict[str, Any]]] = {}
    varied = {name: _varied(name, [cell.values for cell in cells if cell.part == name]) for name in _parts_of(cells)}
    for cell in cells:
        alike = but_for_seed(cell.config)
        values = {key: value for key, value in cell.values.items() if key in varied[cell.part]}
        if alike not in found:
            found[alike] = _Gathering(cell.part, values)
        found[alike].runs.setdefault(cell.config.seed, cell.config)
        parts.setdefault(cell.part, {}).setdefault(alike, values)
    settings: list[Setting] = []
    for one in found.values():
        settings.append(_setting(one, folder, {other.name for other in settings}))
    order = list(found)
    return Plan(tuple(settings), tuple(_part(name, of_part, order) for name, of_part in parts.items()))


def but_for_seed(config: Config) -> str:
    """Write a config so that it equals that of every run of the same setting, whatever their seeds."""
    return dump(config.model_copy(update={"seed": 0}))


def lines(planned: Plan) -> list[str]:
    """Say what a study will do, before it does it."""
    runs, settings = len(planned.runs), len(planned.settings)
    told = [f"study: {runs} runs of {settings} settings; what two of them share is done once"]
    for part in planned.parts:
        told.append(f"  {part.name}: " + "; ".join(named(values) for values in part.values))
    return told


def _parts_of(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.part for cell in cells))


def _varied(part: str, values: Sequence[Mapping[str, Any]]) -> set[str]:
    """The keys that tell the settings of a part apart: not the seed, nor what they all have, but a variant's name."""
    several = {key for key in values[0] if any(other[key] != values[0][key] for other in values)}
    found = (several - {"seed"}) | ({part} & values[0].keys())
    return found or values[0].keys() - {"seed"}


def _setting(one: _Gathering, folder: Path, taken: Collection[str]) -> Setting:
    """Name a setting by what it changes, and by its part too where one of another part is named so."""
    name = named(one.values)
    while name in taken:
        name = f"{one.part}: {name}"
    runs = tuple(CellRun(seed, config, folder / _slug(name, one.values, seed)) for seed, config in one.runs.items())
    return Setting(name, one.values, runs)


def _part(name: str, of_part: Mapping[str, Mapping[str, Any]], order: Sequence[str]) -> Part:
    axes = dict.fromkeys(key for values in of_part.values() for key in values if key != name)
    return Part(name, tuple(axes), tuple(order.index(one) for one in of_part), tuple(of_part.values()))


def named(values: Mapping[str, Any]) -> str:
    """Say in short what a setting changes."""
    return ", ".join(f"{key}={_written(value)}" for key, value in values.items()) or AS_WRITTEN


def _written(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def _slug(name: str, values: Mapping[str, Any], seed: int) -> str:
    """Name a folder by what its run changes; what a name cannot hold or is too long for is told apart by a hash."""
    plain = "" if name == AS_WRITTEN else name.replace(", ", "_").replace(": ", "_")
    short = re.sub(r"[^\w.=+()-]", "-", plain)[:LONGEST_NAME]
    whole = json.dumps([name, values], sort_keys=True, ensure_ascii=False)
    mark = "" if short == plain else f"_{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    return "_".join(part for part in (f"{short}{mark}", f"seed={seed}") if part)
