"""The whole method, top to bottom. Only this file knows the order of the stages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from saywhy import checks, classifier, controls, encoder, evaluate, journal, reasoner, reasonings, report, store
from saywhy.config import Arm, Config, FromScratch, Train, dump, needed_base
from saywhy.data import fingerprint, read
from saywhy.journal import Journal
from saywhy.lm import adapters
from saywhy.lm.load import config_of, tokenizer_of
from saywhy.pipeline.floors import floors, without
from saywhy.pipeline.measures import course, measured, measured_by
from saywhy.pipeline.probes import probed
from saywhy.pipeline.stage import Made, Run, Spread, base_of, here, keep, stage, tracked, worked_lessons
from saywhy.pipeline.writers import merger, reckoned, writers
from saywhy.predict import Classifier, answer, load, too_long
from saywhy.progress import say
from saywhy.prompts import MODES
from saywhy.records import Prediction, RequestError, Row
from saywhy.train.follow import refuse_missing
from saywhy.version import versions

STAGES = ("reason", "train", "evaluate", "report")
RESUME = ("never", "always", "if_possible")
# They cost several answers for one.
ON_REQUEST = ("vote", "ensemble")
Ask = Callable[[str, str, Sequence[Row]], evaluate.Answers]
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
        this = Run(config, folder, data, tuple(more_checks), spread, beside)
        # 1 a reasoner learns from worked cases to lead from a question to its answer
        explainer = _reasoner(this)
        # 2 it writes reasonings for the training rows, which are checked and kept or dropped
        written = _reasonings(this, explainer)
        if until == "reason":
            return folder / "reasonings"
        for note in missing(config):
            say(note)
        # 3 each arm is trained on the same rows, with or without the kept reasonings
        base = base_of(this, "classifier")
        lesson = _lesson(this, written, base)
        made = {arm.name: _arm(this, arm, base, lesson) for arm in arms}
        if until == "train":
            return folder
        # 4 all arms answer the same untouched rows, next to the floors
        metrics = _evaluated(this, made, written, lesson)
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
    named = {name: own.api for name, own in config.reasonings.named.items()} | {"api": config.reasonings.api}
    asked = {*config.reasonings.teacher, config.reasonings.merge}
    for name in sorted(named.keys() & asked):
        if (api := named[name]) is not None and api.model is None:
            place = "reasonings.api.model" if name == "api" else f"reasonings.named.{name}.api.model"
            raise RequestError(f"{place}: there is none; name the model as the server does")
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
        "seed": config.seed,
    }
    ours = {"api", "named", "teacher", "replace", "without_reasoning"}
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
    for line in reckoned(this.config, this.data):
        say(line)
    told = reasonings.write(out, job, book, partial(measured, this, job, book))
    for line in reasonings.lines(told):
        say(line)


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
        return f"{name} {store.hash_of(inspect.getsource(rule))}"
    except (OSError, TypeError):  # typed at a prompt, or a class that is called
        return name


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


def _not_fitting(name: str, facts: Mapping[str, Any], answered: Mapping[str, int]) -> list[str]:
    """Say which texts an arm did not see whole: `facts` of its training, rows `answered` that were cut, by class."""
    counted = (
        ("train", facts["dropped"], "left out"),
        ("train", facts["cut"], "cut in the middle"),
        ("test", answered, "cut in the middle"),
    )
    return [
        f"{name}: {sum(by_class.values())} texts of {split} did not fit and were {how} ({_listed(by_class)})."
        for split, by_class, how in counted
        if by_class
    ]


def _listed(by_class: Mapping[str, int]) -> str:
    return ", ".join(f"{label or 'all'} {count}" for label, count in by_class.items())


@dataclass(frozen=True)
class Taught:
    """What the arms learn from: the rows, their reasonings, and how often a row counts where that is more than once.

    `kept` are the reasonings that were kept; others may stand in for them in `reasonings`.
    """

    rows: tuple[Row, ...]
    kept: Mapping[str, tuple[str, ...]]
    reasonings: Mapping[str, tuple[str, ...]]
    weights: Mapping[str, int]


def _lesson(this: Run, written: Made | None, base: tuple[str, str]) -> Taught:
    """Give all arms the same rows, as often as each other."""
    data, settings = this.data, this.config.reasonings
    if written is None:
        return Taught(data.train, {}, {}, {})
    kept = reasonings.read_kept(written.folder)
    weights = reasonings.kept_weights(kept, settings.per_row)
    rows = data.train
    if settings.without_reasoning == "leave_out":
        rows = tuple(row for row in rows if row.id in kept)
    return Taught(rows, kept, _taught_reasonings(this, rows, kept, base), weights)


def _taught_reasonings(
    this: Run, rows: Sequence[Row], kept: Mapping[str, tuple[str, ...]], base: tuple[str, str]
) -> Mapping[str, tuple[str, ...]]:
    """Give what the arms are taught by row: the kept reasonings, or the control that stands in for them."""
    config = this.config
    if config.reasonings.replace == "none":
        return kept
    tokens = classifier.tokens(this.data.task, base[0], config.trust_remote_code)
    return controls.replace(config.reasonings.replace, rows, kept, tokens, config.seed)


def _told(this: Run, written: Made | None, lesson: Taught) -> dict[str, Any] | None:
    """Say what became of the candidates, what stands in for the kept ones, and what both tell of the labels."""
    if written is None:
        return None
    config, kept, taught = this.config, lesson.kept, lesson.reasonings
    instead = None if config.reasonings.replace == "none" else taught
    return {
        **reasonings.summary(written.folder),
        "without_reasoning": config.reasonings.without_reasoning,
        "samples": reasonings.samples(written.folder),
        "replace": config.reasonings.replace,
        "replaced": sum(new != old for name in taught for new, old in zip(taught[name], kept[name], strict=True)),
        "leakage": asdict(evaluate.leakage(this.data.task, lesson.rows, kept, instead, config.seed)),
    }


def _arm(this: Run, arm: Arm, named: tuple[str, str], lesson: Taught) -> Made:
    """Train one arm from a base and what identifies its content."""
    config, data = this.config, this.data
    base, identity = named
    kept = {} if arm.arm == "label_only" else lesson.reasonings
    taught = classifier.lessons(arm.arm, lesson.rows, kept, lesson.weights)
    plan = tracked(this, course(config, data.task, arm.arm, base, arm.train, lesson.rows))
    if arm.to is not None:
        other = store.read_json(this.folder / arm.to / "train.json")
        plan = classifier.matched(plan, taught, arm.match, other["steps"], other["tokens"])
    inputs = {
        "base": identity,
        "task": data.task,
        "lessons": store.hash_of(taught),
        "dev": fingerprint(data.dev),
        "choices": [row.choices for row in lesson.rows],
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
            out, data.task, arm, plan, taught, data.dev, config.recommend_by, config.reasonings.replace
        ),
    )


def _evaluated(this: Run, arms: Mapping[str, Made], written: Made | None, lesson: Taught) -> Path:
    """Let every arm answer dev, fit its temperatures there, let it answer test, and write down every figure."""
    config, data = this.config, this.data
    kinds = {arm.name: arm.arm for arm in config.classifier.arms}
    dev: dict[str, evaluate.Answers] = {}
    test: dict[str, evaluate.Answers] = {}
    notes = [*missing(config), *without(config)]
    train = {name: store.read_json(made.folder / "train.json") for name, made in arms.items()}
    # All questions to one arm come one after another; no two models need to be in memory.
    opened = lru_cache(maxsize=1)(load)
    for name, made in arms.items():
        fitted: dict[str, dict[str, float]] = {}
        for mode in _modes(config, kinds[name]):
            ask = partial(_answers, this, made, opened, fitted)
            if mode == "explain":
                test[f"{name}/{mode}"] = ask(mode, "test", data.test[: config.evaluate.explain_rows])
                continue
            if mode == "adaptive":
                notes += _fit_threshold(this, name, ask, fitted)
                _calibrate(this, made, fitted)
                opened.cache_clear()
            of_dev = ask(mode, "dev", data.dev)
            fitted[mode] = {**fitted.get(mode, {}), "temperature": evaluate.temperature_of(data.task, of_dev)}
            dev[f"{name}/{mode}"], test[f"{name}/{mode}"] = of_dev, ask(mode, "test", data.test)
        _calibrate(this, made, fitted)
        notes += _not_fitting(name, train[name], _cut_in_test(this, made))
    probes, idle = probed(this, arms, kinds, test, opened)
    floor, path = floors(this), this.folder / "metrics.json"
    measured = [_timeless([dev, test, floor], train, probes), [*notes, *idle], kinds]
    stamp = _figures_stamp(this, written, lesson, measured)
    if path.exists() and store.read_json(path).get("stamp") == stamp:
        say("metrics.json: done before, not repeated")
        return path
    document = evaluate.metrics_json(
        task=data.task,
        dev=dev,
        test=test,
        floor=floor,
        train=train,
        audit=data.audit,
        versions=versions(),
        seed=config.seed,
        recommend_by=config.recommend_by,
        resamples=config.evaluate.bootstrap,
        kinds=kinds,
        reasonings=_told(this, written, lesson),
        notes=[*notes, *idle],
        probes=probes,
        abstain_below=config.evaluate.abstain_below,
        tokens=config.evaluate.budget.tokens_per_row,
    )
    store.write_json(path, {**document, "stamp": stamp})
    _describe(this, arms, document)
    return path


def _timeless(answers: Sequence[Mapping[str, Any]], train: Mapping[str, Any], probes: Mapping[str, Any]) -> object:
    """Give what was measured without how long it took, which differs between runs that are the same."""

    def still(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: still(inner) for key, inner in value.items() if key not in ("seconds", "systems")}
        return replace(value, seconds=0.0) if isinstance(value, evaluate.Answers) else value

    return [[still(one) for one in answers], still(train), still(probes)]


def _figures_stamp(this: Run, written: Made | None, lesson: Taught, measured: object) -> str:
    """Say what metrics.json is made from: resampling hundreds of times is not repeated where nothing changed."""
    config = this.config
    settings = {
        "evaluate": config.evaluate.model_dump(exclude={"max_tokens_in_flight"}),
        "recommend_by": config.recommend_by,
        "replace": config.reasonings.replace,
        "without_reasoning": config.reasonings.without_reasoning,
    }
    inputs = {
        "measured": measured,
        "reasonings": None if written is None else written.stamp,
        "taught": [fingerprint(lesson.rows), store.hash_of(lesson.reasonings)],
        "task": this.data.task,
        "audit": this.data.audit,
        "versions": versions(),
        "seed": config.seed,
    }
    return store.fingerprint("metrics", settings, inputs)


def _calibrate(this: Run, made: Made, fitted: Mapping[str, Mapping[str, float]]) -> None:
    """Keep beside a model what was fitted for its modes on dev, and below which probability they abstain."""
    below = this.config.evaluate.abstain_below
    chosen = {} if below is None else {"abstain_below": below}
    store.write_json(made.folder / "calibration.json", {mode: {**entry, **chosen} for mode, entry in fitted.items()})


def _describe(this: Run, arms: Mapping[str, Made], metrics: Mapping[str, Any]) -> None:
    """Write the model card of every arm again, now with its figures."""
    config, rows = this.config, this.data.train
    for arm in config.classifier.arms:
        if arm.name in arms:
            base = needed_base(config, "classifier")
            folder = arms[arm.name].folder
            replaced = config.reasonings.replace
            classifier.describe(folder, this.data.task, arm, base, len(rows), replaced, fingerprint(rows), metrics)


def _cut_in_test(this: Run, made: Made) -> dict[str, int]:
    """Count the test rows that an arm could not read whole, by class, as noted when they were answered."""
    found = sorted((this.folder / "predictions").glob(f"{made.folder.name}-*-test.parquet"))
    noted = [dict(store.table_extra(path).get("cut", {})) for path in found]
    return max(noted, key=lambda cut: sum(cut.values()), default={})


def _modes(config: Config, arm: str) -> list[str]:
    wanted = config.evaluate.modes
    return [mode for mode in MODES[arm] if (mode not in ON_REQUEST if wanted is None else mode in wanted)]


def _fit_threshold(this: Run, name: str, ask: Ask, fitted: dict[str, dict[str, float]]) -> list[str]:
    """Choose on dev when the mode adaptive reasons, and say so where it never does."""
    task, wanted = this.data.task, this.config.evaluate.budget
    label, reason = (ask(mode, "dev", this.data.dev) for mode in ("label", "reason"))
    threshold = evaluate.threshold_of(
        task, label, reason, this.config.recommend_by, evaluate.Budget(wanted.keep, wanted.tokens_per_row)
    )
    fitted["label"] = {"temperature": evaluate.temperature_of(task, label)}
    fitted["adaptive"] = {"temperature": 1.0, "threshold": threshold}
    if threshold:
        return []
    return [f"{name}: reasoning gains nothing on dev within what it may cost, so its mode adaptive is its mode label."]


def _answers(
    this: Run,
    made: Made,
    opened: Callable[[Path], Classifier],
    fitted: Mapping[str, Mapping[str, float]],
    mode: str,
    split: str,
    rows: Sequence[Row],
) -> evaluate.Answers:
    """Let a model folder, as written and loaded again, answer a split; answers whose stamp matches stand."""
    name = f"{made.folder.name}-{mode}-{split}"
    asked = this.config.evaluate
    settings = {"mode": mode, "prune": asked.prune, "fitted": fitted if mode == "adaptive" else {}}
    stamp = store.fingerprint("predictions", settings, {"model": made.stamp, "rows": fingerprint(rows)})

    def write(path: Path) -> None:
        model = opened(made.folder)
        facts = {"cut": too_long(model, rows), "prior": dict(model.prior)}

        def ask(some: Sequence[Row]) -> list[Prediction]:
            return answer(model, some, mode, asked.max_tokens_in_flight, name, asked.prune)

        evaluate.answer(ask, rows, path, this.data.task, stamp, facts)
        store.append(this.folder / "journal.jsonl", {"stage": name, "stamp": stamp, "event": "done"})

    path = keep(this, f"predictions/{name}.parquet", lambda one: store.table_stamp(one) == stamp, write)
    return evaluate.load_answers(path, this.data.task)
