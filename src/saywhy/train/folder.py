"""From lessons to a model folder: render the prompt, encode, finetune, and write what a reader of the folder needs."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from saywhy import store
from saywhy.config import Train
from saywhy.lm import LM, adapters, bind
from saywhy.lm.encode import Encoder, branch, golden_ids, make_encoder, part_ids, prompt_ids, render, segments
from saywhy.lm.folder import save
from saywhy.lm.load import config_of, context_of, model_of, tokenizer_of
from saywhy.progress import say
from saywhy.prompts import Part
from saywhy.records import RequestError
from saywhy.train import failures, ranks
from saywhy.train.follow import Trackers, followed
from saywhy.train.loop import finetune
from saywhy.train.state import Trained
from saywhy.train.steps import Example, from_tensors, shares_of, to_tensors

# A reasoning may become this much longer than the longest one that was trained (design: Labels are scored).
LIMIT = 1.5
DONE = "work.done"
TAUGHT = "trained_on.parquet"


@dataclass(frozen=True)
class Lesson:
    """What one row teaches: what is seen of it, and its targets, each of which has an equal part of the row's weight.

    `group` is the label that cuts are counted under.
    """

    id: str
    pieces: tuple[str, ...]
    targets: tuple[tuple[Part, ...], ...]
    group: str = ""


@dataclass(frozen=True)
class Course:
    """Everything a training needs beside its lessons.

    `arm` is what the model is taught, or "reasoner". `longest_answer` is what stands around a reasoning in the longest
    answer, so that the room for texts leaves place for it. `class_weights` multiply the label tokens of each group.
    `on_overflow` is cut, drop or error. `shares` of the labels among the rows, where training does not keep to them.
    `save` says what is left of an adapter: merged or adapter. `trackers` are told every step.
    """

    arm: str
    base: str
    instruction: str
    settings: Train
    seed: int
    longest_answer: tuple[Part, ...] = ()
    class_weights: tuple[tuple[str, float], ...] = ()
    on_overflow: str = "cut"
    trust_remote_code: bool = False
    shares: tuple[tuple[str, float], ...] = ()
    save: str = "merged"
    trackers: Trackers | None = None


@dataclass(frozen=True)
class Encoded:
    """Lessons as examples with the encoder that made them, and by group how many were cut or else dropped."""

    encoder: Encoder
    examples: tuple[Example, ...]
    lessons: tuple[Lesson, ...]
    cut: dict[str, int]
    dropped: dict[str, int]


def encode(course: Course, lessons: Sequence[Lesson]) -> Encoded:
    """Render the prompt once and turn every lesson into branches; needs tokenizer and config, never weights."""
    tokenizer = tokenizer_of(course.base, course.trust_remote_code)
    context = context_of(config_of(course.base, course.trust_remote_code))
    encoder = _with_room(make_encoder(tokenizer, render(tokenizer, course.instruction)), course, lessons, context)
    weights = dict(course.class_weights)
    cut: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    examples, kept = [], []
    for lesson in lessons:
        head, was_cut = prompt_ids(encoder, lesson.pieces)
        if was_cut and course.on_overflow == "error":
            raise RequestError(
                f"row {lesson.id} does not fit into the {context} tokens of {course.base}; shorten it, or set "
                "data.on_overflow to cut or drop"
            )
        if was_cut and course.on_overflow == "drop":
            dropped[lesson.group] += 1
            continue
        cut[lesson.group] += was_cut
        kept.append(lesson)
        examples.append(_example(encoder, head, lesson, course.settings, weights.get(lesson.group, 1.0)))
    failures.refuse_untrained(examples)
    return Encoded(encoder, tuple(examples), tuple(kept), dict(+cut), dict(+dropped))


def _with_room(encoder: Encoder, course: Course, lessons: Sequence[Lesson], context: int) -> Encoder:
    """Fix how long a text and a written reasoning may be, so that training and prediction cut alike."""
    ids = {part: part_ids(encoder, part) for lesson in lessons for target in lesson.targets for part in target}
    trained = max(sum(len(ids[part]) for part in target) for lesson in lessons for target in lesson.targets)
    longest = max((len(ids[part]) for part in ids if part.name == "reasoning"), default=0)
    around = sum(len(part_ids(encoder, part)) for part in course.longest_answer)
    limit = int(LIMIT * longest) if longest else 0
    room = context - len(encoder.before) - len(encoder.after) - max(trained, limit + around)
    if room < 1:
        raise RequestError(
            f"the instruction ({len(encoder.before) + len(encoder.after)} tokens) and the longest answer "
            f"({max(trained, limit + around)}) leave no room for a text in the {context} tokens of {course.base}; "
            "shorten label descriptions or reasonings (reasonings.too_long_tokens), or take another base"
        )
    return replace(encoder, prompt=replace(encoder.prompt, room=room, limit=limit, golden=golden_ids(encoder)))


def _example(encoder: Encoder, head: Sequence[int], lesson: Lesson, settings: Train, class_weight: float) -> Example:
    branches, trained, of_label, weight = [], 0, 0, 0.0
    for target in lesson.targets:
        weighted = segments(encoder, target, settings.label_weight, class_weight)
        branches.append(branch(head, weighted, 1.0 / len(lesson.targets)))
        trained += sum(len(s.ids) for s, part in zip(weighted, target, strict=True) if part.loss)
        labels = [s for s, part in zip(weighted, target, strict=True) if part.loss == "label"]
        of_label += sum(len(s.ids) for s in labels)
        weight += labels[0].weight / len(lesson.targets) if labels else 0.0
    return Example(tuple(branches), trained, of_label, lesson.id, lesson.group, weight)


def train(
    folder: Path,
    course: Course,
    lessons: Sequence[Lesson],
    title: str,
    dev_score: Callable[[LM], float] | None = None,
    dev_rows: int = 0,
) -> None:
    """Train a base on lessons and leave a model folder with prompt.json, trained_on.parquet and train.json.

    Where labels were balanced, prior.json has their shares among the rows and as the training saw them.
    `folder` is unfinished until this returns; called again after a kill it goes on where it was.
    """
    work = folder / "work"
    if (folder / TAUGHT).exists() and not work.exists():
        # It was stopped behind its last line.
        shutil.rmtree(folder / DONE, ignore_errors=True)
        return
    encoded = encode(course, lessons)
    for by_group, how in ((encoded.cut, "cut in the middle"), (encoded.dropped, "dropped")):
        if by_group:
            say(f"{title}: {sum(by_group.values())} texts do not fit and are {how}")
    model = model_of(course.base, course.trust_remote_code, course.settings.bits)
    adapters.prepare(model, course.settings, course.seed)
    lm = bind(model, encoded.encoder)
    shutil.rmtree(folder / DONE, ignore_errors=True)
    work.mkdir(exist_ok=True)
    score = None if dev_score is None else lambda: dev_score(lm)
    _call(course, encoded.examples, work, title, score is not None, dev_rows)
    marked = failures.marked(work, title, course.settings.pack_tokens)
    with ranks.lost(), followed(course.trackers, title, course.settings) as log, marked:
        trained = finetune(model, encoded.examples, course.settings, course.seed, work, title, score, dev_rows, log)
    _write(folder, course, encoded, model, trained)
    # Under another name first: a kill in the middle must not leave half a checkpoint to go on from.
    shutil.rmtree(work.rename(folder / DONE))


def _call(course: Course, examples: Sequence[Example], work: Path, title: str, judged: bool, dev_rows: int) -> None:
    """Call the processes that train together with this one, where there are any, to this training."""
    facts = {
        "base": course.base,
        "trust_remote_code": course.trust_remote_code,
        "settings": course.settings.model_dump(mode="json"),
        "seed": course.seed,
        "work": str(work.absolute()),
        "title": title,
        "judged": judged,
        "dev_rows": dev_rows,
    }
    with ranks.lost():
        ranks.call(facts, to_tensors(examples))


def help_train() -> int:
    """Train beside the process that calls, as often as it does; give the exit code 0 once it has done its work."""
    with ranks.lost():
        while (called := ranks.called()) is not None:
            _join(*called)
    return 0


def _join(facts: dict[str, Any], tensors: dict[str, Any]) -> None:
    settings = Train.model_validate(facts["settings"])
    model = model_of(facts["base"], facts["trust_remote_code"], settings.bits)
    adapters.prepare(model, settings, facts["seed"])
    # Only the process that called asks the dev rows.
    score = (lambda: 0.0) if facts["judged"] else None
    work = Path(facts["work"])
    finetune(model, from_tensors(tensors), settings, facts["seed"], work, facts["title"], score, facts["dev_rows"])


def _write(folder: Path, course: Course, encoded: Encoded, model: Any, trained: Trained) -> None:
    lora, bits = course.settings.lora, course.settings.bits
    apart = None if lora is None or course.save == "merged" else (lora, course.base)
    save(folder, course.arm, model, encoded.encoder, apart)
    adapter = None if lora is None else {**lora.model_dump(), "bits": bits, "merged": apart is None}
    facts = {**asdict(trained), "adapter": adapter, "cut": encoded.cut}
    store.write_json(folder / "train.json", facts)
    if course.shares:
        taught = shares_of(encoded.examples, course.settings)
        store.write_json(folder / "prior.json", {"rows": dict(course.shares), "taught": taught})
    end = encoded.encoder.prompt.end
    rows = [
        (lesson.id, "".join(end if part.name == "end" else part.text for part in target))
        for lesson in encoded.lessons
        for target in lesson.targets
    ]
    table = pa.table({"id": [row for row, _ in rows], "target": [text for _, text in rows]})
    # The last file: where it stands and no work is left, the training is whole.
    store.write_table(folder / TAUGHT, table)
