"""The way of the texts: every teacher answers with every prompt, answers go into the journal, then the votes count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from saywhy import journal, store
from saywhy.config import Config, FromScratch, Labelling, needed_base, resolve_path
from saywhy.data import read_examples, task_of
from saywhy.data.read import open_table
from saywhy.data.rows import rows_to_predict
from saywhy.journal import Journal
from saywhy.labelling.reading import read_answer
from saywhy.labelling.scoring import load, read_scored, scoring
from saywhy.labelling.voting import Answer, Tally, supporting, vote
from saywhy.lm.load import base_hash
from saywhy.pipeline.writers import announce, api_of, asked_as_it_is
from saywhy.predict.stream import Filling, Seen, check_output, fill, look, opened, slices
from saywhy.progress import Advance, say, track
from saywhy.prompts import (
    LABELLING_PROMPTS,
    MERGE_INSTRUCTION,
    labelling_instruction,
    merged_question,
    row_pieces,
)
from saywhy.reasonings import listed
from saywhy.reasonings.asking import ask, begun_once
from saywhy.records import RequestError, Row, Task, WorkError
from saywhy.teachers import Draft, Question, Writer
from saywhy.teachers.cost import estimate

NAMES = ("label", "score_mean", "scores", "agreement", "disputed", "reasoning")
SCORE = pa.struct(
    [
        ("teacher", pa.string()),
        ("prompt", pa.string()),
        ("label", pa.string()),
        ("probability", pa.float64()),
        ("unreadable", pa.int64()),
    ]
)
TYPES = (pa.string(), pa.float64(), pa.list_(SCORE), pa.float64(), pa.bool_(), pa.string())
JOURNAL = "{}.answers.sqlite"

Answers = list[Answer]


@dataclass(frozen=True)
class _Voter:
    """One teacher with one prompt."""

    teacher: str
    prompt: str
    writer: Writer


@dataclass(frozen=True)
class _Job:
    config: Config
    settings: Labelling
    task: Task
    instructions: dict[str, str]


def label(config: Config, output: Path | None = None, overwrite: bool = False) -> tuple[Path, dict[str, Any]]:
    """Label the texts of `label.data` by vote; give where they went and what was counted (`Tally.summary`).

    The output has all columns of the input, the label under the name of `task.label`, `score_mean`, `scores`,
    `agreement`, `disputed`, and the reasoning under that of `reasonings.column`. Every answer is kept beside it, in
    OUTPUT.answers.sqlite, as it comes: stopped or killed, the same command goes on. Raises RequestError for what cannot
    be asked, before anyone is asked, and WorkError where no text could be labelled.
    """
    job = _job(config)
    settings = job.settings
    path = resolve_path(config, settings.output) if output is None else output.resolve()
    check_output(settings.data, path, overwrite)
    voters = [one for name in settings.teachers for one in _voters(job, name)]
    merger = _merger(job)
    identities = [one.writer.identity for one in voters] + ([merger.identity] if merger else [])
    counted = {"task": job.task, "voters": identities, **settings.model_dump(exclude={"data", "output"})}
    seen = look(settings.data, config.task, counted, path)
    names = _column_names(config, seen)
    for one in voters:
        # A missing key is told now, not after the teacher before it has worked for hours.
        if one.writer.remote:
            one.writer.begin()
    estimates, tally = reckoned(config), Tally(job.task)
    book_path = path.with_name(JOURNAL.format(path.name))
    with opened(path), journal.opened(book_path) as book:
        announce(estimates, book)
        for name in settings.teachers:
            # A model leaves the memory before the next one's comes; a server is who it was.
            own = [one for one in voters if one.teacher == name]
            _ask_all(job, book, name, own if own[0].writer.remote else _voters(job, name), seen)

        def answered(rows: Sequence[Row]) -> tuple[Any, float, bool]:
            answers = _answers(job, book, voters, rows)
            voted = all(answer.label is not None for each in answers for answer in each)
            found, merged = _reasonings(job, book, merger, rows, answers)
            return _table(job, rows, answers, found), 0.0, voted and merged

        def note(table: Any) -> None:
            scores = table.column("scores").to_pylist()
            tally.add([[Answer(**one) for one in row] for row in scores], settings.least_agreement)

        def last() -> None:
            if not tally.labels:
                failed = next(iter(journal.failures(book)), "")
                why = f", mostly because: {failed}" if failed else f"; what they said stands in {book_path.name}"
                raise WorkError(f"{path} is not written: no teacher gave an answer that could be read{why}")

        filling = Filling(config.task, counted, names, answered, note, last)
        fill(filling, settings.data, path, seen, overwrite, "votes")
    return path, tally.summary()


def reckoned(config: Config) -> list[str]:
    """Say what asking each server about every text once will take, before anything is asked."""
    job = _job(config)
    lines, tries = [], job.settings.max_tries
    again = "" if tries == 1 else f"; what cannot be read is asked again, up to {tries} times in all"
    for name in job.settings.teachers:
        if (api := api_of(config, name)) is not None:
            for prompt, instruction in job.instructions.items():
                rows = rows_to_predict(open_table(job.settings.data, config.folder), config.task)
                questions = (Question(row.id, row_pieces(row), 0) for _, row in rows if row.text.strip())
                told = estimate(questions, instruction, job.settings.sampling, api.price)
                lines.append(f"{name}, {prompt}: {told.sentence()}{again}.")
    return lines


def _job(config: Config) -> _Job:
    """Put together what is asked. Raises RequestError where the config does not say."""
    if config.label is None:
        raise RequestError(
            "label: the config has no such section; write label: {data: texts.csv, output: labelled.csv}"
        )
    task = task_of(config, tuple(config.task.labels or ()))
    examples = read_examples(config)
    instructions = {prompt: labelling_instruction(task, prompt, examples) for prompt in config.label.asked}
    return _Job(config, config.label, task, instructions)


def _voters(job: _Job, name: str) -> list[_Voter]:
    """Give a teacher with each of its prompts. A model is loaded when it is first needed, and once for all of them."""
    config, sampling = job.config, job.settings.sampling
    if api_of(config, name) is not None:
        return [
            _Voter(name, prompt, begun_once(_remote(job, name, f"label:{name}/{prompt}", instruction)))
            for prompt, instruction in job.instructions.items()
        ]
    base, identity = _base(config, name)
    loaded = cache(partial(load, base, config.trust_remote_code))
    found = []
    for prompt, instruction in job.instructions.items():
        arm = LABELLING_PROMPTS[prompt]
        told = (instruction, sampling, config.seed, config.evaluate.max_tokens_in_flight, config.evaluate.prune)
        drawn = sampling.model_dump()
        depends: dict[str, object] = {"base": identity, "arm": arm, "instruction": instruction}
        depends |= {"labels": job.task.labels, "prune": config.evaluate.prune}
        depends |= {"sampling": drawn, "seed": config.seed}
        begin = partial(scoring, loaded, job.task, arm, *told)
        writer = Writer(f"label:{name}/{prompt}", depends, begin, sampling=drawn)
        found.append(_Voter(name, prompt, begun_once(writer)))
    return found


def _remote(job: _Job, name: str, title: str, instruction: str) -> Writer:
    """Give a teacher that writes texts: a server, or whoever merges; `label.sampling` says how its words are drawn."""
    config = job.config
    told = config.reasonings.model_copy(update={"sampling": job.settings.sampling})
    base = _base(config, name) if api_of(config, name) is None else None
    return asked_as_it_is(config.model_copy(update={"reasonings": told}), name, title, base, instruction)


def _base(config: Config, name: str) -> tuple[str, str]:
    """Give a model on this machine and what identifies its content."""
    own = config.reasonings.named.get(name)
    base = needed_base(config, "reasoner") if own is None else own.local
    if base is None or isinstance(base, FromScratch):
        raise RequestError("label.teachers: base is made from scratch and has learnt nothing; name a model that has")
    return base, base_hash(base)


def _merger(job: _Job) -> Writer | None:
    name = job.settings.merge
    return None if name is None else begun_once(_remote(job, name, f"merge:{name}", MERGE_INSTRUCTION))


def _column_names(config: Config, seen: Seen) -> tuple[str, ...]:
    """Name the columns that are added, as training will look for them; those of the input may not be among them."""
    names = (config.task.label, *NAMES[1:-1], config.reasonings.column)
    if taken := [name for name in names if name in seen.columns]:
        raise RequestError(
            f"{seen.name}: there is a column {taken[0]!r} already, and the output would have it twice; rename it or "
            "set task.label and reasonings.column to names that are free"
        )
    if len(set(names)) < len(names):
        raise RequestError(
            f"task.label and reasonings.column: the output has the columns {', '.join(names)}, each once"
        )
    return names


def _ask_all(job: _Job, book: Journal, name: str, voters: Sequence[_Voter], seen: Seen) -> None:
    """Let one teacher answer all texts with all prompts."""
    cut: Counter[str] = Counter()
    with track(f"label: {name}", seen.rows * len(voters), "answers") as advance:
        table = open_table(job.settings.data, job.config.folder)
        for _, rows in slices(table, job.config.task):
            for voter in voters:
                cut += _ask_part(job, book, voter, rows, advance)
    if cut:
        count = f"{cut.total()} texts did not fit and were cut in the middle where it answered"
        say(f"label: {name}: {count} ({listed(cut)})")


def _ask_part(job: _Job, book: Journal, voter: _Voter, rows: Sequence[Row], advance: Advance) -> Counter[str]:
    """Let one voter answer some rows, and count each row once; count by answer the texts it could not read whole."""
    new = 0

    def note(draft: Draft) -> None:
        nonlocal new
        # An answer that could not be read is followed by another one to the same text.
        done = not draft.failed and new < len(rows)
        new += done
        advance(done, draft.tokens, "")

    found = _heard(job, book, voter, _texts(rows), note)
    if new < len(rows):
        advance(len(rows) - new, 0, "", before=True)
    return Counter(one.label or "no label" for one in found.values() if one.prompt_cut)


def _texts(rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
    """Give what teachers see of rows, each text once, under a name made of it: moved files keep their answers."""
    return {_name(row): row_pieces(row) for row in rows if row.text.strip()}


def _name(row: Row) -> str:
    return store.hash_of(row_pieces(row))[:16]


def _heard(
    job: _Job,
    book: Journal,
    voter: _Voter,
    texts: dict[str, tuple[str, ...]],
    note: Callable[[Draft], None] = lambda draft: None,
) -> dict[str, Answer]:
    """Get one voter's answer to every text; what cannot be read is asked again, with another seed."""
    found = {name: Answer(voter.teacher, voter.prompt, None) for name in texts}
    open_ = list(texts)
    for index in range(job.settings.max_tries):
        questions = [Question(name, texts[name], index) for name in open_]
        open_ = []
        for question, draft in zip(questions, ask(book, voter.writer, questions, note), strict=True):
            if draft.failed:
                continue
            before = found[question.row_id]
            answer = replace(_read(job, voter, draft, before), prompt_cut=draft.prompt_cut)
            if answer.label is None:
                answer = replace(before, unreadable=before.unreadable + 1)
                open_.append(question.row_id)
            found[question.row_id] = answer
    return found


def _read(job: _Job, voter: _Voter, draft: Draft, answer: Answer) -> Answer:
    if not voter.writer.remote:
        return read_scored(draft, answer)
    named, reasoning = read_answer(draft.reasoning, job.task)
    return replace(answer, label=named, reasoning=reasoning, cut=draft.cut)


def _answers(job: _Job, book: Journal, voters: Sequence[_Voter], rows: Sequence[Row]) -> list[Answers]:
    """Give the answers of all voters to each row; none to an empty text."""
    texts = _texts(rows)
    heard = [_heard(job, book, voter, texts) for voter in voters]
    return [[each[_name(row)] for each in heard] if row.text.strip() else [] for row in rows]


def _reasonings(
    job: _Job, book: Journal, merger: Writer | None, rows: Sequence[Row], answers: Sequence[Answers]
) -> tuple[list[str], bool]:
    """Give each row the reasoning that stands for its label: the surest teacher's, or one made of all of them.

    Says too whether the merger answered all that it was asked.
    """
    outcomes = [vote(each, job.task) for each in answers]
    agreeing = [supporting(each, won.label) if won else [] for each, won in zip(answers, outcomes, strict=True)]
    found = [each[0].reasoning if each else "" for each in agreeing]
    if merger is None:
        return found, True
    questions: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for at, (row, won, each) in enumerate(zip(rows, outcomes, agreeing, strict=True)):
        if won is not None and len(each) > 1:
            told = [answer.reasoning for answer in each]
            pieces = merged_question(job.task, replace(row, label=won.label), told)
            questions.setdefault((_name(row), pieces), []).append(at)
    drafts = ask(book, merger, [Question(name, pieces, 0) for name, pieces in questions])
    for places, draft in zip(questions.values(), drafts, strict=True):
        for at in places if draft.reasoning and not draft.failed and not draft.cut else ():
            found[at] = draft.reasoning
    return found, not any(draft.failed for draft in drafts)


def _table(job: _Job, rows: Sequence[Row], answers: Sequence[Answers], reasonings: Sequence[str]) -> Any:
    """Give the columns that are put beside the rows; a row that is left out has no label."""
    records = [_record(job, each, why) for each, why in zip(answers, reasonings, strict=True)]
    columns = [pa.array([record[at] for record in records], kind) for at, kind in enumerate(TYPES)]
    return pa.table(dict(zip(NAMES, columns, strict=True)))


def _record(job: _Job, answers: Answers, reasoning: str) -> tuple[Any, ...]:
    won = vote(answers, job.task)
    scores = [{field.name: getattr(answer, field.name) for field in SCORE} for answer in answers]
    if won is None:
        return None, None, scores, None, None, None
    disputed = won.agreement < job.settings.least_agreement
    named = None if disputed and job.settings.disputed == "leave_out" else won.label
    return named, won.score_mean, scores, won.agreement, disputed, reasoning
