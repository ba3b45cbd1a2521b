"""Questions are put to teachers through the journal: what was answered once is never asked again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache, partial
from itertools import islice

from saywhy import journal, store
from saywhy.journal import Attempt, Journal
from saywhy.records import WorkError
from saywhy.teachers import Answered, Draft, Group, Memory, Question, Teacher, Writer

# So many rows of doubtful failures before any answer end the work: what is asked is wrong, not one row or another.
MOST_REFUSED = 20
# What a question that got no answer has instead of a reasoning's reason.
NOT_ANSWERED = "not_answered"


def begun_once(writer: Writer) -> Writer:
    """Let a writer begin when it is first needed, and only once, with every question still to be put."""
    return replace(writer, begin=cache(writer.begin), memory=Memory())


def keys_of(writer: Writer, questions: Sequence[Question]) -> list[bytes]:
    """Give the journal's key of every question: a hash of the teacher's identity, what it sees, row and candidate."""
    head = store.hash_of(writer.identity).encode()
    return [hashlib.sha256(head + json.dumps([q.pieces, q.row_id, q.index]).encode()).digest()[:16] for q in questions]


def ask(
    book: Journal, writer: Writer, questions: Sequence[Question], note: Callable[[Draft], None] = lambda draft: None
) -> list[Draft]:
    """Get a draft for every question, from the journal where it was answered before.

    `note` is told of every new attempt. Questions are asked in groups that the questions alone decide, and the answers
    of a group are kept together: after a kill the same group is asked, and writes the same texts to the last bit. A
    remote teacher's answers are kept one by one.
    """
    return ask_several(book, writer, [questions], note)[0]


def ask_several(
    book: Journal,
    writer: Writer,
    several: Sequence[Sequence[Question]],
    note: Callable[[Draft], None] = lambda draft: None,
) -> list[list[Draft]]:
    """Ask several lists of questions at once, each in the groups that it is asked in alone.

    Raises WorkError where a teacher that never answered has nothing to say to many rows.
    """
    questions = [q for some in several for q in some]
    if writer.given:
        found = {at: draft for at, draft in writer.begin()(questions)}
        drafts = [found[at] for at in range(len(questions))]
    else:
        keys = keys_of(writer, questions)
        held = journal.answers(book, keys)
        drafts = [_draft(held[key]) if key in held else Draft("", failed=NOT_ANSWERED) for key in keys]
        memory = writer.memory
        memory.answered = memory.answered or bool(held)
        open_ = {at for at, draft in enumerate(drafts) if draft.failed and keys[at] not in memory.given_up}
        groups = [[at for at in group if at in open_] for group in _groups(writer, several)]
        with closing(_asked(book, writer, questions, keys, [group for group in groups if group])) as asked:
            for at, draft in asked:
                note(draft)
                drafts[at] = draft
                _heed(writer, questions[at], draft)
        memory.given_up.update(keys[at] for at in open_ if drafts[at].final)
    rest = iter(drafts)
    return [list(islice(rest, len(some))) for some in several]


def _heed(writer: Writer, question: Question, draft: Draft) -> None:
    """End the work where a teacher seems to be asked wrongly; of one that has answered, a failure is about its row."""
    memory = writer.memory
    memory.answered = memory.answered or not draft.failed
    if draft.doubtful and not memory.answered:
        memory.refused.add(question.row_id)
        if len(memory.refused) >= MOST_REFUSED:
            raise WorkError(
                f"{writer.name}: no answer to any of the first {MOST_REFUSED} rows, the last time because of this: "
                f"{draft.failed}; see how it is set up and its sampling, then run the same command again"
            )


def _groups(writer: Writer, several: Sequence[Sequence[Question]]) -> Iterator[list[int]]:
    """Put questions of like length together, the longest first: a group is read and written side by side.

    Questions to a remote teacher keep their order: those that are too long for it need not be its first.
    """
    begin = 0
    for some in several:
        order = list(range(len(some)))
        if not writer.remote:
            order.sort(key=lambda at: (-sum(map(len, some[at].pieces)), at))
        size = max(1, len(order)) if writer.remote else writer.at_once
        for start in range(0, len(order), size):
            yield [begin + at for at in order[start : start + size]]
        begin += len(some)


def _asked(
    book: Journal, writer: Writer, questions: Sequence[Question], keys: Sequence[bytes], groups: Sequence[Sequence[int]]
) -> Generator[tuple[int, Draft], None, None]:
    """Ask some groups and keep what comes; a group of a local teacher is kept when it is whole."""
    if not groups:
        return
    spread = writer.spread or partial(_one_after_another, writer)
    for number, answered in spread([[questions[at] for at in group] for group in groups]):
        new = [(groups[number][place], draft) for place, draft in answered]
        journal.keep(book, [_attempt(writer, questions[at], keys[at], draft) for at, draft in new])
        yield from new


def _one_after_another(writer: Writer, groups: Sequence[Group]) -> Iterator[Answered]:
    """Put groups to a teacher in this process."""
    teacher: Teacher = writer.begin()
    for number, group in enumerate(groups):
        if writer.remote:
            yield from ((number, [answer]) for answer in teacher(group))
        else:
            yield number, list(teacher(group))


def _attempt(writer: Writer, question: Question, key: bytes, draft: Draft) -> Attempt:
    return Attempt(
        key,
        question.row_id,
        writer.name,
        question.index,
        draft.reasoning,
        draft.cut,
        draft.tokens,
        draft.prompt_tokens,
        draft.seconds,
        draft.cost,
        draft.failed,
        draft.prompt_cut,
    )


def _draft(found: Attempt) -> Draft:
    told = (found.reasoning, found.cut, found.tokens, found.prompt_tokens, found.seconds, found.cost)
    return Draft(*told, prompt_cut=found.prompt_cut)
