"""The way of the rows through stage 2: asked, measured, judged, asked again where nothing was kept, written down."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from saywhy import journal, store
from saywhy.checks import Check, Index, index
from saywhy.config import Reasonings
from saywhy.journal import Journal
from saywhy.progress import Advance, in_silence, track
from saywhy.prompts import merged_question, row_question
from saywhy.reasonings.asking import NOT_ANSWERED, ask_several
from saywhy.reasonings.judging import MERGED, Measured, extra_of, in_turn, verdicts, with_figures
from saywhy.reasonings.parts import listed, path_of, stands, summary, write_part
from saywhy.records import LABEL_CUE, REASONING_CUE, Candidate, Row, Task, WorkError
from saywhy.teachers import Draft, Question, Writer

ROWS_PER_PART = 1000
# So many parts are asked at once where a teacher is spread, so that no worker waits at the end of each.
PARTS_AHEAD = 16
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """Everything that stage 2 is told: the rows to write for, who writes, who merges, the checks and the settings.

    `length` counts a reasoning's tokens as the student has them.
    """

    task: Task
    rows: Sequence[Row]
    writers: Sequence[Writer]
    checks: Sequence[Check]
    settings: Reasonings
    merger: Writer | None = None
    length: Callable[[str], int] = len


def write(
    folder: Path, job: Job, book: Journal, measured: Callable[[], Measured | None] = lambda: None
) -> dict[str, Any]:
    """Write the parts of stage 2 into `folder` and give their `summary`.

    First every row is asked once; then `measured` may train what measures candidates on these first answers; then all
    candidates are judged, and rows without a kept one asked again. Every candidate keeps its row, whatever the verdict.
    Parts that stand are not written again, unless a question in one of them got no answer, or they were judged with
    something else: a question of another part may have been answered since, and the scorers have learnt from it.
    Raises WorkError where no reasoning is kept for any row.
    """
    parts = _parts(job)
    heard = hashlib.sha256()
    court = _Court(job, book, index(_heard(job, book, heard)), measured())
    extra = _extra(court, parts)
    stamp = store.hash_of([heard.hexdigest(), None if court.measured is None else court.measured.identity, extra])
    missing = [number for number in range(len(parts)) if not stands(path_of(folder, number), stamp)]
    with track("reasonings: judged", len(job.rows), "rows", bool(missing)) as advance:
        kept = judged = 0
        advance(len(job.rows) - sum(len(parts[number]) for number in missing), 0, "", before=True)
        for numbers in _together(job, missing):
            every = _judged(court, [parts[number] for number in numbers], extra)
            for number, candidates in zip(numbers, every, strict=True):
                write_part(path_of(folder, number), parts[number], candidates, _sampling(job), stamp)
                kept, judged = kept + sum(one.kept for one in candidates), judged + len(candidates)
                advance(len(parts[number]), 0, f"kept {kept / judged:.0%}" if judged else "")
    found = summary(folder)
    if not found["kept"]:
        failed = next(iter(journal.failures(book)), "") if NOT_ANSWERED in found["dropped"] else ""
        why = f". Mostly there was no answer: {failed}; the same command asks again" if failed else ""
        advice = f"read {folder}/part-*.parquet, then {_advice(job, found)}"
        raise WorkError(f"no reasoning is kept for any row ({listed(found['dropped'])}); {advice}{why}")
    return found


def _advice(job: Job, told: Mapping[str, Any]) -> str:
    """Say what would help where nothing is kept."""
    if job.merger is None and all(writer.given for writer in job.writers):
        names = " and ".join(writer.name for writer in job.writers)
        return f"look at what {names} brought, or loosen reasonings.checks"
    if next(iter(told["dropped"]), "") == "cut_off":
        return "raise reasonings.sampling.max_tokens, or take another teacher"
    return "loosen reasonings.checks, train the reasoner longer, or take another teacher"


def first_drafts(job: Job, book: Journal) -> dict[str, str]:
    """Give the first usable reasoning of every row that has one: what scorers are trained on.

    No limit of the checks counts here, so that another limit trains no scorer anew.
    """
    found: dict[str, str] = {}
    for row, one in _first(job, book, ""):
        cue = any(cue in one.reasoning for cue in (REASONING_CUE, LABEL_CUE))
        if one.reasoning and not one.cut and not one.dropped_because and not cue:
            found.setdefault(row.id, one.reasoning)
    return found


def _heard(job: Job, book: Journal, digest: hashlib._Hash) -> Iterator[tuple[str, str]]:
    """Give every text with what was first said of it, and put into `digest` what scorers and twins depend on."""
    for row, one in _first(job, book, "reasonings: written"):
        digest.update(json.dumps([row.id, one.teacher, one.index, one.reasoning, one.dropped_because]).encode())
        yield row.text, one.reasoning


@dataclass(frozen=True)
class _Court:
    """What candidates are judged with."""

    job: Job
    book: Journal
    index: Index
    measured: Measured | None


def _parts(job: Job) -> list[Sequence[Row]]:
    return [job.rows[start : start + ROWS_PER_PART] for start in range(0, len(job.rows), ROWS_PER_PART)]


def _together(job: Job, parts: Sequence[T]) -> Iterator[Sequence[T]]:
    """Say which parts are asked at once: several where a teacher is spread."""
    writers = [*job.writers, *([job.merger] if job.merger else [])]
    size = PARTS_AHEAD if any(writer.spread for writer in writers) else 1
    return (parts[start : start + size] for start in range(0, len(parts), size))


def _first(job: Job, book: Journal, title: str) -> Iterator[tuple[Row, Candidate]]:
    """Ask every row the first time, part by part."""
    each = sum(1 if writer.given else job.settings.candidates for writer in job.writers) + _merges(job)
    with track(title, len(job.rows) * each, "candidates", bool(title)) as advance:
        for parts in _together(job, _parts(job)):
            for part, found in zip(parts, _candidates(job, book, parts, 0, advance), strict=True):
                rows = {row.id: row for row in part}
                yield from ((rows[one.row_id], one) for one in found)


def _merges(job: Job) -> int:
    """Say how many candidates of a row are merged in a round, at the most: as many as one teacher writes."""
    if job.merger is None:
        return 0
    return 1 if all(writer.given for writer in job.writers) else job.settings.candidates


def _candidates(
    job: Job, book: Journal, parts: Sequence[Sequence[Row]], attempt: int, advance: Advance
) -> list[list[Candidate]]:
    """Ask every teacher for the candidates of one round; what came with the rows is a candidate of the first alone."""
    found: list[list[Candidate]] = [[] for _ in parts]
    for writer in job.writers:
        if writer.given and attempt and job.merger is None:
            continue
        indices = (
            [0] if writer.given else [attempt * job.settings.candidates + k for k in range(job.settings.candidates)]
        )
        several = [
            [
                Question(row.id, row_question(job.task, row, job.settings.label_shown), index)
                for row in rows
                for index in indices
            ]
            for rows in parts
        ]
        _extend(found, _answered(book, writer, several, advance))
    return found if job.merger is None else _merged(job, book, job.merger, parts, found, attempt, advance)


def _extend(found: Sequence[list[Candidate]], more: Sequence[Sequence[Candidate]]) -> None:
    for of_part, new in zip(found, more, strict=True):
        of_part.extend(new)


def _answered(
    book: Journal, writer: Writer, several: Sequence[Sequence[Question]], advance: Advance
) -> list[list[Candidate]]:
    new = 0

    def note(draft: Draft) -> None:
        nonlocal new
        new += not draft.failed
        advance(not draft.failed, draft.tokens, "")

    drafts = ask_several(book, writer, several, note)
    if rest := sum(map(len, drafts)) - new:
        advance(rest, 0, "", before=True)
    return [
        [_candidate(writer, q, draft) for q, draft in zip(questions, some, strict=True)]
        for questions, some in zip(several, drafts, strict=True)
    ]


def _candidate(writer: Writer, question: Question, draft: Draft) -> Candidate:
    return Candidate(
        question.row_id,
        draft.reasoning,
        writer.name,
        question.index,
        draft.cut,
        draft.tokens,
        prompt_hash=store.hash_of(question.pieces),
        prompt_cut=draft.prompt_cut,
        dropped_because=NOT_ANSWERED if draft.failed else "",
    )


def _merged(
    job: Job,
    book: Journal,
    merger: Writer,
    parts: Sequence[Sequence[Row]],
    found: Sequence[Sequence[Candidate]],
    attempt: int,
    advance: Advance,
) -> list[list[Candidate]]:
    """Let one teacher make one reasoning of each round of several; where only one wrote, that one stands as it is.

    So do all where the merger did not answer.
    """
    of_part, several, shown = [], [], job.settings.label_shown
    for rows, some in zip(parts, found, strict=True):
        by_id = {row.id: row for row in rows}
        sources = _sources(job, some, attempt)
        of_part.append(sources)
        several.append(
            [
                Question(
                    name, merged_question(job.task, by_id[name], [some[at].reasoning for at in places], shown), index
                )
                for (name, index), places in sources.items()
            ]
        )
    merged = _answered(book, merger, several, advance)
    if needless := sum(map(len, parts)) * _merges(job) - sum(map(len, several)):
        advance(needless, 0, "", before=True)
    given = {writer.name for writer in job.writers if writer.given}
    left = []
    for sources, some, made in zip(of_part, found, merged, strict=True):
        answered = {(one.row_id, one.index) for one in made if not one.dropped_because}
        gone = {at for key, places in sources.items() if key in answered for at in places}
        told = [replace(one, dropped_because=MERGED) if at in gone else one for at, one in enumerate(some)]
        left.append([*(one for one in told if not (attempt and one.teacher in given)), *made])
    return left


def _sources(job: Job, found: Sequence[Candidate], attempt: int) -> dict[tuple[str, int], list[int]]:
    """Find, for each row and round where several wrote, the places of what they wrote."""
    sources: dict[tuple[str, int], list[int]] = {}
    given = {writer.name for writer in job.writers if writer.given}
    indices = sorted({one.index for one in found if one.teacher not in given}) or [attempt]
    for at, one in enumerate(found):
        if one.reasoning and not one.dropped_because:
            for index in indices if one.teacher in given else [one.index]:
                sources.setdefault((one.row_id, index), []).append(at)
    return {key: places for key, places in sources.items() if len(places) > 1}


def _sampling(job: Job) -> dict[str, Mapping[str, object]]:
    writers = [*job.writers, *([job.merger] if job.merger else [])]
    return {writer.name: writer.sampling for writer in writers}


def _judged(court: _Court, parts: Sequence[Sequence[Row]], extra: Mapping[str, int]) -> list[list[Candidate]]:
    """Ask and judge until every row has what it should, or its tries are over: one kept, or all of a topped-up row.

    Of a row of which no merged reasoning is kept, what was merged is judged instead.
    """
    job, settings = court.job, court.job.settings
    writes = job.merger is not None or any(not writer.given for writer in job.writers)
    found: dict[str, list[Candidate]] = {row.id: [] for part in parts for row in part}
    judged: dict[str, list[Candidate]] = {}
    lacking, attempt = [list(part) for part in parts], 0

    def judge(rows: Sequence[Row], new: Sequence[Candidate]) -> None:
        by_id = {row.id: row for row in rows}
        for one in with_figures(court.book, job.task, by_id, new, job.length, court.index, court.measured):
            found[one.row_id].append(one)
        for row in rows:
            most = settings.per_row + extra.get(row.id, 0)
            judged[row.id] = verdicts(job.task, row, found[row.id], job.checks, most)

    while any(lacking) and (attempt == 0 or writes):
        every = _candidates(job, court.book, lacking, attempt, in_silence)
        attempt += 1
        for at, asked in enumerate(every):
            judge(lacking[at], asked)
            lacking[at] = [
                row for row in lacking[at] if _lacks(judged[row.id], settings, extra.get(row.id, 0), attempt)
            ]
    for part in parts if job.merger else ():
        bare = [row for row in part if not any(one.kept for one in judged[row.id])]
        again = [replace(one, dropped_because="") for row in bare for one in found[row.id] if _is_merged(one)]
        for row in bare:
            found[row.id] = [one for one in found[row.id] if not _is_merged(one)]
        judge(bare, again)
    return [[one for row in part for one in judged[row.id]] for part in parts]


def _is_merged(candidate: Candidate) -> bool:
    return candidate.dropped_because == MERGED


def _lacks(judged: Sequence[Candidate], settings: Reasonings, extra: int, attempt: int) -> bool:
    kept = sum(one.kept for one in judged)
    wanted = settings.per_row + extra if extra else 1
    return kept < wanted and attempt < settings.max_tries * (1 + extra)


def _extra(court: _Court, parts: Sequence[Sequence[Row]]) -> dict[str, int]:
    """Say how many more reasonings each row of a rare class should get, in turn, the first rows first."""
    share = court.job.settings.top_up
    if share is None:
        return {}
    weights: Counter[str] = Counter()
    able: dict[str, list[str]] = {}
    with track("reasonings: judged, before top_up", len(court.job.rows), "rows") as advance:
        for some in _together(court.job, parts):
            kept = Counter(one.row_id for found in _judged(court, some, {}) for one in found if one.kept)
            for row in chain.from_iterable(some):
                label = row.label or ""
                # A row that is left out weighs nothing.
                weights[label] += bool(kept[row.id]) or court.job.settings.without_reasoning == "label_only"
                if kept[row.id]:
                    able.setdefault(label, []).append(row.id)
            advance(sum(map(len, some)), 0, "")
    more = extra_of(weights, {label: len(names) for label, names in able.items()}, share)
    return {name: count * court.job.settings.per_row for name, count in in_turn(more, able).items()}
