"""The ways to ask a trained model. Labels are scored in every one of them, never parsed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from saywhy.lm.cache import Alone, Reading, batches, open_reading, reckoned
from saywhy.lm.encode import decode, part_ids, prompt_ids
from saywhy.lm.forward import reads_trunk
from saywhy.lm.generate import Leaving, Rules, Sampling, draws, write
from saywhy.lm.score import Trie, score, trie_of
from saywhy.metrics import apply_prior, apply_temperature, give_back_pruned, scale_of
from saywhy.predict.folder import Classifier, check_mode
from saywhy.progress import Advance, track
from saywhy.prompts import Part, row_pieces, target
from saywhy.records import LABEL_CUE, REASONING_CUE, Prediction, RequestError, Row
from saywhy.trees import Floats, Ints

# Rows that are held as tokens at one time, however large the file is.
ROWS_AT_ONCE = 2048
BUDGET = 16384
# A label is left out when its beginning is so much less likely than the best label (design: Labels are scored).
PRUNE = 1e-4
# With this nothing is read beyond what tells the likeliest label: of a trie's beginnings always the likeliest next.
LIKELIEST = 1.0
# Reasonings sampled for a vote, and how they are drawn: as the candidates of a teacher are by default.
VOTES = 5
VARIED = Sampling(temperature=0.8, top_p=0.95)
CERTAIN = Sampling()
# Told between two tokens the ids of the rows that still write and the tokens that each text has so far (a row that is
# voted about has several); names the rows that nobody waits for any more, whose texts then end.
Watch = Callable[[Sequence[tuple[str, Sequence[int]]]], Collection[str]]


def answer(
    classifier: Classifier,
    rows: Sequence[Row],
    mode: str,
    budget: int = BUDGET,
    title: str = "",
    prune: float = PRUNE,
    sampling: Sampling = CERTAIN,
    seed: int = 0,
    watch: Watch | None = None,
) -> list[Prediction]:
    """Predict rows in one mode, probabilities before temperature, in the order of the rows.

    `budget` bounds the tokens that are held at one time. With a `title` progress is shown under it. A label less likely
    than `prune` times the best one may be left out; its probability is then 0, and `pruned` bounds what is missing.
    `sampling` says how a reasoning is drawn where only one is, by default the likeliest; what is drawn depends on the
    seed and the row's text alone.
    `watch` looks on while reasonings are written; ids of rows are then unique.
    """
    check_mode(classifier, mode)
    ways: dict[str, Way] = {
        "label": Way(_label, LABEL_CUE, 0),
        "reason": Way(_reason, REASONING_CUE, 1),
        "explain": Way(_explain, LABEL_CUE, 1),
        "vote": Way(_vote, REASONING_CUE, VOTES),
        "ensemble": Way(_ensemble, LABEL_CUE, 1),
        "adaptive": Way(_adaptive, LABEL_CUE, 1),
    }
    found: list[Prediction] = []
    trunk_part = len(classifier.trunk.ids) / max(1, len(rows)) if classifier.trunk is not None else 0.0
    with track(title, len(rows), "rows", bool(title)) as advance:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            found += _asked(classifier, some, ways[mode], budget, prune, trunk_part, advance, (sampling, seed), watch)
    return found


@dataclass(frozen=True)
class Way:
    """How a mode asks: what answers a batch, the cue behind which it begins, and how many texts it writes of a row."""

    ask: Callable[[Batch], list[Prediction]]
    cue: str
    texts: int


@dataclass(frozen=True)
class Batch:
    """Rows that are asked together, with their prompts up to the cue, the tries of their labels and their reading.

    `trunk` is each row's part of the tokens that all rows of a call share. `sampling` and `seed` say how a reasoning is
    drawn where only one is.
    """

    classifier: Classifier
    rows: Sequence[Row]
    heads: Sequence[Ints]
    tries: Sequence[Trie]
    reading: Reading | Alone
    prune: float
    trunk: float
    sampling: Sampling
    seed: int
    watch: Watch | None

    def part(self, places: Sequence[int]) -> Batch:
        """Give some rows, any of them more than once, with a reading of their own."""
        return replace(
            self,
            rows=[self.rows[at] for at in places],
            heads=[self.heads[at] for at in places],
            tries=[self.tries[at] for at in places],
            reading=self.reading.part(places),
        )

    def write(self, drawn: Sequence[Floats], rules: Rules, leave: Callable[[Leaving], None]) -> None:
        """Write a text behind every row, with whoever watches told of rows by their ids."""
        watch, names = self.watch, [row.id for row in self.rows]
        if watch is None:
            write(self.reading, drawn, rules, leave)
            return

        def told(texts: Sequence[tuple[int, Sequence[int]]]) -> list[int]:
            gone = watch([(names[row], ids) for row, ids in texts])
            return [row for row, _ in texts if names[row] in gone]

        write(self.reading, drawn, rules, leave, watch=told)


def _asked(
    classifier: Classifier,
    rows: Sequence[Row],
    way: Way,
    budget: int,
    prune: float,
    trunk_part: float,
    advance: Advance,
    drawing: tuple[Sampling, int],
    watch: Watch | None,
) -> list[Prediction]:
    """Answer rows batch by batch; prompts of equal length stand together, what all of them share is read once."""
    lm, trunk = classifier.lm, classifier.trunk
    heads = [np.array(prompt_ids(lm.encoder, row_pieces(row))[0], dtype=np.int64) for row in rows]
    cue = part_ids(lm.encoder, Part("cue", way.cue, ""))
    shared = answers_of(classifier, classifier.task.labels) if classifier.task.labels else None
    known = 0 if trunk is None else len(trunk.ids)
    own = [len(head) - (known if reads_trunk(lm.model) else 0) + len(cue) for head in heads]
    held = [_held(row, length, way, shared, lm.encoder.prompt.limit) for row, length in zip(rows, own, strict=True)]
    if not way.texts:
        held = reckoned(lm.model, held, own, budget)
    found: dict[int, Prediction] = {}
    for places in batches(held, budget if lm.reads_trees else 0):
        some = [rows[at] for at in places]
        # Batch and reading have no name here, so that they go before the next are made.
        answers = way.ask(
            Batch(
                classifier,
                some,
                [heads[at] for at in places],
                [answers_of(classifier, row.choices) if row.choices else _known(shared) for row in some],
                open_reading(lm.model, trunk, [np.append(heads[at], cue) for at in places]),
                prune,
                trunk_part,
                *drawing,
                watch,
            )
        )
        advance(len(places), sum(a.tokens for a in answers), "")
        # A model that reads alone reads its prompt again for every part of an answer.
        prompts = [trunk_part + len(heads[at]) - known if lm.reads_trees else 0.0 for at in places]
        for at, prompt, one in zip(places, prompts, answers, strict=True):
            found[at] = replace(one, prompt_tokens=prompt)
    return [found[at] for at in range(len(rows))]


def _held(row: Row, length: int, way: Way, shared: Trie | None, limit: int) -> int:
    """Bound the tokens that are held for a row: its prompt, all that may be written behind it, and its answers."""
    # Of choices the characters, since they become tokens only in their batch.
    answers = sum(len(choice) + 2 for choice in row.choices) if row.choices else len(_known(shared).token)
    return answers + (way.texts * (length + limit) if way.texts else length)


def _known(shared: Trie | None) -> Trie:
    if shared is None:
        raise RequestError("each row of this task has its own choices, and one brings none")
    return shared


def too_long(classifier: Classifier, rows: Sequence[Row]) -> dict[str, int]:
    """Count the rows whose text does not fit and is cut in the middle, by label."""
    cut = Counter(row.label or "" for row in rows if prompt_ids(classifier.lm.encoder, row_pieces(row))[1])
    return dict(cut)


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
    texts = [answers[at] for at in written] or answers
    read = Counter(answer.strict for answer in texts if answer.strict is not None).most_common(1)
    return Prediction(
        label=names[best],
        probabilities=dict(zip(names, shares.tolist(), strict=True)),
        reasoning=answers[max(written, key=lambda at: each[at, best])].reasoning if written else None,
        tokens=sum(answer.tokens for answer in answers),
        forced=all(answer.forced for answer in texts),
        strict=read[0][0] if read else None,
        pruned=float(pruned.mean()),
    )


def _label(batch: Batch) -> list[Prediction]:
    """The label alone, scored behind the prompt."""
    return _scored(batch)


def _reason(batch: Batch) -> list[Prediction]:
    """Write one reasoning, by default the likeliest, then score the labels behind it."""
    return _reasoned(batch, _drawn(batch), batch.sampling)


def _drawn(batch: Batch) -> list[Floats]:
    """Give what decides each row's one reasoning; nothing needs to differ where the likeliest is taken."""
    limit = batch.classifier.lm.encoder.prompt.limit
    if batch.sampling.temperature == 0:
        return [draws(limit)] * len(batch.rows)
    return [draws(limit, "one", batch.seed, *row_pieces(row)) for row in batch.rows]


def _vote(batch: Batch) -> list[Prediction]:
    """Sample several reasonings, score the labels behind each, and take the mean (2203.11171 counts votes instead).

    What is drawn depends on the row's text and nothing else, so that the same text always gets the same answer.
    """
    limit = batch.classifier.lm.encoder.prompt.limit
    shared = batch.reading.spent + batch.trunk
    drawn = [draws(limit, "vote", *row_pieces(row), k) for row in batch.rows for k in range(VOTES)]
    found = _reasoned(batch.part([at for at in range(len(batch.rows)) for _ in range(VOTES)]), drawn, VARIED)
    each = [mean(found[at : at + VOTES]) for at in range(0, len(found), VOTES)]
    return [replace(one, tokens=one.tokens - (VOTES - 1) * twice) for one, twice in zip(each, shared, strict=True)]


def _ensemble(batch: Batch) -> list[Prediction]:
    """Take the mean of what the label alone and the reasoned answer say."""
    first = _label(batch)
    _read_on(batch, REASONING_CUE)
    # The tokens of the second answer are those of the first and what came after.
    return [
        replace(mean([alone, reasoned]), tokens=reasoned.tokens)
        for alone, reasoned in zip(first, _reason(batch), strict=True)
    ]


def _adaptive(batch: Batch) -> list[Prediction]:
    """Give the label alone where it is sure enough, and reason about the other rows."""
    classifier = batch.classifier
    found = _label(batch)
    sure = confidence(calibrated(classifier, found, "label"))
    unsure = np.flatnonzero(sure < (classifier.threshold or 0.0)).tolist()
    if unsure:
        rest = batch.part(unsure)
        _read_on(rest, REASONING_CUE)
        for at, reasoned in zip(unsure, _reason(rest), strict=True):
            found[at] = reasoned
    return found


def _explain(batch: Batch) -> list[Prediction]:
    """The label first, then the reasoning after it."""
    encoder = batch.classifier.lm.encoder
    predictions = _label(batch)
    paths = []
    for head, prediction in zip(batch.heads, predictions, strict=True):
        cue, label, reasoning_cue, *_ = target("label_then_reason", prediction.label, "")
        paths.append(np.append(head, [i for part in (cue, label, reasoning_cue) for i in part_ids(encoder, part)]))
    batch.reading.read(paths)

    def leave(gone: Leaving) -> None:
        for row, ids, ended, spent in zip(gone.rows, gone.ids, gone.ended, gone.spent, strict=True):
            reasoning = " ".join(decode(encoder, ids).split())
            tokens = batch.trunk + float(spent)
            predictions[row] = replace(predictions[row], reasoning=reasoning, forced=not ended, tokens=tokens)

    batch.write(_drawn(batch), Rules(frozenset([encoder.end]), encoder.controls, batch.sampling), leave)
    return predictions


def _read_on(batch: Batch, cue: str) -> None:
    """Put another cue behind the prompts."""
    ids = part_ids(batch.classifier.lm.encoder, Part("cue", cue, ""))
    batch.reading.read([np.append(head, ids) for head in batch.heads])


def _reasoned(batch: Batch, drawn: Sequence[Floats], sampling: Sampling) -> list[Prediction]:
    """Write a reasoning until the label's cue or the limit, put the canonical cue in its place, score the labels."""
    encoder = batch.classifier.lm.encoder
    colons = batch.classifier.colons
    opening = part_ids(encoder, Part("cue", REASONING_CUE, ""))
    closing = part_ids(encoder, Part("cue", f"\n{LABEL_CUE}", ""))
    found: dict[int, Prediction] = {}

    def cue_stands(ids: Sequence[int]) -> bool:
        return ids[-1] in colons and LABEL_CUE in decode(encoder, ids[-16:])

    def leave(gone: Leaving) -> None:
        texts = [decode(encoder, ids).partition(LABEL_CUE) for ids in gone.ids]
        reasonings = [" ".join(text.split()) for text, _, _ in texts]
        own = [part_ids(encoder, Part("reasoning", f" {reasoning}", "")) for reasoning in reasonings]
        reading = gone.part()
        reading.read(
            [np.append(batch.heads[row], [*opening, *why, *closing]) for row, why in zip(gone.rows, own, strict=True)]
        )
        whole = replace(
            batch,
            rows=[batch.rows[row] for row in gone.rows],
            heads=[batch.heads[row] for row in gone.rows],
            tries=[batch.tries[row] for row in gone.rows],
            reading=reading,
        )
        for row, label, reasoning, (_, cue, _) in zip(gone.rows, _scored(whole), reasonings, texts, strict=True):
            found[row] = replace(label, reasoning=reasoning, forced=not cue, strict=label.label if cue else None)

    rules = Rules(frozenset([encoder.end]), encoder.controls, sampling, cue_stands)
    batch.write(drawn, rules, leave)
    return [found[row] for row in range(len(batch.rows))]


def _scored(batch: Batch) -> list[Prediction]:
    """Score every label of every row: the probability of its whole token sequence and of what follows it."""
    found = score(batch.reading, batch.tries, batch.prune)
    return [
        _prediction(row.choices or batch.classifier.task.labels, log_probs, float(pruned), batch.trunk + float(spent))
        for row, log_probs, pruned, spent in zip(
            batch.rows, found.log_probs, found.pruned, batch.reading.spent, strict=True
        )
    ]


def answers_of(classifier: Classifier, labels: Sequence[str]) -> Trie:
    """Build the trie of all token sequences that complete a label: its own, and one of those that may follow it."""
    ids = [part_ids(classifier.lm.encoder, Part("label", f" {label}", "")) for label in labels]
    return trie_of([[(*label, follow) for follow in _follows(classifier)] for label in ids])


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
    """Apply the temperature that was fitted on dev rows for a mode, then the prior; labels stay as they are.

    So a label is the likeliest of what training saw. Where it balanced them that is the rule for the best mean recall,
    and another label may be likelier under the corrected probabilities, whose likeliest is the rule for accuracy.
    A prediction abstains where its label is then less likely than `abstain_below`, None for what the mode's own
    calibration says. Ratings get their expectation.
    """
    temperature = classifier.temperatures.get(calibrated_as(mode), 1.0)
    below = abstaining(classifier, mode, abstain_below)
    scale = scale_of(classifier.task.labels) if classifier.task.ordinal else None
    for prediction in predictions:
        names = list(prediction.probabilities)
        raw = np.array([[prediction.probabilities[name] for name in names]])
        whole = give_back_pruned(raw, np.array([prediction.pruned]), np.ones_like(raw, dtype=bool))
        scaled = apply_temperature(whole, temperature)
        if classifier.prior:
            scaled = apply_prior(scaled, np.array([classifier.prior.get(name, 1.0) for name in names]))
        probabilities = dict(zip(names, scaled[0].tolist(), strict=True))
        yield replace(
            prediction,
            probabilities=probabilities,
            expected=None if scale is None else float(scaled[0] @ scale),
            abstained=probabilities[prediction.label] < below,
        )


def abstaining(classifier: Classifier, mode: str, abstain_below: float | None) -> float:
    """Give the probability below which a label abstains in a mode, 0 where none does."""
    return classifier.abstain_below.get(calibrated_as(mode), 0.0) if abstain_below is None else abstain_below


def calibrated_as(mode: str) -> str:
    """Name the mode whose calibration holds: an explanation stands behind a label that the mode `label` gives."""
    return "label" if mode == "explain" else mode
