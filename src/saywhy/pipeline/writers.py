"""Who writes the reasonings of a run: each teacher that the config names, with what its texts depend on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from saywhy import journal, reasoner
from saywhy.config import Api, Config, Sampling
from saywhy.data import Data
from saywhy.journal import Journal
from saywhy.lm.load import base_hash
from saywhy.progress import say
from saywhy.prompts import merge_instruction, reasoner_instruction, row_question
from saywhy.records import RequestError
from saywhy.teachers import Question, Teacher, Writer, given
from saywhy.teachers.api import address_of, base_url, open_api
from saywhy.teachers.cost import estimate

# Given its name, a teacher that merges writes under this one, and is told what others wrote.
MERGER = "merge:{}"


def writers(
    config: Config, data: Data, explainer: tuple[Path, str] | None, base: tuple[str, str] | None
) -> list[Writer]:
    """Give every teacher of the config; `explainer` is the reasoner's folder and stamp, `base` a base and its hash."""
    found = []
    instruction = reasoner_instruction(config.reasonings.label_shown)
    for name in config.reasonings.teacher:
        if name == "reasoner" and explainer is not None:
            folder, stamp = explainer
            begin = partial(reasoner.teacher, folder, *_drawn(config))
            found.append(_local(config, name, {"reasoner": stamp}, instruction, begin))
        elif name in ("column", "file"):
            texts = data.reasonings if name == "column" else data.file_reasonings
            found.append(Writer(name, {}, partial(given, texts), given=True))
        else:
            found.append(asked_as_it_is(config, name, name, base, instruction))
    return found


def merger(config: Config, base: tuple[str, str] | None) -> Writer | None:
    """Give the teacher that makes one reasoning of several, where the config names one."""
    name = config.reasonings.merge
    instruction = merge_instruction(config.reasonings.label_shown)
    return None if name is None else asked_as_it_is(config, name, MERGER.format(name), base, instruction)


def reckoned(config: Config, data: Data) -> list[str]:
    """Say what asking each server for the first candidates of all rows will take, before anything is asked."""
    settings = config.reasonings
    lines = []
    tries = settings.max_tries
    again = "" if tries == 1 else f"; rows of which none is kept are asked again, which at most makes it {tries} times"
    if settings.top_up is not None:
        again += "; what tops up rare classes comes on top"
    merging = [(settings.merge, ", merging", " and the reasonings it is shown")] if settings.merge else []
    for name, what, beside in [*((name, "", "") for name in settings.teacher), *merging]:
        if (api := api_of(config, name)) is not None:
            questions = (
                Question(row.id, row_question(data.task, row, settings.label_shown), index)
                for row in data.train
                for index in range(1 if what and settings.brought else settings.candidates)
            )
            instruction = (merge_instruction if what else reasoner_instruction)(settings.label_shown)
            told = estimate(questions, instruction, settings.sampling, api.price)
            lines.append(f"{name}{what}: {told.sentence(beside)}{again}.")
    return lines


def announce(estimates: Sequence[str], book: Journal) -> None:
    """Say what asking will take, and where answers are kept already that these are not asked for."""
    for line in estimates:
        say(line)
    if estimates and journal.spent(book):
        say("What was answered before is not asked again.")


def servers(config: Config) -> list[tuple[str, Api]]:
    """Give every server that is to be asked, with the place of its settings."""
    names = sorted({*config.reasonings.teacher, config.reasonings.merge or ""})
    return [(_place(name), api) for name in names if (api := api_of(config, name)) is not None]


def refuse_unready(config: Config) -> None:
    """Raise RequestError where a server that is to be asked has no address, model or key, before others work."""
    for place, api in servers(config):
        address_of(api, place)


def _place(name: str) -> str:
    return "reasonings.api" if name == "api" else f"reasonings.named.{name}.api"


def asked_as_it_is(config: Config, name: str, title: str, base: tuple[str, str] | None, instruction: str) -> Writer:
    """Give a teacher that was not taught to write reasonings: a base, a model of one's own, a server."""
    settings = config.reasonings
    own, api = settings.named.get(name), api_of(config, name)
    if api is not None:
        identity = {"base_url": base_url(api), "model": api.model, "instruction": instruction}
        drawn = settings.sampling.model_dump()
        begin = partial(open_api, api, settings.sampling, config.seed, instruction, _place(name))
        told = {**identity, "sampling": drawn, "seed": config.seed}
        return Writer(title, told, begin, at_once=api.concurrency, remote=True, sampling=drawn)
    if own is not None and own.local is not None:
        base = (own.local, base_hash(own.local))
    if base is None:
        raise RequestError(f"reasonings.teacher: {name} needs a base")
    model, identity_of_base = base
    begin = partial(reasoner.base_as_teacher, model, instruction, *_drawn(config), config.trust_remote_code)
    return _local(config, title, {"base": identity_of_base}, instruction, begin)


def api_of(config: Config, name: str) -> Api | None:
    """Give the server behind a teacher's name, None where it is none."""
    if name == "api":
        return config.reasonings.api
    own = config.reasonings.named.get(name)
    return None if own is None else own.api


def _drawn(config: Config) -> tuple[Sampling, int, int]:
    return config.reasonings.sampling, config.seed, config.evaluate.max_tokens_in_flight


def _local(config: Config, name: str, model: dict[str, str], instruction: str, begin: Callable[[], Teacher]) -> Writer:
    drawn = config.reasonings.sampling.model_dump()
    identity = {**model, "instruction": instruction, "sampling": drawn, "seed": config.seed}
    return Writer(name, identity, begin, sampling=drawn)
