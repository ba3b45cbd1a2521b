"""What a run would do, before it does it: what the model sees, what does not fit, and what it costs."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from saywhy import classifier, controls, labelling, reasoner
from saywhy.config import GIVEN as GIVEN_TEACHERS
from saywhy.config import Arm, Config, FromScratch, Labelling, needed_base, resolve_path
from saywhy.data import Data, read, read_examples, task_of
from saywhy.data.read import open_table
from saywhy.data.rows import rows_to_predict
from saywhy.lm.encode import segments, text_ids
from saywhy.lm.load import config_of, make_scratch
from saywhy.machine import free_bytes
from saywhy.pipeline import NEEDS_REASONINGS, missing, refuse_early
from saywhy.pipeline.lessons import fitting, left_out
from saywhy.pipeline.measures import course, scorer_courses
from saywhy.pipeline.stage import scratch_texts, worked_lessons
from saywhy.pipeline.writers import reckoned, refuse_unready
from saywhy.prompts import (
    MERGE_INSTRUCTION,
    labelling_instruction,
    merge_instruction,
    merged_question,
    reasoner_instruction,
    row_question,
)
from saywhy.reasonings import extra_of, in_turn
from saywhy.records import RequestError, Row
from saywhy.support import FOLDS
from saywhy.train.folder import Course, Encoded, Lesson, encode
from saywhy.train.memory import gib
from saywhy.train.probe import probe
from saywhy.train.steps import packs_tokens, plan_steps
from saywhy.trees import Branch, pack_trees

SAMPLED_STEPS = 8
SHOWN_TOKENS = 400
GIVEN = "as given"
# What stands for the reasonings that a teacher will be shown to merge.
SOURCES = ("…", "…")


@dataclass(frozen=True)
class Estimate:
    """What training one model would take. `reasonings` says whose lengths stand in for those not yet written.

    `drawn` counts the rows of all steps, and `first` are the branches of the first one.
    """

    name: str
    encoded: Encoded
    course: Course
    steps: int
    tokens: int
    reasonings: str
    drawn: int
    first: tuple[Branch, ...]


def show(config: Config) -> None:
    """Print the dry run. Reads tokenizer, config and data, never weights, and keeps nothing."""
    # Labels and notes hold what rows hold: a bracket there is no style.
    console = Console(markup=False, emoji=False, highlight=False)
    if config.label is not None:
        _show_labelling(console, config, config.label)
        output = resolve_path(config, config.label.output)
        if output == Path(config.data.train) and not output.exists():
            console.print(f"{output} is not there yet: run `saywhy label`, then check again for the rest.")
            return
    refuse_early(config)
    data = read(config)
    _show_data(console, data)
    with tempfile.TemporaryDirectory() as folder:
        estimates, dropped = _estimates(config, data, Path(folder))
        # A scorer sees what the arm `both` sees.
        shown = [estimate for estimate in estimates if not estimate.name.startswith("scorer-")]
        for estimate in shown:
            _show_example(console, estimate)
        _show_teachers(console, config, data)
        _show_lengths(console, shown, dropped)
        _show_costs(console, config, estimates)
        _show_steps(console, config, shown)
    _show_left_out(console, config, estimates)


def _show_labelling(console: Console, config: Config, settings: Labelling) -> None:
    """Print what every teacher is told before it labels a text, and the first text."""
    task, examples = task_of(config, tuple(config.task.labels or ())), read_examples(config)
    _, row = next(rows_to_predict(open_table(settings.data, config.folder), config.task), (None, None))
    if row is None:
        raise RequestError(f"label.data: {settings.data} has no rows")
    told = {prompt: labelling_instruction(task, prompt, examples) for prompt in settings.asked}
    if settings.merge is not None:
        told[f"merged by {settings.merge}"] = MERGE_INSTRUCTION
    for prompt, instruction in told.items():
        console.rule(f"label: {prompt}")
        console.print(Text(instruction, style="dim"))
        if prompt in settings.asked:
            console.print(Text(f"\n{_shortened(row.text)}"))
    names = ", ".join(settings.teachers)
    console.print(f"{len(settings.teachers) * len(settings.asked)} answers a text, from {names} with each prompt.")
    for line in labelling.reckoned(config):
        console.print(line)


def _estimates(config: Config, data: Data, folder: Path) -> tuple[list[Estimate], Mapping[str, int]]:
    """Reckon every training, and count by class the rows that would be in none because they do not fit."""
    found = []
    if "reasoner" in config.reasonings.teacher:
        base = _base(config, data, folder, "reasoner")
        shown = config.reasonings.label_shown
        plan = reasoner.course(base, config.reasoner.train, config.seed, config.trust_remote_code, shown)
        found.append(_estimate("reasoner", plan, worked_lessons(config, data), ""))
    kept, source = _expected(config, data)
    kind = config.reasonings.replace
    if source == GIVEN and kind != "none":
        base = _base(config, data, folder, "classifier")
        kept = controls.replace(
            kind, data.train, kept, classifier.tokens(data.task, base, config.trust_remote_code), config.seed
        )
        source = f"replaced by {kind}, {controls.meaning(kind)}"
    if config.reasonings.measured and kept:
        courses = scorer_courses(config, data, _base(config, data, folder, "classifier"), kept)
        found += [_estimate(f"scorer-{fold}", plan, taught, source) for fold, (plan, taught) in enumerate(courses)]
    weights: Mapping[str, int] = {}
    if config.reasonings.top_up is not None and kept:
        kept, weights = _topped_up(config, data, kept)
        source += ", as many as top_up asks for"
    rows = data.train
    dropped: Mapping[str, int] = {}
    if config.data.on_overflow == "drop":
        base = _base(config, data, folder, "classifier")
        able = [arm for arm in config.classifier.arms if kept or arm.arm not in NEEDS_REASONINGS]
        if able:
            rows, dropped = fitting(rows, [_planned(config, data, arm, rows, kept, weights, base) for arm in able])
    arms = {estimate.name: estimate for estimate in found}
    # An arm that is matched with another is reckoned after it, as it is trained.
    for arm in sorted(config.classifier.arms, key=lambda arm: arm.match is not None):
        if (arm.arm in NEEDS_REASONINGS and not kept) or (arm.to is not None and arm.to not in arms):
            continue
        base, other = _base(config, data, folder, "classifier"), arms.get(arm.to or "")
        plan, taught = _planned(config, data, arm, rows, kept, weights, base)
        if other is not None:
            plan = classifier.matched(plan, taught, arm.match, other.steps, (other.course, other.encoded.lessons))
        arms[arm.name] = _estimate(arm.name, plan, taught, "" if arm.arm == "label_only" else source)
    return list(arms.values()), dropped


def _topped_up(
    config: Config, data: Data, kept: Mapping[str, tuple[str, ...]]
) -> tuple[Mapping[str, tuple[str, ...]], Mapping[str, int]]:
    """Give rows of rare classes as many reasonings as they are to have, and say how often each counts."""
    settings = config.reasonings
    able: dict[str, list[str]] = defaultdict(list)
    for row in data.train:
        if row.id in kept:
            able[row.label or ""].append(row.id)
    counts = Counter(row.label or "" for row in data.train)
    more = extra_of(counts, {label: len(names) for label, names in able.items()}, settings.top_up or 0.0)
    extra = in_turn(more, able)
    return (
        {name: some * settings.per_row * (1 + extra.get(name, 0)) for name, some in kept.items()},
        {name: 1 + count for name, count in extra.items()},
    )


def _expected(config: Config, data: Data) -> tuple[Mapping[str, tuple[str, ...]], str]:
    """Give reasonings to reckon with: those that rows bring, else worked cases' in turn."""
    brought = {**data.file_reasonings, **data.reasonings}
    if brought:
        return {name: (text,) for name, text in brought.items()}, GIVEN
    if not config.reasonings.teacher or not data.worked_cases:
        return {}, ""
    cases = data.worked_cases
    return {row.id: (cases[i % len(cases)].reasoning,) for i, row in enumerate(data.train)}, "lengths of worked cases"


def _planned(
    config: Config,
    data: Data,
    arm: Arm,
    rows: Sequence[Row],
    kept: Mapping[str, tuple[str, ...]],
    weights: Mapping[str, int],
    base: str,
) -> tuple[Course, list[Lesson]]:
    """Say how an arm would be trained, and on what."""
    given = {} if arm.arm == "label_only" else kept
    return course(config, data.task, arm.arm, base, arm.train, rows), classifier.lessons(arm.arm, rows, given, weights)


def _base(config: Config, data: Data, folder: Path, stage: str) -> str:
    base = needed_base(config, stage)
    if not isinstance(base, FromScratch):
        return base
    path = folder / stage
    if not path.exists():
        size = base.scratch
        texts = scratch_texts(config, data)
        make_scratch(path, texts, size, config.seed)
    return str(path)


def _estimate(name: str, plan: Course, lessons: Sequence[Lesson], source: str) -> Estimate:
    encoded = encode(plan, lessons)
    steps = plan_steps(encoded.examples, plan.settings, plan.seed)
    laid = [[b for row in step for b in encoded.examples[row].branches] for step in steps[:SAMPLED_STEPS]]
    each = np.mean([packs_tokens(pack_trees(branches, plan.settings.pack_tokens)) for branches in laid])
    tokens, drawn = round(float(each) * len(steps)), sum(map(len, steps))
    return Estimate(name, encoded, plan, len(steps), tokens, source, drawn, tuple(laid[0]))


def _show_data(console: Console, data: Data) -> None:
    audit: Mapping[str, Any] = data.audit
    table = Table(title="data")
    for column in ("split", "rows", "duplicates", "conflicting", "empty", "words (median, most)", "classes"):
        table.add_column(column)
    for name, split in audit["splits"].items():
        classes = ", ".join(f"{label} {count}" for label, count in list((split["classes"] or {}).items())[:8])
        words = f"{split['words']['median']}, {split['words']['max']}"
        counts = [str(split[key]) for key in ("rows", "duplicates", "conflicting", "empty")]
        table.add_row(name, *counts, words, classes)
    console.print(table)
    for name, count in audit["overlap"].items():
        if count:
            console.print(f"{name.replace('_', ' ')}: {count}")
    for note in audit["notes"]:
        console.print(note)


def _show_example(console: Console, estimate: Estimate) -> None:
    """Print the first row as the model sees it: trained tokens marked, their weights behind."""
    encoder, lesson = estimate.encoded.encoder, estimate.encoded.lessons[0]
    console.rule(f"{estimate.name}: the first row as the model sees it")
    text = Text(encoder.prompt.before, style="dim")
    text.append(_shortened("".join(lesson.pieces)))
    text.append(encoder.prompt.after, style="dim")
    console.print(text)
    for target in lesson.targets:
        line = Text()
        class_weight = dict(estimate.course.class_weights).get(lesson.group, 1.0)
        weighted = segments(encoder, target, estimate.course.settings.label_weight, class_weight)
        for part, segment in zip(target, weighted, strict=True):
            shown = encoder.prompt.end if part.name == "end" else part.text
            line.append(shown, style="dim" if segment.weight == 0 else "bold green" if part.loss == "label" else "cyan")
            line.append(f"[{len(segment.ids)} × {segment.weight:.3g}]", style="dim italic")
        console.print(line)
    if estimate.reasonings:
        console.print(Text(f"reasonings here: {estimate.reasonings}", style="dim"))


def _shortened(text: str) -> str:
    return text if len(text) <= 4 * SHOWN_TOKENS else f"{text[: 2 * SHOWN_TOKENS]} … {text[-2 * SHOWN_TOKENS :]}"


def _show_teachers(console: Console, config: Config, data: Data) -> None:
    """Print what every teacher is asked of the first row, how often, and what a server will take."""
    settings = config.reasonings
    asked = [name for name in settings.teacher if name not in GIVEN_TEACHERS]
    if not asked or not data.train:
        return
    console.rule("what the teachers are asked of the first row")
    pieces = row_question(data.task, data.train[0], settings.label_shown)
    shown = [(name, reasoner_instruction(settings.label_shown), pieces) for name in asked]
    if settings.merge:
        merged = merged_question(data.task, data.train[0], SOURCES, settings.label_shown)
        shown.append((f"{settings.merge}, merging", merge_instruction(settings.label_shown), merged))
    for name, instruction, seen in shown:
        console.print(Text(f"{name}: {instruction}", style="dim"))
        console.print(_shortened("".join(seen)))
    rounds = "" if settings.max_tries == 1 else f", rows without a kept one up to {settings.max_tries} times as often"
    console.print(
        f"{len(data.train):,} rows × {settings.candidates} candidates for each of {', '.join(asked)}{rounds}."
    )
    for line in reckoned(config, data):
        console.print(line)
    try:
        refuse_unready(config)
    except RequestError as problem:
        console.print(f"Not ready yet: {problem}.")


def _show_lengths(console: Console, estimates: Sequence[Estimate], dropped: Mapping[str, int]) -> None:
    """Print how long texts are in tokens and how many do not fit, by class; `dropped` are in no arm."""
    for estimate in estimates:
        encoder = estimate.encoded.encoder
        cut = estimate.encoded.cut
        lengths: dict[str, list[int]] = defaultdict(list)
        for lesson in estimate.encoded.lessons:
            lengths[lesson.group].append(len(text_ids(encoder, "".join(lesson.pieces))))
        table = Table(title=f"{estimate.name}: tokens of a text (room for {encoder.prompt.room})")
        for column in ("class", "rows", "median", "95%", "most", "cut"):
            table.add_column(column)
        for label, sizes in list(lengths.items())[:20]:
            middle, high = np.percentile(sizes, [50, 95])
            row = (str(len(sizes)), f"{middle:.0f}", f"{high:.0f}", str(max(sizes)))
            table.add_row(label or "(all)", *row, str(cut.get(label, 0)))
        console.print(table)
    for line in left_out(dropped):
        console.print(line)


def _show_costs(console: Console, config: Config, estimates: Sequence[Estimate]) -> None:
    """Print what every training takes; time and memory are those of a probe, which runs now."""
    table = Table(title=f"cost of each training ({gib(free_bytes())} of main memory are free)")
    # The name is what a reader looks for: in a narrow terminal other columns give way.
    table.add_column("model", no_wrap=True)
    for column in ("rows", "steps", "tokens computed", "trained on", "memory", "time"):
        table.add_column(column, justify="right")
    total, probed = 0.0, defaultdict(list)
    for estimate in estimates:
        base = config_of(estimate.course.base, config.trust_remote_code)
        found = probe(base, estimate.first, estimate.course.settings)
        rows = len(estimate.encoded.examples)
        trained = sum(example.target_tokens for example in estimate.encoded.examples) * _passes(estimate)
        seconds = found.per_token * estimate.tokens + found.per_step * estimate.steps
        total += seconds
        table.add_row(
            estimate.name,
            f"{rows:,}",
            f"{estimate.steps:,}",
            f"{estimate.tokens:,}",
            f"{trained:,.0f}",
            gib(found.peak_bytes),
            _duration(seconds),
        )
        probed[found.measured].append(estimate.name)
    if len(estimates) > 1:
        table.add_row("together", "", "", "", "", "", _duration(total))
    console.print(table)
    for measured, names in probed.items():
        console.print(f"Memory and time of {', '.join(names)}: from {measured}.")
    steps = {estimate.steps for estimate in estimates if estimate.name != "reasoner"}
    if len(steps) > 1:
        console.print("The arms differ in steps: a difference between them may be one of training length.")


def _show_steps(console: Console, config: Config, estimates: Sequence[Estimate]) -> None:
    """Say what a step is, which arms are matched with others, and which may end before their last step."""
    for estimate in estimates:
        settings = estimate.course.settings
        size = f"{settings.rows_per_step} rows" if settings.rows_per_step else f"{settings.tokens_per_step:,} tokens"
        trained = sum(example.target_tokens for example in estimate.encoded.examples)
        console.print(
            f"{estimate.name}: {estimate.steps:,} steps of {size}, {_passes(estimate):.1f} passes over the rows, "
            f"{trained / len(estimate.encoded.examples):.1f} tokens trained on in each"
        )
    named = {estimate.name for estimate in estimates}
    for arm in config.classifier.arms:
        if arm.name in named and arm.match is not None:
            console.print(f"{arm.name} has the {arm.match} of {arm.to}, as reckoned here and then as they were.")
        if arm.name in named and arm.train.patience is not None:
            console.print(
                f"{arm.name} ends earlier where {arm.train.patience} evaluations in a row are no new best (of "
                f"{arm.train.evaluations} that are planned)."
            )


def _show_left_out(console: Console, config: Config, estimates: Sequence[Estimate]) -> None:
    """Say which arms would not be trained, and which are only not reckoned here."""
    for note in missing(config):
        console.print(note)
    shown = {estimate.name for estimate in estimates}
    unknown = [arm.name for arm in config.classifier.arms if config.reasonings.teacher and arm.name not in shown]
    scorers = [f"scorer-{fold}" for fold in range(FOLDS)] if config.reasonings.measured else []
    unknown = [*(name for name in scorers if name not in shown), *unknown]
    if unknown:
        console.print(f"Not reckoned, since nobody knows how long their reasonings will be: {', '.join(unknown)}.")


def _passes(estimate: Estimate) -> float:
    return estimate.drawn / len(estimate.encoded.examples)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
