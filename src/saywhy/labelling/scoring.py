"""A model on this machine labels: it writes its reasoning, and its label is scored, never parsed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from saywhy.config import Sampling as SamplingConfig
from saywhy.labelling.voting import Answer
from saywhy.lm import bind
from saywhy.lm.encode import make_encoder, prompt_ids, render
from saywhy.lm.generate import Sampling
from saywhy.lm.load import context_of, model_of, tokenizer_of
from saywhy.predict import Classifier, answer
from saywhy.reasoner import leaving_room
from saywhy.records import RequestError, Row, Task
from saywhy.teachers import Draft, Question, Teacher

# With less room than this a text would hardly be seen.
LEAST_ROOM = 16

Loaded = tuple[Any, Any]


def load(base: str, trust_remote_code: bool) -> Loaded:
    """Load a base's tokenizer and weights; every prompt of a teacher shares them."""
    return tokenizer_of(base, trust_remote_code), model_of(base, trust_remote_code)


def scoring(
    loaded: Callable[[], Loaded],
    task: Task,
    arm: str,
    instruction: str,
    sampling: SamplingConfig,
    seed: int,
    budget: int,
    prune: float,
) -> Teacher:
    """Let a base as it is answer like a classifier of this arm whose instruction is the prompt.

    Drafts are the JSON that `read_scored` reads. Raises RequestError where the prompt leaves no room for a text.
    """
    tokenizer, model = loaded()
    lm = leaving_room(bind(model, make_encoder(tokenizer, render(tokenizer, instruction))), sampling.max_tokens)
    if lm.encoder.prompt.room < LEAST_ROOM:
        raise RequestError(
            f"label: the prompt and an answer of label.sampling.max_tokens ({sampling.max_tokens}) leave no room for a "
            f"text in the {context_of(model.config)} tokens of the model; give fewer examples or a smaller limit"
        )
    prompt = replace(lm.encoder.prompt, limit=sampling.max_tokens)
    classifier = Classifier(replace(lm, encoder=replace(lm.encoder, prompt=prompt)), task, arm, {})
    mode = "reason" if arm == "reason_then_label" else "explain"
    drawing = Sampling(sampling.temperature, sampling.top_p)

    def write(questions: Sequence[Question]) -> Iterator[tuple[int, Draft]]:
        began = time.monotonic()
        rows = [Row(q.row_id, "".join(q.pieces), pieces=q.pieces) for q in questions]
        found = answer(classifier, rows, mode, budget, prune=prune, sampling=drawing, seed=seed)
        seconds = (time.monotonic() - began) / len(rows)
        for at, one in enumerate(found):
            told = {"label": one.label, "probability": one.probabilities[one.label], "reasoning": one.reasoning}
            text = json.dumps(told, ensure_ascii=False)
            counts = (round(one.tokens), round(one.prompt_tokens))
            cut = prompt_ids(classifier.lm.encoder, questions[at].pieces)[1]
            yield at, Draft(text, one.forced, *counts, seconds, prompt_cut=cut)

    return write


def read_scored(draft: Draft, answer: Answer) -> Answer:
    """Fill in an answer from a draft of `scoring`."""
    told = json.loads(draft.reasoning)
    return replace(
        answer, label=told["label"], probability=told["probability"], reasoning=told["reasoning"] or "", cut=draft.cut
    )
