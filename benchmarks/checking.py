"""Does checking pay? Q→RA on the bundled task with reasoners of several strengths, and with corrupted reasonings.

    python benchmarks/checking.py -o runs/checking [--seeds 0 1 2] [--set key=value …]

For each seed a reasoner learns from 150, 400 and 1,000 worked cases and writes four candidates a row; `all` trains
`reason_then_label` on the first of them, without any check, `checked` on what the built-in checks and support choose.
`corrupted` takes the reasonings of the reasoner of 400 cases, a fifth of them exchanged for another label's. The last
lines are the table: accuracy on 1,000 test rows, means over the seeds. `--table` only prints it.
"""

from __future__ import annotations

from pathlib import Path

EXAMPLE = Path(__file__).parent.parent / "examples" / "tickets.yaml"
CASES = (150, 400, 1000)
CORRUPTED_OF = 400
SHARE = 0.2
SETTINGS = (
    "reasoner.train.steps=1000",
    "classifier.train.steps=600",
    "classifier.arms=[{name: reason_then_label, arm: reason_then_label,"
    " train: {learning_rate: 1e-2, weight_decay: 1.0}}]",
    "reasonings.candidates=4",
    "reasonings.sampling.temperature=0.7",
    "evaluate.modes=[reason]",
    "evaluate.budget.tokens_per_row=null",
)
KINDS = {
    "all": ("reasonings.checks=[]", "reasonings.support=never", "reasonings.candidates=1"),
    "checked": ("reasonings.support=always",),
}
