"""Stage 4: every arm answers the same untouched rows, and what is made of the answers is written to metrics.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from saywhy import classifier, evaluate, reasonings, store
from saywhy.config import Config, needed_base
from saywhy.data import fingerprint
from saywhy.pipeline.floors import floors, without
from saywhy.pipeline.lessons import Taught, left_out, told, untrained
from saywhy.pipeline.probes import probed
from saywhy.pipeline.stage import Made, Run, keep
from saywhy.predict import Classifier, answer, load, too_long
from saywhy.progress import say
from saywhy.prompts import MODES
from saywhy.records import Prediction, Row
from saywhy.version import versions

# They cost several answers for one.
ON_REQUEST = ("vote", "ensemble")
Ask = Callable[[str, str, Sequence[Row]], evaluate.Answers]


def evaluated(
    this: Run, arms: Mapping[str, Made], written: Made | None, learnt: Taught, missing: Sequence[str]
) -> Path:
    """Let every arm answer dev, fit its temperatures there, let it answer test, and write down every figure."""
    config, data = this.config, this.data
    kinds = {arm.name: arm.arm for arm in config.classifier.arms}
    dev: dict[str, evaluate.Answers] = {}
    test: dict[str, evaluate.Answers] = {}
    notes = [*missing, *left_out(learnt.dropped), *untrained(this, learnt), *without(config)]
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
    stamp = _figures_stamp(this, written, learnt, measured)
    if path.exists() and store.read_json(path).get("stamp") == stamp:
        say("metrics.json: done before, not repeated")
        return path
    about = told(this, written, learnt)
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
        reasonings=about,
        notes=[*notes, *([] if about is None else reasonings.unread(about)), *idle],
        probes=probes,
        abstain_below=config.evaluate.abstain_below,
        tokens=config.evaluate.budget.tokens_per_row,
    )
    for name, made in arms.items():
        document["arms"][name]["stamp"] = made.stamp
    store.write_json(path, {**document, "stamp": stamp})
    _describe(this, arms, len(learnt.rows), document)
    return path


def _timeless(answers: Sequence[Mapping[str, Any]], train: Mapping[str, Any], probes: Mapping[str, Any]) -> object:
    """Give what was measured without how long it took, which differs between runs that are the same."""

    def still(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: still(inner) for key, inner in value.items() if key not in ("seconds", "systems")}
        return replace(value, seconds=0.0) if isinstance(value, evaluate.Answers) else value

    return [[still(one) for one in answers], still(train), still(probes)]


def _figures_stamp(this: Run, written: Made | None, learnt: Taught, measured: object) -> str:
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
        "taught": [fingerprint(learnt.rows), store.hash_of(learnt.reasonings)],
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


def _describe(this: Run, arms: Mapping[str, Made], rows: int, metrics: Mapping[str, Any]) -> None:
    """Write the model card of every arm, trained on so many rows, again, now with its figures."""
    config = this.config
    for arm in config.classifier.arms:
        if arm.name in arms:
            base = needed_base(config, "classifier")
            folder = arms[arm.name].folder
            replaced = config.reasonings.replace
            data_hash = fingerprint(this.data.train)
            classifier.describe(folder, this.data.task, arm, base, rows, replaced, data_hash, metrics)


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


def _not_fitting(name: str, facts: Mapping[str, Any], answered: Mapping[str, int]) -> list[str]:
    """Say which texts an arm did not see whole: `facts` of its training, rows `answered` that were cut, by class."""
    return [
        f"{name}: {sum(by_class.values())} texts of {split} did not fit and were cut in the middle "
        f"({reasonings.listed(by_class)})."
        for split, by_class in (("train", facts["cut"]), ("test", answered))
        if by_class
    ]
