"""Stage 1: a small model learns from worked cases to lead from a question to its known answer (2507.00214)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from saywhy import store
from saywhy.config import Sampling, Train
from saywhy.lm import LM, bind
from saywhy.lm.encode import make_encoder, render
from saywhy.lm.folder import load
from saywhy.lm.load import context_of, model_of, tokenizer_of
from saywhy.prompts import REASONER, described, reasoner_instruction, reasoner_pieces, reasoner_question, target
from saywhy.records import RequestError, Task, WorkedCase
from saywhy.teachers import Teacher, local
from saywhy.train.folder import Course, Lesson
from saywhy.train.folder import train as train_folder

CARD = """---
library_name: transformers
tags: [saywhy, conditional-on-the-gold-label]
---
# reasoner

**Conditional on the gold label.** This model was shown questions with their answers and learnt from {cases} worked
cases to write the reasoning between them. It cannot predict a label, and `saywhy predict` refuses it.
"""
BLIND_CARD = """---
library_name: transformers
tags: [saywhy]
---
# reasoner

A control: this model learnt from {cases} worked cases to write a reasoning for a question without its answer. It gives
no label, and `saywhy predict` refuses it.
"""
# No tokenizer needs more for "Reasoning:".
CUE_TOKENS = 16


def lessons(task: Task, cases: Sequence[WorkedCase], label_shown: bool = True) -> list[Lesson]:
    """Put worked cases in the one prompt of the reasoner; cases of this task are asked with its instruction."""
    made = []
    for number, case in enumerate(cases):
        question, answer = case.question, case.answer
        if case.of_this_task:
            question, answer = reasoner_question(task, question), described(task, answer)
        pieces = reasoner_pieces(question, answer if label_shown else None)
        made.append(Lesson(f"case-{number}", pieces, (target(REASONER, "", case.reasoning),)))
    return made


def course(base: str, settings: Train, seed: int, trust_remote_code: bool, label_shown: bool = True) -> Course:
    """Say how the reasoner is trained."""
    instruction = reasoner_instruction(label_shown)
    return Course(REASONER, base, instruction, settings, seed, trust_remote_code=trust_remote_code)


def train(folder: Path, plan: Course, cases: Sequence[Lesson], label_shown: bool = True) -> None:
    """Train the reasoner into `folder`."""
    train_folder(folder, plan, cases, "reasoner")
    store.write_text(folder / "README.md", (CARD if label_shown else BLIND_CARD).format(cases=len(cases)))


def teacher(folder: Path, sampling: Sampling, seed: int, budget: int) -> Teacher:
    """Let a trained reasoner write."""
    arm, lm = load(folder)
    if arm != REASONER:
        raise RequestError(f"{folder} holds a classifier; the teacher `reasoner` needs the reasoner's folder")
    return local(leaving_room(lm, sampling.max_tokens), sampling, seed, budget)


def leaving_room(lm: LM, tokens: int) -> LM:
    """Cut texts so that a reasoning of so many tokens fits behind them."""
    encoder = lm.encoder
    # The opening cue stands there too.
    room = context_of(lm.model.config) - len(encoder.before) - len(encoder.after) - tokens - CUE_TOKENS
    trained = encoder.prompt.room or room
    return replace(lm, encoder=replace(encoder, prompt=replace(encoder.prompt, room=max(1, min(room, trained)))))


def base_as_teacher(
    base: str, instruction: str, sampling: Sampling, seed: int, budget: int, trust_remote_code: bool
) -> Teacher:
    """Let a model write as it is, asked like the reasoner under this instruction."""
    tokenizer = tokenizer_of(base, trust_remote_code)
    model = model_of(base, trust_remote_code)
    encoder = make_encoder(tokenizer, render(tokenizer, instruction))
    return local(leaving_room(bind(model, encoder), sampling.max_tokens), sampling, seed, budget)
