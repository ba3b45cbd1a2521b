"""The ways to ask a trained model. Labels are scored in every one of them, never parsed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from saywhy.lm import LM
from saywhy.lm.encode import decode, part_ids, prompt_ids
from saywhy.lm.generate import Asked, Sampling, Written, draws, generate
from saywhy.lm.score import score, trie_of
from saywhy.metrics import apply_temperature, give_back_pruned, scale_of
from saywhy.predict.folder import Classifier, check_mode
from saywhy.progress import track
from saywhy.prompts import Part, row_pieces, target
from saywhy.records import LABEL_CUE, REASONING_CUE, Prediction, RequestError, Row
from saywhy.trees import Floats

# Rows that are held as tokens at one time, however large the file is.
ROWS_AT_ONCE = 2048
BUDGET = 16384
# A label is left out when its beginning is so much less likely than the best label (design: Labels are scored).
PRUNE = 1e-4
# Reasonings sampled for a vote, and how they are drawn: as the candidates of a teacher are by default.
VOTES = 5
VARIED = Sampling(temperature=0.8, top_p=0.95)


def answer(
    classifier: Classifier,
    rows: Sequence[Row],
    mode: str,
    budget: int = BUDGET,
    title: str = "",
    prune: float = PRUNE,
) -> list[Prediction]:
    """Predict rows in one mode, probabilities before temperature, in the order of the rows.

    `budget` bounds the tokens of a forward pass. With a `title` progress is shown under it. A label less likely than
    `prune` times the best one may be left out; its probability is then 0, and `pruned` bounds what is missing.
    """
    check_mode(classifier, mode)
    ways = {
        "label": _label,
        "reason": _reason,
        "explain": _explain,
        "vote": _vote,
        "ensemble": _ensemble,
        "adaptive": _adaptive,
    }
    ask = ways[mode]
    found: list[Prediction] = []
    with track(title, len(rows), "rows", bool(title)) as advance:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            answers = ask(classifier, some, budget, prune)
            advance(len(some), sum(a.tokens for a in answers), "")
            found += answers
    return found


def too_long(classifier: Classifier, rows: Sequence[Row]) -> dict[str, int]:
    """Count the rows whose text does not fit and is cut in the middle, by label."""
    cut = Counter(row.label or "" for row in rows if prompt_ids(classifier.lm.encoder, row_pieces(row))[1])
    return dict(cut)


def _heads(classifier: Classifier, rows: Sequence[Row]) -> list[list[int]]:
    return [prompt_ids(classifier.lm.encoder, row_pieces(row))[0] for row in rows]


def _label(classifier: Classifier, rows: Sequence[Row], budget: int, prune: float) -> list[Prediction]:
    """The label alone, scored behind the prompt."""
    cue = part_ids(classifier.lm.encoder, Part("cue", LABEL_CUE, ""))
    heads = [[*head, *cue] for head in _heads(classifier, rows)]
    return _scored(classifier, rows, heads, budget, prune)


def _reason(classifier: Classifier, rows: Sequence[Row], budget: int, prune: float) -> list[Prediction]:
    """Write the likeliest reasoning, then score the labels behind it."""
    certain = [draws(classifier.lm.encoder.prompt.limit)] * len(rows)
    return _reasoned(classifier, rows, certain, Sampling(), budget, prune)


def _vote(classifier: Classifier, rows: Sequence[Row], budget: int, prune: float) -> list[Prediction]:
    """Sample several reasonings, score the labels behind each, and take the mean (2203.11171 counts votes instead).

    What is drawn depends on the row's text and nothing else, so that the same text always gets the same answer.
    """
    limit = classifier.lm.encoder.prompt.limit
    each = [(row, k) for row in rows for k in range(VOTES)]
    drawn = [draws(limit, "vote", *row_pieces(row), k) for row, k in each]
    found = _reasoned(classifier, [row for row, _ in each], drawn, VARIED, budget, prune)
    return [mean(found[at : at + VOTES]) for at in range(0, len(found), VOTES)]


def _ensemble(classifier: Classifier, rows: Sequence[Row], budget: int, prune: float) -> list[Prediction]:
    """Take the mean of what the label alone and the reasoned answer say."""
    pairs = zip(_label(classifier, rows, budget, prune), _reason(classifier, rows, budget, prune), strict=True)
    return [mean(pair) for pair in pairs]


def _adaptive(classifier: Classifier, rows: Sequence[Row], budget: int, prune: float) -> list[Prediction]:
    """Give the label alone where it is sure enough, and reason about the other rows."""
    if classifier.threshold is None:
        raise RequestError(
            "mode 'adaptive' needs a threshold, which `saywhy run` chooses on dev rows and keeps in calibration.json; "
            "ask for label or reason, or name the arm's folder in a finished run"
        )
    first = _label(classifier, rows, budget, prune)
    sure = confidence(calibrated(classifier, first, "label"))
    unsure = np.flatnonzero(sure < classifier.threshold).tolist()
    second = _reason(classifier, [rows[at] for at in unsure], budget, prune) if unsure else []
    for at, reasoned in zip(unsure, second, strict=True):
        first[at] = replace(reasoned, tokens=first[at].tokens + reasoned.tokens)
    return first


def confidence(predictions: Iterable[Prediction]) -> Floats:
    """Give the probability of each prediction's label."""
    return np.array([prediction.probabilities[prediction.label] for prediction in predictions])


def mean(answers: Sequence[Prediction]) -> Prediction:
    """Put several answers about one row together: the mean distribution, and the reasoning that supports it most.

    `strict` is the label that most of the texts give when they are read strictly, of equals the first.
    """
    names = list(answers[0].probabilities)
    each = np.array([[answer.probabilities[name] for name in names] for answer in answers])
    pruned = np.array([answer.pruned for answer in answers])
    shares = give_back_pruned(each, pruned, np.ones_like(each, dtype=bool)).mean(0)
    best = int(np.argmax(shares))
    written = [at for at, answer in enumerate(answers) if answer.reasoning is not None]
    read = Counter(answer.strict for answer in answers if answer.strict is not None).most_common(1)
    return Prediction(
        label=names[best],
        probabilities=dict(zip(names, shares.tolist(), strict=True)),
        reasoning=answers[max(written, key=lambda at: each[at, best])].reasoning if written else None,
        tokens=sum(answer.tokens for answer in answers),
        forced=all(answer.forced for answer in answers),
        strict=read[0][0] if read else None,
    )


def _reasoned(
    classifier: Classifier,
    rows: Sequence[Row],
    drawn: Sequence[Floats],
    sampling: Sampling,
    budget: int,
    prune: float,
) -> list[Prediction]:
    """Write a reasoning until the label's cue or the limit, put the canonical cue in its place, score the labels."""
    encoder = classifier.lm.encoder
    opening = part_ids(encoder, Part("cue", REASONING_CUE, ""))
    heads = [[*head, *opening] for head in _heads(classifier, rows)]
    colons = tokens_with_colon(classifier.lm)

    def cue_stands(ids: Sequence[int]) -> bool:
        return ids[-1] in colons and LABEL_CUE in decode(encoder, ids[-16:])

    written = _write(classifier.lm, heads, drawn, sampling, budget, cue_stands)
    texts = [decode(encoder, one.ids).partition(LABEL_CUE) for one in written]
    reasonings = [" ".join(text.split()) for text, _, _ in texts]
    closing = part_ids(encoder, Part("cue", f"\n{LABEL_CUE}", ""))
    asked = [
        [*head, *(part_ids(encoder, Part("reasoning", f" {reasoning}", ""))), *closing]
        for head, reasoning in zip(heads, reasonings, strict=True)
    ]
    predictions = _scored(classifier, rows, asked, budget, prune)
    return [
        replace(
            prediction,
            reasoning=reasoning,
            forced=not cue,
            strict=prediction.label if cue else None,
            tokens=prediction.tokens + one.tokens,
        )
        for prediction, reasoning, (_, cue, _), one in zip(predictions, reasonings, texts, written, strict=True)
    ]


def _explain(classifier: Classifier, rows: Sequence[Row], budget: int, prune: float) -> list[Prediction]:
    """The label first, then the reasoning after it."""
    encoder = classifier.lm.encoder
    predictions = _label(classifier, rows, budget, prune)
    heads = []
    for head, prediction in zip(_heads(classifier, rows), predictions, strict=True):
        cue, label, reasoning_cue, *_ = target("label_then_reason", prediction.label, "")
        heads.append([*head, *(i for part in (cue, label, reasoning_cue) for i in part_ids(encoder, part))])
    certain = [draws(encoder.prompt.limit)] * len(heads)
    written = _write(classifier.lm, heads, certain, Sampling(), budget, None)
    return [
        replace(
            prediction,
            reasoning=" ".join(decode(encoder, one.ids).split()),
            forced=not one.ended,
            tokens=prediction.tokens + one.tokens,
        )
        for prediction, one in zip(predictions, written, strict=True)
    ]


def tokens_with_colon(lm: LM) -> frozenset[int]:
    """Give the tokens that can end a cue, so that written texts are read for one only where it may just have ended."""
    tokens = lm.encoder.tokenizer.get_vocab()
    return frozenset(index for token, index in tokens.items() if ":" in token or token == "<0x3A>")


def _write(
    lm: LM,
    heads: Sequence[Sequence[int]],
    drawn: Sequence[Floats],
    sampling: Sampling,
    budget: int,
    stop: Callable[[Sequence[int]], bool] | None,
) -> Sequence[Written]:
    asked = [Asked(np.array(head, dtype=np.int64), some) for head, some in zip(heads, drawn, strict=True)]
    ends = frozenset([lm.encoder.end])
    return generate(lm.model, asked, ends, lm.encoder.controls, sampling, budget, stop, lm.reads_trees)


def _scored(
    classifier: Classifier, rows: Sequence[Row], heads: Sequence[Sequence[int]], budget: int, prune: float
) -> list[Prediction]:
    """Score every label of every row: the probability of its whole token sequence and of what follows it."""
    trie = cache(lambda labels: trie_of(_sequences(classifier, labels)))
    lm, choices = classifier.lm, [row.choices or classifier.task.labels for row in rows]
    prompts = [np.array(head, dtype=np.int64) for head in heads]
    found = score(lm.model, prompts, [trie(labels) for labels in choices], prune, budget, lm.reads_trees)
    return [
        _prediction(labels, log_probs, float(pruned), found.tokens / len(rows))
        for labels, log_probs, pruned in zip(choices, found.log_probs, found.pruned, strict=True)
    ]


def _sequences(classifier: Classifier, labels: Sequence[str]) -> list[list[tuple[int, ...]]]:
    """Give all token sequences that complete each label: its own, and one of those that may follow it."""
    ids = [part_ids(classifier.lm.encoder, Part("label", f" {label}", "")) for label in labels]
    return [[(*label, follow) for follow in _follows(classifier)] for label in ids]


def _follows(classifier: Classifier) -> tuple[int, ...]:
    """Give the tokens that may follow a label: the end, and the cue of the reasoning where labels come first."""
    encoder = classifier.lm.encoder
    if classifier.arm != "label_then_reason":
        return (encoder.end,)
    return (encoder.end, part_ids(encoder, Part("cue", f"\n{REASONING_CUE}", ""))[0])


def _prediction(labels: Sequence[str], log_probs: Floats, pruned: float, tokens: float) -> Prediction:
    values = np.exp(log_probs - log_probs.max())
    values /= values.sum()
    best = labels[int(np.argmax(values))]
    named = dict(zip(labels, values.tolist(), strict=True))
    return Prediction(best, named, tokens=tokens, strict=best, pruned=pruned)


def calibrated(
    classifier: Classifier, predictions: Iterable[Prediction], mode: str, abstain_below: float | None = None
) -> Iterator[Prediction]:
    """Apply the temperature that was fitted on dev rows for a mode; labels stay as they are.

    A prediction abstains where its label is then less likely than `abstain_below`, None for what the mode's own
    calibration says. Ratings get their expectation.
    """
    entry = calibrated_as(mode)
    temperature = classifier.temperatures.get(entry, 1.0)
    below = classifier.abstain_below.get(entry, 0.0) if abstain_below is None else abstain_below
    scale = scale_of(classifier.task.labels) if classifier.task.ordinal else None
    for prediction in predictions:
        names = list(prediction.probabilities)
        raw = np.array([[prediction.probabilities[name] for name in names]])
        whole = give_back_pruned(raw, np.array([prediction.pruned]), np.ones_like(raw, dtype=bool))
        scaled = apply_temperature(whole, temperature)[0]
        probabilities = dict(zip(names, scaled.tolist(), strict=True))
        yield replace(
            prediction,
            probabilities=probabilities,
            expected=None if scale is None else float(scaled @ scale),
            abstained=probabilities[prediction.label] < below,
        )


def calibrated_as(mode: str) -> str:
    """Name the mode whose calibration holds: an explanation stands behind a label that the mode `label` gives."""
    return "label" if mode == "explain" else mode
