"""The floors that every arm has to beat: they answer dev and test as the arms do, and their answers are kept too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from saywhy import evaluate, store
from saywhy.data import fingerprint
from saywhy.pipeline.stage import Run, keep
from saywhy.records import Row


def floors(this: Run) -> dict[str, dict[str, evaluate.Answers] | None]:
    """Give the floors' answers by name and split (dev, test); None for a floor that these rows cannot have."""
    task, train, dev = this.data.task, this.data.train, this.data.dev
    taught = {"train": fingerprint(train)}
    return {
        "majority": _answers(this, "majority", taught, lambda: evaluate.majority(task, train)),
        "linear": _answers(
            this, "linear", {**taught, "dev": fingerprint(dev)}, lambda: evaluate.linear(task, train, dev)
        ),
    }


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
