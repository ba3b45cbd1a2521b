"""The floors that every arm has to beat: they answer dev and test as the arms do, and their answers are kept too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from saywhy import classifier, encoder, evaluate, store
from saywhy.config import Config
from saywhy.data import fingerprint
from saywhy.lm.load import base_hash
from saywhy.pipeline.measures import course
from saywhy.pipeline.stage import Run, base_of, keep
from saywhy.predict import answer
from saywhy.records import Row


def floors(this: Run) -> dict[str, dict[str, evaluate.Answers] | None]:
    """Give the floors' answers by name and split (dev, test); None for a floor that these rows cannot have."""
    config, task, train, dev = this.config, this.data.task, this.data.train, this.data.dev
    taught = {"train": fingerprint(train)}
    chosen = {**taught, "dev": fingerprint(dev)}
    found = {
        "majority": _answers(this, "majority", taught, lambda: evaluate.majority(task, train)),
        "linear": _answers(this, "linear", chosen, lambda: evaluate.linear(task, train, dev)),
    }
    if config.evaluate.zero_shot:
        base, identity = base_of(this, "classifier")
        told = {"base": identity, "prune": config.evaluate.prune}
        found["zero_shot"] = _answers(this, "zero_shot", told, lambda: _zero_shot(this, base))
    if (name := config.evaluate.encoder) is not None:
        told = {**chosen, "encoder": base_hash(name), "seed": config.seed}
        found["encoder"] = _answers(this, "encoder", told, lambda: _encoder(this, name))
    return found


def without(config: Config) -> list[str]:
    """Say which floor was asked for that these rows cannot have."""
    if config.evaluate.encoder is None or config.task.choices is None:
        return []
    return [
        "There is no floor of an encoder: each row has its own choices, and an encoder learns labels that all share."
    ]


def _zero_shot(this: Run, base: str) -> evaluate.PredictRows:
    """Ask a base as the arm label_only will be asked that is trained from it."""
    config, data = this.config, this.data
    plan = course(config, data.task, "label_only", base, config.classifier.train, data.train)
    model = classifier.untrained(data.task, plan, data.train)
    asked = config.evaluate
    return lambda rows: answer(model, rows, "label", asked.max_tokens_in_flight, "floors/zero_shot", asked.prune)


def _encoder(this: Run, name: str) -> evaluate.PredictRows | None:
    config, data = this.config, this.data
    if config.task.choices is not None:
        return None
    return encoder.finetuned(name, data.task, data.train, data.dev, config.seed, config.trust_remote_code)


def _answers(
    this: Run, name: str, told: Mapping[str, object], begin: Callable[[], evaluate.PredictRows | None]
) -> dict[str, evaluate.Answers] | None:
    """Let one floor answer both splits; `told` is what its answers depend on beside the rows.

    It is made (`begin`) where an answer is missing only, and once.
    """
    made, task, found = cache(begin), this.data.task, dict[str, evaluate.Answers]()
    for split, rows in (("dev", this.data.dev), ("test", this.data.test)):
        inputs = {**told, "task": task, "rows": fingerprint(rows)}
        stamp = store.fingerprint("predictions", {"floor": name}, inputs)

        def same(path: Path, stamp: str = stamp) -> bool:
            return store.table_stamp(path) == stamp

        def write(path: Path, rows: tuple[Row, ...] = rows, stamp: str = stamp) -> None:
            if (predict := made()) is not None:
                evaluate.answer(predict, rows, path, task, stamp)

        path = keep(this, f"predictions/floors-{name}-{split}.parquet", same, write)
        if not same(path):
            return None
        found[split] = evaluate.load_answers(path, task)
    return found
