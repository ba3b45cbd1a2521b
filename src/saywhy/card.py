"""The model card of an arm as a pure function of what is known: after its training, and more after its evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from saywhy import controls
from saywhy.prompts import MODES
from saywhy.records import Task

COLUMNS = (
    "asked by", "rows", "accuracy", "95% interval", "macro F1", "mean recall", "NLL", "ECE", "temperature",
    "tokens a row",
)  # fmt: skip
BALANCED = (
    "Labels were balanced in training: the label given is the likeliest among equally frequent ones, and\n"
    "probabilities are put back to the shares of the training rows, so that another label may have the highest.\n"
)


@dataclass(frozen=True)
class Known:
    """What a card is written from.

    `facts` is what `train.json` holds; `base` is named without a path. `data_hash` identifies the training rows, "" and
    `metrics` (what `metrics.json` holds) is None where the arm was trained but not evaluated. `control` names what it
    was taught in the place of reasonings. `calibration` is what was chosen on dev for each mode.
    """

    name: str
    arm: str
    base: str
    rows: int
    facts: Mapping[str, Any]
    data_hash: str = ""
    metrics: Mapping[str, Any] | None = None
    control: str = "none"
    calibration: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def controlled(self) -> bool:
        """Whether the arm has learnt from a control."""
        return self.control != "none" and self.arm != "label_only"


def write(task: Task, known: Known) -> str:
    """Write the model card of an arm: what it answers, its figures, how it was trained and asked, and its limits."""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [saywhy]
---
# {known.name}

A small language model that answers the task {task.name} ("{_line(task.instruction)}"), made by saywhy as the arm
`{known.arm}`. Modes: {", ".join(f"`{mode}`" for mode in MODES[known.arm])}. Labels are scored, never parsed.

## Labels

{_labels(task)}

## Figures

{_figures(known)}

## Training

{_training(known)}

## Limits

{_limits(task, known)}

## Use

The prompt is that of `prompt.json`:

```python
import saywhy

classifier = saywhy.load("this/folder")
classifier(...)
```
"""


def _labels(task: Task) -> str:
    if not task.labels:
        return "Each row brings its own choices."
    listed = [
        f"- `{label}`: {_line(task.descriptions[label])}" if task.descriptions.get(label) else f"- `{label}`"
        for label in task.labels
    ]
    return "\n".join([*listed, *(["", "They are a rating scale, lowest first."] if task.ordinal else [])])


def _figures(known: Known) -> str:
    if known.metrics is None:
        return "It was not evaluated: there are no figures, and its probabilities are not calibrated."
    modes = known.metrics["arms"][known.name]["modes"]
    balanced = any(found.get("prior") for found in modes.values())
    rows = [_row(f"`{mode}`", found["test"], found["temperature"]) for mode, found in modes.items()]
    rows += [_row(f"{name} (floor)", scores, None) for name, scores in known.metrics["floors"].items() if scores]
    lines = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *rows]
    return (
        "Test rows, which chose nothing; shares in percent, NLL in nats. Accuracy has Wilson's interval over rows.\n"
        "NLL and ECE are after the mode's temperature, which was fitted on dev rows.\n"
        + (BALANCED if balanced else "")
        + "\n"
        + "\n".join(f"| {' | '.join(line)} |" for line in lines)
        + "".join(f"\n\n{sentence}" for sentence in (*_recommended(known), *_chosen(known)))
    )


def _chosen(known: Known) -> Iterator[str]:
    """Say what else was chosen on dev rows: where adaptive reasons, and below what a label is not given."""
    threshold = known.calibration.get("adaptive", {}).get("threshold")
    if threshold:
        yield f"Mode `adaptive` reasons where the calibrated probability of the label alone is below {threshold:.3f}."
    elif threshold is not None:
        yield "Reasoning gained nothing on dev, so mode `adaptive` gives what mode `label` gives."
    below = {one["abstain_below"] for one in known.calibration.values() if "abstain_below" in one}
    if below:
        yield f"An answer abstains where its label is less likely than {min(below):g}."


def _row(name: str, scores: Mapping[str, Any], temperature: float | None) -> tuple[str, ...]:
    low, high = scores["accuracy_ci95"] or (None, None)
    return (
        name,
        str(scores["n"]),
        _percent(scores["accuracy"]),
        f"{_percent(low)} to {_percent(high)}",
        _percent(scores["macro_f1"]),
        _percent(scores["mean_recall"]),
        _number(scores["nll"], 3),
        _number(scores["ece"], 3),
        _number(temperature, 2),
        _number(scores["tokens_per_row"] or None, 0),
    )


def _recommended(known: Known) -> Iterator[str]:
    recommended = (known.metrics or {}).get("recommended")
    if recommended and recommended["arm"] == known.name:
        yield f"Of its run's arms and modes this arm, in the mode `{recommended['mode']}`, is the recommended one."
    elif recommended:
        yield f"Its run recommends another arm: `{recommended['arm']}`, in the mode `{recommended['mode']}`."


def _training(known: Known) -> str:
    facts = known.facts
    kept = facts["best_step"] or facts["steps"]
    lines = [
        f"- Base: {known.base}",
        f"- {known.rows} rows for {facts['steps']} steps; the weights after step {kept} were kept.",
        f"- {_trained(facts.get('adapter'))}, in {facts['precision']}.",
    ]
    if (facts.get("adapter") or {}).get("merged") is False:
        lines.append(
            "- Where `base.json` stands beside this card, the folder holds the adapter alone and is asked with the\n"
            "  base that it names; `saywhy export` writes a whole model."
        )
    if known.controlled:
        lines.append(
            f"- **Trained on a control, not on reasonings:** `{known.control}` stood in for them, "
            f"{controls.meaning(known.control)}."
        )
    if known.data_hash:
        lines.append(f"- The training rows have the hash `{known.data_hash}`.")
    return "\n".join(lines)


def _trained(adapter: Mapping[str, Any] | None) -> str:
    if adapter is None:
        return "All weights were trained"
    which = "all linear layers" if adapter["targets"] == "all" else ", ".join(adapter["targets"])
    size = f"rank {adapter['rank']}, alpha {adapter['alpha']}, dropout {adapter['dropout']}"
    held = "" if adapter["bits"] is None else f" over a base held in {adapter['bits']} bits"
    return f"An adapter was trained (LoRA, {size}, {which}){held}"


def _limits(task: Task, known: Known) -> str:
    one_of = "one of its row's choices" if not task.labels else "one of these labels"
    lines = [
        f"- Every text is answered with {one_of}, whatever it is about.",
        "- The figures hold for texts like those of the test rows.",
    ]
    if known.controlled:
        lines.append("- What it writes is what the control taught it: do not read it as a reasoning.")
    elif known.arm != "label_only":
        lines.append(f"- The reasoning is written by the model; see the faithfulness figures. {_faithfulness(known)}")
    return "\n".join(lines)


def _faithfulness(known: Known) -> str:
    """Say how far reasonings decide answers, where a probe of the run measured it."""
    probes = ((known.metrics or {}).get("probes") or {}).get("faithfulness") or {}
    found = probes.get(f"{known.name}/reason")
    if found is None:
        return (
            "Whether a reasoning is why\n"
            "  the model answered as it did was not measured (`evaluate.probes: [faithfulness]`)."
        )
    followed, changed = found["swap_other"]["followed"]["share"], found["mistake"]["changed"]["share"]
    return (
        f"Behind another row's\n  reasoning {_percent(followed)}% of the answers are that row's, and one mistake put "
        f"into their own changes\n  {_percent(changed)}%; the run's report has the rest."
    )


def _line(text: str) -> str:
    return " ".join(text.split())


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
