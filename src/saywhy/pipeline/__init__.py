"""The whole method, top to bottom. Only this file knows the order of the stages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from saywhy import checks, classifier, encoder, journal, reasoner, reasonings, report, store
from saywhy.config import Arm, Config, FromScratch, Train, dump, needed_base
from saywhy.data import fingerprint, read
from saywhy.journal import Journal
from saywhy.lm import adapters
from saywhy.lm.load import config_of, tokenizer_of
from saywhy.pipeline.judging import evaluated
from saywhy.pipeline.lessons import Taught, left_out, lesson, planned, short_of_top_up, untrained, weighed
from saywhy.pipeline.measures import measured, measured_by
from saywhy.pipeline.stage import Made, Run, Spread, base_of, here, stage, tracked, worked_lessons
from saywhy.pipeline.writers import announce, merger, reckoned, refuse_unready, servers, writers
from saywhy.progress import say
from saywhy.prompts import MODES
from saywhy.records import RequestError
from saywhy.train.follow import refuse_missing

STAGES = ("reason", "train", "evaluate", "report")
RESUME = ("never", "always", "if_possible")
NEEDS_REASONINGS = tuple(arm for arm in MODES if arm != "label_only")


def run(
    config: Config,
    folder: Path,
    more_checks: Sequence[checks.Check] = (),
    until: str = "report",
    resume: str = "if_possible",
    spread: Spread = here,
    beside: Path | None = None,
) -> Path:
    """Do the whole method, or the stages up to `until`, and leave the run in `folder`; give the last stage's file.

    A stage whose stamp matches is not repeated. `more_checks` stand beside the checks that the config names. `resume`
    says what becomes of the answers that teachers gave before: if_possible uses them, always wants some and asks again
    where a teacher failed, never begins anew. `spread` may let teachers write on several machines. `beside` is a folder
    of runs: a stage that one of them finished from the same settings and inputs is taken over. What the request lacks
    is said before anything is written.
    """
    _refuse_resume(folder, resume)
    arms = _taught(config)
    refuse_early(config, until)
    data = read(config)
    with store.open_run(folder):
        _set_aside(folder, resume)
        store.write_text(folder / "config.yaml", dump(config))
        this = Run(config, folder, data, tuple(more_checks), spread, None if resume == "never" else beside)
        if not (folder / "reasonings" / store.STAMP).exists():
            # A missing key is told now, not after the reasoner has learnt for hours.
            refuse_unready(config)
        # 1 a reasoner learns from worked cases to lead from a question to its answer
        explainer = _reasoner(this)
        # 2 it writes reasonings for the training rows, which are checked and kept or dropped
        written = _reasonings(this, explainer)
        if until == "reason":
            return folder / "reasonings"
        notes = missing(config)
        for note in notes:
            say(note)
        # 3 each arm is trained on the same rows, with or without the kept reasonings
        base = base_of(this, "classifier")
        learnt = lesson(this, written, base, arms)
        for note in [*left_out(learnt.dropped), *untrained(this, learnt)]:
            say(note)
        made = {arm.name: _arm(this, arm, base, learnt) for arm in arms}
        if until == "train":
            return folder
        # 4 all arms answer the same untouched rows, next to the floors
        metrics = evaluated(this, made, written, learnt, notes)
        # 5 the report is drawn from what was measured
        return metrics if until == "evaluate" else report.write(folder)


def _refuse_resume(folder: Path, resume: str) -> None:
    """Refuse a way to resume that there is not, and to go on where nothing was begun."""
    if resume not in RESUME:
        raise RequestError(f"--resume {resume}: there is no such way; name one of {', '.join(RESUME)}")
    book = folder / journal.FILE
    if resume == "always" and not book.exists():
        raise RequestError(f"{book}: there are no answers to go on from; leave --resume always out")


def _set_aside(folder: Path, resume: str) -> None:
    """Let the reasonings be made again where that was asked, and without the answers of before where they should go."""
    if resume != "if_possible":
        store.reopen(folder / "reasonings")
    if resume == "never":
        journal.set_aside(folder / journal.FILE)


def _taught(config: Config) -> list[Arm]:
    """Choose the arms that can be trained, those that match another last."""
    arms = [arm for arm in config.classifier.arms if config.reasonings.teacher or arm.arm not in NEEDS_REASONINGS]
    names = {arm.name for arm in arms}
    arms = [arm for arm in arms if arm.to is None or arm.to in names]
    if not arms:
        raise RequestError(
            "classifier.arms: every arm needs reasonings and nobody writes them; give reasoner.worked_cases or a "
            "reasonings.teacher, or add label_only"
        )
    return sorted(arms, key=lambda arm: arm.match is not None)


def refuse_early(config: Config, until: str = "report") -> None:
    """Refuse what no stage could do: no teacher, modes of no arm, bases that are not there."""
    if until == "reason" and not config.reasonings.teacher:
        raise RequestError("reasonings.teacher: there is none to write; give reasoner.worked_cases or name a teacher")
    refuse_missing(config.trackers)
    for place, api in servers(config):
        if api.model is None:
            raise RequestError(f"{place}.model: there is none; name the model as the server does")
    known = sorted({mode for arm in config.classifier.arms for mode in MODES[arm.arm]})
    for mode in config.evaluate.modes or ():
        if mode not in known:
            raise RequestError(f"evaluate.modes: {mode} is a mode of none of these arms; they have {', '.join(known)}")
    stages = ["reasoner"] if {"reasoner", "base"} & {*config.reasonings.teacher, config.reasonings.merge} else []
    for name in stages if until == "reason" else [*stages, "classifier"]:
        base = needed_base(config, name)
        if not isinstance(base, FromScratch):
            config_of(base, config.trust_remote_code)
            tokenizer_of(base, config.trust_remote_code)
        made = None if isinstance(base, FromScratch) else base
        for place, train in _trainings(config, name):
            adapters.refuse(made, config.trust_remote_code, train, place)
    if until in ("evaluate", "report") and config.evaluate.encoder is not None:
        encoder.refuse(config.evaluate.encoder, config.trust_remote_code)


def _trainings(config: Config, stage: str) -> list[tuple[str, Train]]:
    """Give the training settings of a stage, each with the key that they stand below."""
    if stage == "reasoner":
        return [("reasoner.train", config.reasoner.train)] if "reasoner" in config.reasonings.teacher else []
    return [(f"classifier.arms {arm.name}: train", arm.train) for arm in config.classifier.arms]


def _reasoner(this: Run) -> Made | None:
    """Train the reasoner where it is the teacher."""
    config = this.config
    if "reasoner" not in config.reasonings.teacher:
        return None
    base, identity = base_of(this, "reasoner")
    cases = worked_lessons(config, this.data)
    shown = config.reasonings.label_shown
    plan = reasoner.course(base, config.reasoner.train, config.seed, config.trust_remote_code, shown)
    plan = tracked(this, plan)
    # What the cases show, and so whether their answers are among it, is in their hash.
    inputs = {"base": identity, "cases": store.hash_of(cases), "seed": config.seed}
    return stage(
        this,
        "reasoner",
        "reasoner",
        config.reasoner.train.deciding(),
        inputs,
        lambda out: reasoner.train(out, plan, cases, shown),
    )


def _reasonings(this: Run, explainer: Made | None) -> Made | None:
    """Let the teachers write, and the checks decide; every answer goes into the run's journal first."""
    config, data = this.config, this.data
    settings = config.reasonings
    if not settings.teacher:
        return None
    base = base_of(this, "reasoner") if _asks_base(config) else None
    named = None if explainer is None else (explainer.folder, explainer.stamp)
    told, merging = writers(config, data, named, base), merger(config, base)
    rules = (*checks.by_name(settings.checks, _limits(config, len(data.train))), *this.checks)
    job = reasonings.Job(
        data.task,
        data.train,
        [reasonings.begun_once(this.spread(one)) for one in told],
        rules,
        settings,
        None if merging is None else reasonings.begun_once(this.spread(merging)),
        _length(this),
    )
    inputs = {
        "task": data.task,
        "rows": fingerprint(data.train),
        "writers": [one.identity for one in told],
        "merger": None if merging is None else merging.identity,
        "column": store.hash_of(data.reasonings),
        "file": store.hash_of(data.file_reasonings),
        "checks": [_identity(rule) for rule in rules],
        "measured": measured_by(this),
        # Reasonings are as long as its tokens have them.
        "student": base_of(this, "classifier")[1],
        "seed": config.seed,
    }
    # How rows without a reasoning are trained decides nothing here, unless classes are topped up to a share of all.
    ours = {"api", "named", "teacher", "replace", *(["without_reasoning"] if settings.top_up is None else [])}
    with journal.opened(this.folder / journal.FILE) as book:
        return stage(
            this,
            "reasonings",
            "reasonings",
            {"teacher": settings.teacher, **settings.model_dump(exclude=ours)},
            inputs,
            lambda out: _write(this, out, job, book),
        )


def _write(this: Run, out: Path, job: reasonings.Job, book: Journal) -> None:
    """Say what servers will take, write, and say what became of the candidates."""
    # Of runs beside each other none asks what another has been answered.
    for other in [] if this.beside is None else sorted(this.beside.glob(f"*/{journal.FILE}")):
        if other.parent != this.folder:
            journal.take_over(book, other)
    announce(reckoned(this.config, this.data), book)
    told = reasonings.write(out, job, book, partial(measured, this, job, book))
    for line in [*reasonings.lines(told), *reasonings.unread(told)]:
        say(line)
    asked = {one.name for one in (*job.writers, *([job.merger] if job.merger else []))}
    for name, taken in journal.spent(book).items():
        if name in asked:
            say(reasonings.spent_line(name, taken))
    if this.config.reasonings.top_up is not None:
        _say_what_is_short(this, out)


def _say_what_is_short(this: Run, out: Path) -> None:
    kept, rows, weights = weighed(this, out)
    able = {row.label for row in rows if row.id in kept}
    for label, reached in short_of_top_up(this, rows, weights).items():
        why = "no more different reasonings of its rows are kept" if label in able else "none of its rows has one kept"
        say(
            f"reasonings.top_up: {label} reached {reached:.3f} of an even split, not {this.config.reasonings.top_up}: "
            f"{why}; raise max_tries, candidates or the temperature"
        )


def _length(this: Run) -> Callable[[str], int]:
    """Count a reasoning's tokens as the student has them."""
    tokens = classifier.tokens(this.data.task, base_of(this, "classifier")[0], this.config.trust_remote_code)
    return lambda reasoning: len(tokens.encode(reasoning))


def _asks_base(config: Config) -> bool:
    asked = {*config.reasonings.teacher, config.reasonings.merge}
    return "base" in asked


def _limits(config: Config, rows: int) -> checks.Limits:
    settings = config.reasonings
    return checks.Limits(
        settings.too_long_tokens,
        settings.too_short_tokens,
        checks.generic_limit(settings.generic_rows, rows),
        settings.least_support,
    )


def _identity(rule: checks.Check) -> str:
    """Name a check, and where it is not one of ours its source too: what it says may change under the same name."""
    name = f"{rule.__module__}.{rule.__name__}"
    if rule.__module__.partition(".")[0] == "saywhy":
        return name
    try:
        return f"{name} {store.hash_of([inspect.getsource(rule), *_made_with(rule)])}"
    except (OSError, TypeError):  # typed at a prompt, or a class that is called
        return name


def _made_with(rule: Any) -> list[object]:
    """Give the plain values that a function was made with, such as a limit, which is no part of its source."""
    found: list[object] = [*(getattr(rule, "__defaults__", None) or ())]
    for cell in getattr(rule, "__closure__", None) or ():
        with suppress(ValueError):  # a cell that is still empty
            found.append(cell.cell_contents)
    found = [sorted(map(str, one)) if isinstance(one, set | frozenset) else one for one in found]
    return [one for one in found if isinstance(one, str | int | float | list | tuple) and " at 0x" not in repr(one)]


def missing(config: Config) -> list[str]:
    """Say which arms cannot be trained for want of reasonings, and what would give them."""
    taught = {arm.name for arm in _taught(config)}
    skipped = [arm.name for arm in config.classifier.arms if arm.name not in taught]
    if not skipped:
        return []
    return [
        f"Not trained: {', '.join(skipped)}. There are no worked cases (reasoner.worked_cases) and no teacher "
        "(reasonings.teacher: column, file, base, api or one of your own), so nobody wrote reasonings."
    ]


def _arm(this: Run, arm: Arm, named: tuple[str, str], learnt: Taught) -> Made:
    """Train one arm from a base and what identifies its content."""
    config, data = this.config, this.data
    base, identity = named

    plan, taught = planned(this, arm, base, learnt)
    plan = tracked(this, plan)
    if arm.to is not None:
        steps = store.read_json(this.folder / arm.to / "train.json")["steps"]
        other = next(one for one in config.classifier.arms if one.name == arm.to)
        plan = classifier.matched(plan, taught, arm.match, steps, planned(this, other, base, learnt))
    inputs = {
        "base": identity,
        "task": data.task,
        "lessons": store.hash_of(taught),
        "dev": fingerprint(data.dev),
        "choices": [row.choices for row in learnt.rows],
        "seed": config.seed,
        "recommend_by": config.recommend_by,
    }
    settings = {"arm": arm.arm, "train": plan.settings.deciding(), "on_overflow": plan.on_overflow, "save": plan.save}
    return stage(
        this,
        arm.name,
        "classifier",
        settings,
        inputs,
        lambda out: classifier.train(
            out,
            data.task,
            arm,
            plan,
            taught,
            data.dev,
            config.recommend_by,
            config.reasonings.replace,
            fingerprint(data.train),
        ),
    )
