"""The config: one YAML file, read strictly into frozen settings. `settings` has every default and its source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from saywhy.config import written
from saywhy.config.basis import Settings, did_you_mean
from saywhy.config.labelling import PROMPTS, Labelling, LabelSampling
from saywhy.config.places import FILE_SUFFIXES, Source, locate, locate_base, near_names
from saywhy.config.reasonings import (
    CHECKS,
    GIVEN,
    TEACHERS,
    Api,
    NamedTeacher,
    Price,
    Reasonings,
    ReasoningsFile,
    Sampling,
)
from saywhy.config.settings import (
    LEARNING_RATE,
    LORA_LEARNING_RATE,
    SCRATCH_LEARNING_RATE,
    Arm,
    Classifier,
    Config,
    DataConfig,
    Evaluate,
    FromScratch,
    Lora,
    Reasoner,
    Scratch,
    TaskConfig,
    Train,
    WorkedCases,
    label_fault,
)
from saywhy.config.study import Combination, Study, combinations
from saywhy.config.written import KeyPath, Places, dotted
from saywhy.records import RequestError

__all__ = [
    "CHECKS",
    "FILE_SUFFIXES",
    "GIVEN",
    "PROMPTS",
    "TEACHERS",
    "Api",
    "Arm",
    "Cell",
    "Classifier",
    "Config",
    "DataConfig",
    "Evaluate",
    "FromScratch",
    "LabelSampling",
    "Labelling",
    "Lora",
    "NamedTeacher",
    "Price",
    "Reasoner",
    "Reasonings",
    "ReasoningsFile",
    "Sampling",
    "Scratch",
    "Source",
    "Study",
    "TaskConfig",
    "Train",
    "WorkedCases",
    "combinations",
    "commented_example",
    "default_rate",
    "did_you_mean",
    "dump",
    "label_fault",
    "load",
    "load_study",
    "locate",
    "near_names",
    "needed_base",
    "parse",
    "resolve_path",
]

_SOURCES: tuple[KeyPath, ...] = (
    ("data", "train"), ("data", "dev"), ("data", "test"), ("reasoner", "worked_cases", "data"),
    ("reasonings", "file", "path"), ("label", "data"), ("label", "examples"),
)  # fmt: skip
_BASES: tuple[KeyPath, ...] = (("base",), ("reasoner", "base"), ("classifier", "base"), ("evaluate", "encoder"))
_KINDS = {
    "string_type": "text", "int_type": "a whole number", "float_type": "a number", "bool_type": "true or false",
    "tuple_type": "a list", "dict_type": "a mapping",
}  # fmt: skip


def load(path: Path, sets: Sequence[str] = ()) -> Config:
    """Read a config file; `sets` are replacements such as "data.rows=64", as `--set` gives them."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise RequestError(f"{path}: there is no such file{near_names(path)}; `saywhy init` writes one") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from error
    return parse(text, path, sets)


def parse(text: str, where: Path, sets: Sequence[str] = ()) -> Config:
    """Read a config from its text; `where` is the file it stands in, whether that exists or not.

    Paths come out absolute, bases and learning rates filled in, arms as `Arm` with all of their training settings.
    """
    raw, places = _read(text, where, sets)
    folder = where.parent.resolve()
    config = _build(raw, places, folder)
    if config.study is not None:
        alone = {key: value for key, value in raw.items() if key != "study"}
        for path, key, value in _varied(config.study):
            source = f"{_place(path, places)}: {dotted(path)}"
            _build(written.put(alone, tuple(key.split(".")), value, source), {(): source}, folder)
    return config


@dataclass(frozen=True)
class Cell:
    """One run of a study: the part of the study it belongs to, what its tables call it by, and its config."""

    part: str
    values: Mapping[str, Any]
    config: Config


def load_study(path: Path, sets: Sequence[str] = ()) -> tuple[Config, list[Cell]]:
    """Read a config with a study and give every cell of it, each with a config of its own.

    Raises RequestError where the file has no study, or a combination of its values is none that could run.
    """
    config = load(path, sets)
    if config.study is None:
        raise RequestError(f"{path}: study: there is none; write one, such as study: {{grid: {{seed: [0, 1, 2]}}}}")
    raw, _ = _read(path.read_text(encoding="utf-8-sig"), path, sets)
    alone = {key: value for key, value in raw.items() if key != "study"}
    return config, [_cell(alone, one, path.parent.resolve()) for one in combinations(config.study)]


def _cell(alone: dict[str, Any], one: Combination, folder: Path) -> Cell:
    named = ", ".join(f"{key}={value}" for key, value in one.values.items())
    source = f"study.parts.{one.part}: {named}"
    raw = alone
    for key, value in one.sets.items():
        raw = written.put(raw, tuple(key.split(".")), value, source)
    return Cell(one.part, one.values, _build(raw, {(): source}, folder))


def _varied(study: Study) -> Iterator[tuple[KeyPath, str, Any]]:
    """Give every value that a study names: where it stands, the key that it is for, and the value."""
    for key, values in study.grid.items():
        yield from ((("study", "grid", key, at), key, value) for at, value in enumerate(values))
    for name, part in study.parts.items():
        for key, given in part.items():
            path = ("study", "parts", name, key)
            if isinstance(given, list):
                yield from (((*path, at), key, value) for at, value in enumerate(given))


def _read(text: str, where: Path, sets: Sequence[str]) -> tuple[dict[str, Any], Places]:
    """Read the plain values of a config, with what `--set` replaces."""
    raw, places = written.read(text, str(where))
    if not isinstance(raw, dict):
        raise RequestError(f"{where}: a config is a mapping of task, data and more; `saywhy init` writes one")
    for item in sets:
        raw = written.set_one(raw, places, item)
    return raw, places


def dump(config: Config) -> str:
    """Write a config as YAML with every default; `parse` gives back an equal one."""
    plain = config.model_dump(mode="json")
    common = plain["classifier"]["train"]
    for arm in plain["classifier"]["arms"]:
        # What an arm shares stays in one place, so that `--set classifier.train.…` still reaches it.
        arm["train"] = {key: value for key, value in arm["train"].items() if value != common[key]}
    return written.write(plain)


def resolve_path(config: Config, path: str) -> Path:
    """Give a path as the config means it: relative to the config file's folder."""
    return (config.folder / Path(path).expanduser()).resolve()


def needed_base(config: Config, stage: str) -> str | FromScratch:
    """Give the base that `reasoner` or `classifier` is trained from; RequestError where none is named."""
    base = config.reasoner.base if stage == "reasoner" else config.classifier.base
    if base is None:
        raise RequestError(f"base: there is nothing to train the {stage} from; name a hub id, a folder or scratch")
    return base


def default_rate(base: object, lora: object) -> float:
    """Give the learning rate of a training that was told none; base and lora as written or as settings."""
    if base == "scratch" or isinstance(base, dict | FromScratch):
        return SCRATCH_LEARNING_RATE
    return LEARNING_RATE if lora is None else LORA_LEARNING_RATE


def commented_example() -> str:
    """Give the config that `saywhy init` writes."""
    return resources.files("saywhy").joinpath("config.yaml").read_text(encoding="utf-8")


def _build(raw: Mapping[str, Any], places: Places, folder: Path) -> Config:
    try:
        config = Config.model_validate(_filled(raw, places, folder))
    except ValidationError as error:
        lines = [_sentence(details, places) for details in error.errors()]
        raise RequestError("\n".join(dict.fromkeys(lines))) from error
    config = _with_bases_and_arms(config)
    _check_adapters(config, places)
    if config.evaluate.zero_shot and isinstance(config.classifier.base, FromScratch):
        raise RequestError(
            f"{_place(('evaluate', 'zero_shot'), places)}: evaluate.zero_shot: a base from scratch knows nothing "
            "before it is trained; leave it out, or name a hub id or a folder as base"
        )
    config._folder = folder
    return config


def _with_bases_and_arms(config: Config) -> Config:
    """Hand the common base to both stages and the common training settings to every arm."""
    reasoner, classifier = config.reasoner, config.classifier
    arms = tuple(arm.model_copy(update={"train": _merged(classifier.train, arm.train)}) for arm in classifier.arms)
    return config.model_copy(
        update={
            "reasoner": reasoner.model_copy(update={"base": reasoner.base or config.base}),
            "classifier": classifier.model_copy(update={"base": classifier.base or config.base, "arms": arms}),
        }
    )


def _check_adapters(config: Config, places: Places) -> None:
    """Refuse 4 bits without an adapter or with float32, and adapters to be kept where none is trained."""
    arms = config.classifier.arms
    trainings: list[tuple[KeyPath, Train]] = [(("reasoner", "train"), config.reasoner.train)]
    trainings.append((("classifier", "train"), config.classifier.train))
    trainings += [(("classifier", "arms", at, "train"), arm.train) for at, arm in enumerate(arms)]
    for path, train in trainings:
        where = f"{_place((*path, 'bits'), places)}: {dotted((*path, 'bits'))}: 4"
        if train.bits is not None and train.lora is None:
            raise RequestError(f"{where}: weights in 4 bits cannot be trained; set lora too, such as lora: {{}}")
        if train.bits is not None and train.precision == "float32":
            raise RequestError(f"{where}: a base in 4 bits computes in bf16; set precision to bf16 or auto")
    if config.classifier.save == "adapter" and not any(arm.train.lora for arm in arms):
        raise RequestError(
            f"{_place(('classifier', 'save'), places)}: classifier.save: adapter: no arm is trained with one; "
            "set classifier.train.lora, such as lora: {}, or save: merged"
        )


def _filled(raw: Mapping[str, Any], places: Places, folder: Path) -> dict[str, Any]:
    """Fill in what depends on the folder or on other keys: paths, learning rates, the teacher."""
    filled = dict(raw)
    named = _at(filled, ("reasonings", "named"))
    cases = _at(filled, ("reasoner", "worked_cases"))
    sources = [*_SOURCES, *(("reasoner", "worked_cases", at, "data") for at in _places_in(cases))]
    own = [("reasonings", "named", name, "local") for name in (named if isinstance(named, dict) else ())]
    for path in (*sources, *_BASES, *own):
        value = _at(filled, path)
        if isinstance(value, str) and value.strip():
            try:
                found = locate_base(value, folder) if path not in sources else locate(value, folder).absolute()
            except RequestError as error:
                raise RequestError(f"{_place(path, places)}: {dotted(path)}: {error}") from error
            filled = written.put(filled, path, found, "")
    for stage in ("reasoner", "classifier"):
        section, train = _at(filled, (stage,)), _at(filled, (stage, "train"))
        if not isinstance(section, dict | None) or not isinstance(train, dict | None):
            continue
        if (train or {}).get("learning_rate") is None:
            base = _at(filled, (stage, "base")) or filled.get("base")
            rate = default_rate(base, _at(filled, (stage, "train", "lora")))
            filled = written.put(filled, (stage, "train", "learning_rate"), rate, "")
            for at, own in _own_lora(_at(filled, (stage, "arms"))):
                path = (stage, "arms", at, "train", "learning_rate")
                filled = written.put(filled, path, default_rate(base, own), "")
    reasonings = _at(filled, ("reasonings",))
    if (reasonings is None or isinstance(reasonings, dict)) and _at(filled, ("reasonings", "teacher")) is None:
        teacher = [] if _at(filled, ("reasoner", "worked_cases")) is None else ["reasoner"]
        filled = written.put(filled, ("reasonings", "teacher"), teacher, "")
    return filled


def _own_lora(arms: Any) -> Iterator[tuple[int, Any]]:
    """Give the arms, by number, that say for themselves whether they have an adapter, but not how fast they learn."""
    for at, arm in enumerate(arms if isinstance(arms, list) else ()):
        train = arm.get("train") if isinstance(arm, dict) else None
        if isinstance(train, dict) and "lora" in train and train.get("learning_rate") is None:
            yield at, train["lora"]


def _at(raw: Mapping[str, Any], path: KeyPath) -> Any:
    node: Any = raw
    for key in path:
        if isinstance(node, list) and key in _places_in(node):
            node = node[int(key)]
        else:
            node = node.get(key) if isinstance(node, dict) else None
    return node


def _places_in(node: Any) -> range:
    """Give the places of a list, none for anything else."""
    return range(len(node) if isinstance(node, list) else 0)


def _merged(train: Train, differing: Train) -> Train:
    changes = {key: getattr(differing, key) for key in differing.model_fields_set}
    return Train.model_validate({**train.model_dump(), **changes})


def _keys_at(path: KeyPath) -> list[str]:
    """List the keys that the settings at a path have."""
    settings: type[Settings] = Config
    for key in path:
        # Names that the user gives, such as those of `named`, are no keys.
        if isinstance(key, str) and key in settings.model_fields:
            settings = next(_settings_in(settings.model_fields[key].annotation))
    return list(settings.model_fields)


def _settings_in(annotation: Any) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for inner in get_args(annotation):
        yield from _settings_in(inner)


def _place(path: KeyPath, places: Places) -> str:
    """Say where a key stands, or the nearest key above it that was written."""
    while path not in places and path:
        path = path[:-1]
    return places.get(path, "config")


def _sentence(details: ErrorDetails, places: Places) -> str:
    """Make one line of one validation error: the place, the key, what is wrong and what would be right."""
    path = tuple(key for key in details["loc"] if not str(key).startswith("("))
    context = details.get("ctx", {})
    kind, value = details["type"], details["input"]
    if kind == "extra_forbidden":
        names = _keys_at(path[:-1])
        what = "unknown key" + (did_you_mean(str(path[-1]), names) or f"; there are {', '.join(names)}")
    elif kind == "model_type":
        what = f"should be a mapping of {', '.join(_keys_at(path))}, not {value!r}"
    elif kind == "missing":
        what = "is missing"
    elif kind in _KINDS:
        what = f"should be {_KINDS[kind]}, not {value!r}" + ("; put it in quotes" if kind == "string_type" else "")
    elif kind == "literal_error":
        names = str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        what = f"should be one of {', '.join(names)}, not {value!r}{did_you_mean(str(value), names)}"
    elif kind == "value_error":
        what = str(context["error"])
    elif kind == "string_pattern_mismatch":
        what = f"should not be {value!r}: it is empty or holds a character that is not allowed"
    else:
        what = f"{details['msg'].replace('Input should', 'should')}, not {value!r}"
    key = dotted(path)
    return f"{_place(path, places)}: {key}{': ' if key else ''}{what}"
