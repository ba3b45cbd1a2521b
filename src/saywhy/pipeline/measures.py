"""What candidates are measured with: scorers that never saw the row, and the student's base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from saywhy import classifier, reasonings, store, support
from saywhy.config import Arm, Config, FromScratch, Train
from saywhy.data import Data
from saywhy.data.split import draw
from saywhy.journal import Journal
from saywhy.lm import bind
from saywhy.lm.load import model_of
from saywhy.pipeline.stage import Run, base_of, stage, tracked
from saywhy.predict import load
from saywhy.progress import say
from saywhy.records import Row, Task
from saywhy.train.folder import Course, Lesson

# Rows that scorers are tried on before they are believed.
ASKED = 256


def measured_by(this: Run) -> object:
    """Say what candidates are measured with, before it is made."""
    config = this.config
    if not config.reasonings.measured:
        return ""
    return {
        "base": base_of(this, "classifier")[1],
        "train": [arm.train.deciding() for arm in _reasoned(config)],
        "on_overflow": config.data.on_overflow,
    }


def _reasoned(config: Config) -> list[Arm]:
    """Give the arms that a scorer's training is a share of; where none reasons, one that would."""
    arms = [arm for arm in config.classifier.arms if arm.arm != "label_only"]
    return arms or [Arm(name="both", arm="both", train=config.classifier.train)]


def scorer_courses(
    config: Config, data: Data, base: str, first: Mapping[str, tuple[str, ...]]
) -> list[tuple[Course, list[Lesson]]]:
    """Say how each scorer is trained and on what: on the rows of the other fold, with what was written first."""
    arms = _reasoned(config)
    plans = [course(config, data.task, arm.arm, base, arm.train, data.train) for arm in arms]
    steps = [
        support.steps_of(plan, classifier.lessons(arm.arm, data.train, first))
        for plan, arm in zip(plans, arms, strict=True)
    ]
    longest = arms[steps.index(max(steps))]
    found = []
    for fold in range(support.FOLDS):
        rows = [row for row in data.train if support.fold_of(row.text) != fold]
        plan = course(config, data.task, support.ARM, base, longest.train, rows)
        taught = classifier.lessons(support.ARM, rows, first)
        found.append((support.course(plan, steps, config.reasonings.support_share), taught))
    return found


def course(config: Config, task: Task, arm: str, base: str, train: Train, rows: Sequence[Row]) -> Course:
    """Say how an arm of this config is trained on these rows."""
    overflow, save = config.data.on_overflow, config.classifier.save
    return classifier.course(task, arm, base, train, rows, config.seed, overflow, config.trust_remote_code, save)


def measured(this: Run, job: reasonings.Job, book: Journal) -> reasonings.Measured | None:
    """Train the scorers, where the config wants any, and say how to ask them."""
    config, task = this.config, this.data.task
    if not config.reasonings.measured:
        return None
    base, identity = base_of(this, "classifier")
    first = {name: (text,) for name, text in reasonings.first_drafts(job, book).items()}
    made = [
        stage(
            this,
            f"scorer-{fold}",
            "scorer",
            {"train": plan.settings.deciding(), "save": plan.save, "on_overflow": config.data.on_overflow},
            {"base": identity, "task": task, "lessons": store.hash_of(taught), "seed": config.seed},
            partial(_train_scorer, task=task, plan=tracked(this, plan), taught=taught, title=f"scorer-{fold}"),
        )
        for fold, (plan, taught) in enumerate(scorer_courses(config, this.data, base, first))
    ]
    told = {"scorers": [one.stamp for one in made], "base": identity, "early": config.reasonings.early_tokens}
    found = reasonings.Measured(told, cache(lambda: _measure(config, [one.folder for one in made], base)))
    if why := _learnt_nothing(this, book, found, first):
        say(why)
        return None
    return found


def _learnt_nothing(
    this: Run, book: Journal, measured: reasonings.Measured, first: Mapping[str, tuple[str, ...]]
) -> str:
    """Say that scorers read labels no better than by always saying the most frequent one, "" where they do.

    Which label wins under such a scorer is chance, and so would be what it drops.
    """
    told = draw([row for row in this.data.train if row.id in first], ASKED, this.config.seed)
    pairs = [(row, first[row.id][0]) for row in told]
    hits = sum(
        one["wins"] == row.label
        for (row, _), one in zip(pairs, reasonings.measures(book, measured, pairs), strict=True)
    )
    most = 0 if this.data.task.labels == () else max(Counter(row.label for row, _ in pairs).values(), default=0)
    if hits > most:
        return ""
    return (
        f"the scorers have learnt too little: with a reasoning they answer {hits} of {len(pairs)} rows rightly, and "
        f"always the same label would {most}; support is left out, raise reasonings.support_share"
    )


def _train_scorer(out: Path, task: Task, plan: Course, taught: Sequence[Lesson], title: str) -> None:
    support.train(out, task, plan, taught, title)


def _measure(config: Config, folders: Sequence[Path], base: str) -> reasonings.Measure:
    """Load the scorers, and the student's base unless its weights are random: those find nothing likely."""
    scorers = [load(folder) for folder in folders]
    student = None
    if not isinstance(config.classifier.base, FromScratch):
        student = bind(model_of(base, config.trust_remote_code), scorers[0].lm.encoder)
    return support.measure(scorers, student, config.reasonings, config.evaluate.max_tokens_in_flight)
