"""What every stage has: the run it belongs to, the stamp that says whether it is done, and the base it starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError

from saywhy import checks, classifier, reasoner, store
from saywhy.config import Config, FromScratch, needed_base
from saywhy.data import Data
from saywhy.lm.load import base_hash, make_scratch
from saywhy.progress import say
from saywhy.records import WorkError
from saywhy.teachers import Writer
from saywhy.train.folder import Course, Lesson
from saywhy.train.follow import Trackers

Spread = Callable[[Writer], Writer]


def here(writer: Writer) -> Writer:
    """Let a teacher write in this process."""
    return writer


@dataclass(frozen=True)
class Run:
    """What every stage is given: the config, the run's folder, the data, and checks beside those of the config.

    `spread` may let a teacher write on several machines. `beside` holds other runs whose finished work is taken over
    where it is the same.
    """

    config: Config
    folder: Path
    data: Data
    checks: tuple[checks.Check, ...]
    spread: Spread
    beside: Path | None = None


@dataclass(frozen=True)
class Made:
    """A finished stage: its folder and the stamp that says what it was made from."""

    folder: Path
    stamp: str


def stage(this: Run, name: str, kind: str, settings: object, inputs: object, work: Callable[[Path], None]) -> Made:
    """Do one stage unless its stamp says that it is done."""
    folder, stamp = this.folder / name, store.fingerprint(kind, settings, inputs)
    if store.is_done(folder, stamp):
        # Several stages of one run begin with the base.
        if kind != "base":
            say(f"{name}: done before, not repeated")
    elif (same := _beside(this, name, lambda other: store.is_done(other, stamp))) is not None:
        store.adopt(folder, same, stamp)
        say(f"{name}: the same as in {same.parent.name}, not repeated")
    else:
        store.append(this.folder / "journal.jsonl", {"stage": name, "stamp": stamp, "event": "begun"})
        with store.build(folder, stamp) as partial:
            _do(work, partial)
        store.append(this.folder / "journal.jsonl", {"stage": name, "stamp": stamp, "event": "done"})
    return Made(folder, stamp)


def keep(this: Run, name: str, same: Callable[[Path], bool], write: Callable[[Path], None]) -> Path:
    """Have a file of the run written, unless it stands there as it should be or in another run beside this one."""
    path = this.folder / name
    if same(path):
        return path
    if (other := _beside(this, name, same)) is not None:
        store.adopt_file(path, other)
    else:
        write(path)
    return path


def _beside(this: Run, name: str, same: Callable[[Path], bool]) -> Path | None:
    """Find what another run has under a name, where that is the same; None where no run has it."""
    if this.beside is None:
        return None
    found = sorted(this.beside.glob(f"*/{name}"))
    return next((path for path in found if path != this.folder / name and same(path)), None)


def _do(work: Callable[[Path], None], folder: Path) -> None:
    """Work in a folder; a file that the system refuses to write ends the work, not the program."""
    try:
        work(folder)
    except (OSError, SafetensorError) as problem:
        raise WorkError(
            f"{folder}: a file cannot be written or read ({problem}); free some space and run the same command again: "
            "what was finished before is kept"
        ) from problem


def tracked(this: Run, plan: Course) -> Course:
    """Let the config's trackers follow a training, into a folder of the run that is no stage's."""
    return replace(plan, trackers=Trackers(this.config.trackers, this.config.task.name, this.folder / "trackers"))


def base_of(this: Run, which: str) -> tuple[str, str]:
    """Give the base of `reasoner` or `classifier` and what identifies its content; a scratch base is made once."""
    base = needed_base(this.config, which)
    if not isinstance(base, FromScratch):
        return base, base_hash(base)
    alike = base == this.config.classifier.base
    texts, size = scratch_texts(this.config, this.data), base.scratch
    made = stage(
        this,
        "base" if alike else f"base-{which}",
        "base",
        size.model_dump(),
        {"texts": store.hash_of(texts), "seed": this.config.seed},
        lambda out: make_scratch(out, texts, size, this.config.seed),
    )
    return str(made.folder), made.stamp


def scratch_texts(config: Config, data: Data) -> list[str]:
    """Give everything that training will show a model from scratch; nothing of dev or test."""
    texts = classifier.shown(data.task, data.train)
    brought = {**data.reasonings, **data.file_reasonings}
    texts += [f"Reasoning: {brought[row.id]}\nLabel: {row.label}" for row in data.train if row.id in brought]
    for lesson in worked_lessons(config, data):
        texts += ["".join(lesson.pieces), *("".join(part.text for part in target) for target in lesson.targets)]
    return texts


def worked_lessons(config: Config, data: Data) -> list[Lesson]:
    """Give the worked cases as lessons, none where the config has none."""
    return reasoner.lessons(data.task, data.worked_cases, config.reasonings.label_shown)
