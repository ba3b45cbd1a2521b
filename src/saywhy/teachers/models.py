"""A model on this machine writes: our reasoner, a base as it is, or any other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from saywhy.config import Sampling as SamplingConfig
from saywhy.lm import LM
from saywhy.lm.encode import decode, part_ids, prompt_ids
from saywhy.lm.generate import Asked, Rules, Sampling, draws, generate_each
from saywhy.prompts import Part
from saywhy.records import REASONING_CUE
from saywhy.teachers.shape import Draft, Question, Teacher, paragraph


def local(lm: LM, sampling: SamplingConfig, seed: int, budget: int) -> Teacher:
    """Let a model in memory write.

    Every draw depends on seed, row and candidate alone, so that batch, order and restart change no text. `budget`
    bounds the tokens of a batch.
    """
    encoder = lm.encoder
    opening = part_ids(encoder, Part("cue", REASONING_CUE, ""))

    def write(questions: Sequence[Question]) -> Iterator[tuple[int, Draft]]:
        asked, cut = [], []
        for q in questions:
            head, was_cut = prompt_ids(encoder, q.pieces)
            cut.append(was_cut)
            ids = np.array([*head, *opening], dtype=np.int64)
            asked.append(Asked(ids, draws(sampling.max_tokens, seed, q.row_id, q.index)))
        drawing = Sampling(sampling.temperature, sampling.top_p)
        rules = Rules(frozenset([encoder.end]), encoder.controls, drawing)
        began = time.monotonic()
        for batch in generate_each(lm.model, asked, rules, budget, lm.reads_trees):
            seconds = (time.monotonic() - began) / len(batch)
            for at, one in batch:
                text = paragraph(decode(encoder, one.ids))
                yield (
                    at,
                    Draft(text, not one.ended, len(one.ids), len(asked[at].ids), seconds, prompt_cut=cut[at]),
                )
            began = time.monotonic()

    return write
