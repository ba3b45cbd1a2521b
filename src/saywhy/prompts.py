"""Every sentence that a model sees, as plain text. Tokens are made from it in `lm`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saywhy.records import LABEL_CUE, REASONING_CUE, Row, Task

REASONER_INSTRUCTION = "Explain in one short paragraph how the question leads to its answer."
MERGE_INSTRUCTION = (
    "Several people explained how the question leads to its answer. Make one short paragraph of their explanations: "
    "keep what they agree on and what the question bears out, and leave out the rest."
)
# The control that is not shown the answer (`reasonings.label_shown: false`).
BLIND_INSTRUCTION = "Explain in one short paragraph what answers the question."
BLIND_MERGE_INSTRUCTION = (
    "Several people explained what answers the question. Make one short paragraph of their explanations: keep what "
    "they agree on and what the question bears out, and leave out the rest."
)

# How a teacher is asked to label: by each prompt's arm, in whose order reasoning and label are wanted.
LABELLING_PROMPTS: dict[str, str] = {
    "reason_then_label": "reason_then_label",
    "label_then_reason": "label_then_reason",
    "reason_then_label_examples": "reason_then_label",
    "label_then_reason_examples": "label_then_reason",
}
_ASKED_FOR = {
    "reason_then_label": (
        "First explain in one short paragraph what in the text decides it, then give the label.",
        f"{REASONING_CUE} one short paragraph\n{LABEL_CUE} one label of the list, word for word",
    ),
    "label_then_reason": (
        "First give the label, then explain in one short paragraph what in the text decided it.",
        f"{LABEL_CUE} one label of the list, word for word\n{REASONING_CUE} one short paragraph",
    ),
}

# One arm is one way to train; these are the modes that each was taught (design: Words).
MODES: dict[str, tuple[str, ...]] = {
    "label_only": ("label",),
    "label_then_reason": ("label", "explain"),
    "reason_then_label": ("reason", "vote"),
    "both": ("label", "reason", "vote", "ensemble", "adaptive"),
}
REASONER = "reasoner"


@dataclass(frozen=True)
class Part:
    """A piece of a target before it is tokenized: `name` is one of cue, reasoning, label, end.

    `loss` says whose share of the loss its tokens belong to: "label", "reasoning", or "" for the leading cue, which is
    forced when the model is asked and so is never trained.
    """

    name: str
    text: str
    loss: str


def task_instruction(task: Task) -> str:
    """Write what stands before every row: the instruction, and the labels with their descriptions."""
    if not task.labels:
        return task.instruction
    return f"{task.instruction}\n" + "\n".join(f"- {described(task, label)}" for label in task.labels)


def described(task: Task, label: str) -> str:
    """Write a label with its description, where it has one."""
    description = task.descriptions.get(label)
    return f"{label}: {description}" if description else label


def labelling_instruction(task: Task, prompt: str, examples: Sequence[tuple[Row, str]] = ()) -> str:
    """Write what stands before every text that a teacher labels: the question, the labels, the form of the answer.

    `examples` are labelled rows with their reasoning, "" where they have none; the prompts of that name show them.
    """
    arm = LABELLING_PROMPTS[prompt]
    wanted, form = _ASKED_FOR[arm]
    lines = [task_instruction(task)]
    if task.ordinal:
        lines.append("These labels are a scale, the lowest first.")
    lines.append(f"\n{wanted} Give every text exactly one label. Answer in this form and write nothing else:\n{form}")
    for row, reasoning in examples if prompt.endswith("_examples") else ():
        answer = "".join(part.text for part in target(arm, row.label or "", reasoning or None))
        lines.append(f"\nAn example:\n{row.text}\n{answer}")
    return "\n".join(lines)


def row_pieces(row: Row) -> tuple[str, ...]:
    """Give what the model sees of a row, `literal, value, literal, …`: its text and its own choices."""
    pieces = row.pieces or ("", row.text, "")
    if row.choices is None:
        return pieces
    listed = "\n" + "\n".join(f"- {choice}" for choice in row.choices)
    return (*pieces[:-1], pieces[-1] + listed)


def reasoner_instruction(label_shown: bool) -> str:
    """Say what whoever writes reasonings is asked to do."""
    return REASONER_INSTRUCTION if label_shown else BLIND_INSTRUCTION


def merge_instruction(label_shown: bool) -> str:
    """Say what whoever makes one reasoning of several is asked to do."""
    return MERGE_INSTRUCTION if label_shown else BLIND_MERGE_INSTRUCTION


def reasoner_pieces(question: str, answer: str | None) -> tuple[str, ...]:
    """Give what the reasoner sees, in training and in writing alike: a question and its known answer.

    None for the answer is the control that is not shown it.
    """
    return ("Question: ", question, *(() if answer is None else ("\nAnswer: ", answer)), "")


def merge_pieces(question: str, answer: str | None, reasonings: Sequence[str]) -> tuple[str, ...]:
    """Give what a teacher sees that makes one reasoning of several: the question, its answer and each explanation."""
    told = [piece for number, one in enumerate(reasonings, start=1) for piece in (f"\nExplanation {number}: ", one)]
    return (*reasoner_pieces(question, answer)[:-1], *told, "")


def row_question(task: Task, row: Row, label_shown: bool = True) -> tuple[str, ...]:
    """Give what a teacher sees of a labelled row: the question that it puts and, where it is shown, its answer."""
    return reasoner_pieces(reasoner_question(task, row.text), _answer(task, row, label_shown))


def merged_question(task: Task, row: Row, reasonings: Sequence[str], label_shown: bool = True) -> tuple[str, ...]:
    """Give what the teacher sees that merges the reasonings written for a labelled row."""
    return merge_pieces(reasoner_question(task, row.text), _answer(task, row, label_shown), reasonings)


def _answer(task: Task, row: Row, label_shown: bool) -> str | None:
    return described(task, row.label or "") if label_shown else None


def reasoner_question(task: Task, text: str) -> str:
    """Put a row's text as a question: the instruction, a newline and the text."""
    return f"{task.instruction}\n{text}"


def target(arm: str, label: str, reasoning: str | None) -> tuple[Part, ...]:
    """Write the target of one row in one arm.

    Without a reasoning every arm has the label-only target, so that all arms see the same rows. `arm` may also be
    "reasoner", whose target is the reasoning alone.
    """
    if arm == REASONER:
        return (_cue(REASONING_CUE), Part("reasoning", f" {reasoning}", "reasoning"), Part("end", "", "reasoning"))
    if arm == "label_only" or reasoning is None:
        return (_cue(LABEL_CUE), Part("label", f" {label}", "label"), Part("end", "", "label"))
    if arm == "reason_then_label":
        return (
            _cue(REASONING_CUE),
            Part("reasoning", f" {reasoning}", "reasoning"),
            Part("cue", f"\n{LABEL_CUE}", "reasoning"),
            Part("label", f" {label}", "label"),
            Part("end", "", "label"),
        )
    if arm == "label_then_reason":
        return (
            _cue(LABEL_CUE),
            Part("label", f" {label}", "label"),
            Part("cue", f"\n{REASONING_CUE}", "label"),
            Part("reasoning", f" {reasoning}", "reasoning"),
            Part("end", "", "reasoning"),
        )
    raise ValueError(f"no single target for the arm {arm!r}: `both` has those of label_only and reason_then_label")


def read_target(text: str) -> tuple[str, str, str | None]:
    """Read a target's text, without its end, back into an arm that has such targets, the label and the reasoning.

    A text without a cue is a label.
    """
    if text.startswith(REASONING_CUE) and f"\n{LABEL_CUE}" in text:
        reasoning, _, label = text.removeprefix(REASONING_CUE).rpartition(f"\n{LABEL_CUE}")
        return "reason_then_label", label.removeprefix(" "), reasoning.removeprefix(" ")
    if not text.startswith(LABEL_CUE):
        return "label_only", text, None
    label, cue, reasoning = text.removeprefix(LABEL_CUE).partition(f"\n{REASONING_CUE}")
    if not cue:
        return "label_only", label.removeprefix(" "), None
    return "label_then_reason", label.removeprefix(" "), reasoning.removeprefix(" ")


def targets(arm: str, label: str, reasonings: tuple[str, ...]) -> list[tuple[Part, ...]]:
    """Write all targets of one row: one a kept reasoning, and for `both` the label-only answer beside them."""
    if arm == "label_only" or not reasonings:
        return [target("label_only", label, None)]
    if arm == "both":
        return [target("label_only", label, None), *(target("reason_then_label", label, r) for r in reasonings)]
    return [target(arm, label, reasoning) for reasoning in reasonings]


def _cue(text: str) -> Part:
    return Part("cue", text, "")
