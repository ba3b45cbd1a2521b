"""How undecided a model is inside, layer by layer, where it decides the label."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
from scipy.special import entr

from saywhy.evaluate import Answers
from saywhy.evaluate.answers import arrays_of
from saywhy.evaluate.figures import means
from saywhy.lm.inside import entropies
from saywhy.predict import Classifier
from saywhy.predict.given import asked, why_ids
from saywhy.records import Row

# Means over more rows say nothing more.
MOST_ROWS = 2000
POSITIONS = {"label": "after the text", "reason": "after the reasoning"}


def inside(
    classifier: Classifier,
    rows: Sequence[Row],
    answers: Answers,
    mode: str,
    budget: int,
    drawn: tuple[int, int],
) -> dict[str, Any]:
    """Measure entropies at the last token of the label's cue, the position that decides, as metrics.json has them.

    In the mode `label` the cue stands behind the text, in `reason` behind the reasoning that was written, as saved in
    `answers`. Entropies are in nats: `layers` has those of `lm.inside.Entropies`, embeddings first; figures of two
    models are only to be compared at the same position. `label_entropy`, `top` and `margin` (the likeliest less the
    second) are over the labels, from the saved probabilities before any temperature; `vocabulary_entropy` is over all
    tokens. The second paper (2511.02044) claims more entropy in middle layers and less at the output; which one it
    measures is not known to us, so these are ours. Of more than MOST_ROWS rows as many are drawn.
    `drawn` has the number of resamples behind an interval and the seed.

    Raises ValueError for another mode, and where the rows are not those of the answers.
    """
    if mode not in POSITIONS:
        raise ValueError(f"the mode {mode} decides its label at more than one position")
    if tuple(row.id for row in rows) != answers.ids:
        raise ValueError("the rows are not those that were answered, in their order")
    resamples, seed = drawn
    order = sorted(range(len(rows)), key=lambda at: rows[at].id)
    if len(order) > MOST_ROWS:
        order = sorted(Random(seed).sample(order, MOST_ROWS), key=lambda at: rows[at].id)
    told = asked(classifier, [rows[at] for at in order])
    if mode == "label":
        paths = [told.alone(place) for place in range(len(order))]
    else:
        whys = [why_ids(classifier, answers.reasonings[at] or "") for at in order]
        paths = [told.closed(place, told.fitting(place, why)) for place, why in enumerate(whys)]
    found = entropies(classifier.lm, paths, budget)
    probabilities = arrays_of(classifier.task, answers).probabilities[order]
    ranked = np.sort(np.pad(probabilities, ((0, 0), (1, 0))), axis=1)
    top, second = ranked[:, -1], ranked[:, -2]
    output = [entr(probabilities).sum(1), found.logit_lens[:, -1], top, top - second]
    columns = np.concatenate([found.logit_lens, found.magnitude, found.softmax, np.stack(output, axis=1)], axis=1)
    layers = found.logit_lens.shape[1]
    figures = means(columns, resamples, seed)
    of_layers = zip(figures[:layers], figures[layers : 2 * layers], figures[2 * layers : 3 * layers], strict=True)
    return {
        "n": len(order),
        "position": POSITIONS[mode],
        "layers": [
            {"layer": at, "logit_lens": lens, "magnitude": magnitude, "softmax": softmax}
            for at, (lens, magnitude, softmax) in enumerate(of_layers)
        ],
        **dict(zip(("label_entropy", "vocabulary_entropy", "top", "margin"), figures[3 * layers :], strict=True)),
    }
