"""Whatever writes reasonings: functions from questions to drafts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from saywhy.config import Sampling as SamplingConfig
from saywhy.lm import LM
from saywhy.lm.encode import decode, part_ids, prompt_ids
from saywhy.lm.generate import Asked, Rules, Sampling, draws, generate
from saywhy.prompts import Part, reasoner_pieces
from saywhy.records import REASONING_CUE


@dataclass(frozen=True)
class Question:
    """A row put to a teacher: its question, its known answer, and which candidate is asked for."""

    row_id: str
    question: str
    answer: str
    index: int


@dataclass(frozen=True)
class Draft:
    """What a teacher wrote: one paragraph; `cut` says that it reached its limit first. `tokens` counts its length."""

    reasoning: str
    cut: bool = False
    tokens: int = 0


Teacher = Callable[[Sequence[Question]], list[Draft]]


def local(lm: LM, sampling: SamplingConfig, seed: int, budget: int) -> Teacher:
    """Let a model in memory write: our reasoner, or a base as it is.

    Every draw depends on seed, row and candidate alone, so that batch, order and restart change no text. `budget`
    bounds the tokens of a batch.
    """
    encoder = lm.encoder
    opening = part_ids(encoder, Part("cue", REASONING_CUE, ""))

    def write(questions: Sequence[Question]) -> list[Draft]:
        asked = []
        for q in questions:
            head, _ = prompt_ids(encoder, reasoner_pieces(q.question, q.answer))
            ids = np.array([*head, *opening], dtype=np.int64)
            asked.append(Asked(ids, draws(sampling.max_tokens, seed, q.row_id, q.index)))
        drawing = Sampling(sampling.temperature, sampling.top_p)
        rules = Rules(frozenset([encoder.end]), encoder.controls, drawing)
        written = generate(lm.model, asked, rules, budget, lm.reads_trees)
        return [Draft(paragraph(decode(encoder, one.ids)), not one.ended, len(one.ids)) for one in written]

    return write


def given(reasonings: Mapping[str, str]) -> Teacher:
    """Take reasonings that came with the rows, or in a file, by row id; a row without one gets an empty draft."""

    def write(questions: Sequence[Question]) -> list[Draft]:
        return [Draft(paragraph(reasonings.get(q.row_id, ""))) for q in questions]

    return write


def paragraph(text: str) -> str:
    """Store a reasoning as one paragraph."""
    return " ".join(text.split())
