"""Settings of `saywhy label`: who labels texts without labels, how each is asked, and what becomes of their votes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from saywhy.config.basis import Settings, Words, did_you_mean, one_or_more
from saywhy.config.reasonings import GIVEN, Sampling

PromptName = Literal[
    "reason_then_label", "label_then_reason", "reason_then_label_examples", "label_then_reason_examples"
]
PROMPTS: tuple[str, ...] = get_args(PromptName)
WITH_EXAMPLES = tuple(name for name in PROMPTS if name.endswith("_examples"))
OUTPUTS = (".csv", ".tsv", ".jsonl", ".parquet")
# Teachers that only know how to lead from a text to a label that is known.
_NEED_A_LABEL = {
    "reasoner": "the reasoner was trained to lead to a known answer, so it needs a label",
    **dict.fromkeys(GIVEN, "it brings reasonings of rows that have a label already"),
}


class LabelSampling(Sampling):
    """How a teacher's words are drawn while it labels."""

    temperature: float = Field(
        default=0.0, ge=0, description="ours: 0 is greedy; teachers and prompts differ enough for a vote"
    )


class Labelling(Settings):
    """How texts without labels are labelled by the vote of teachers and prompts, as the second paper's were."""

    data: Words = Field(description="texts without labels: a file, a folder or a hub id; 'id:split' picks a part")
    output: Words = Field(description="where they go with their labels: .csv, .tsv, .jsonl or .parquet")
    teachers: Annotated[tuple[str, ...], BeforeValidator(one_or_more)] = Field(
        default=("base",), description="base, api, names of reasonings.named, or a list of these; the paper had three"
    )
    prompts: Annotated[tuple[PromptName, ...] | None, BeforeValidator(one_or_more)] = Field(
        default=None, description="how each teacher is asked; null: all, those with examples where there are any"
    )
    examples: Words | None = Field(
        default=None, description="labelled rows that the prompts with examples show, as label.data; a few"
    )
    merge: Words | None = Field(
        default=None,
        description="the teacher that makes one reasoning of those that lead to the label, as the paper did; "
        "null: the one whose teacher was surest stands",
    )
    sampling: LabelSampling = LabelSampling()
    max_tries: int = Field(
        default=3, ge=1, description="how often a server is asked until its answer can be read; ours"
    )
    least_agreement: float = Field(
        default=0.5, ge=0, le=1, description="a row is disputed where a smaller share voted for its label; ours"
    )
    disputed: Literal["flag", "leave_out"] = Field(
        default="flag", description="disputed rows are flagged in the output, or left out of it"
    )

    @model_validator(mode="after")
    def _check(self) -> Labelling:
        if not self.output.lower().endswith(OUTPUTS):
            raise ValueError(f"output: the name should end in {', '.join(OUTPUTS[:-1])} or {OUTPUTS[-1]}")
        for key, names in (("teachers", self.teachers), ("prompts", self.prompts)):
            if names is not None and (not names or len(set(names)) < len(names)):
                raise ValueError(f"{key} should name at least one, and each once")
        shown = [name for name in self.prompts or () if name in WITH_EXAMPLES]
        if shown and self.examples is None:
            raise ValueError(f"the prompt {shown[0]} shows examples and there are none; name a file in examples")
        if self.examples is not None and self.prompts is not None and not shown:
            raise ValueError(f"examples are shown by {' and '.join(WITH_EXAMPLES)}, and prompts has neither of them")
        return self

    @property
    def asked(self) -> tuple[str, ...]:
        """The prompts that every teacher is asked with."""
        if self.prompts is not None:
            return self.prompts
        return tuple(name for name in PROMPTS if self.examples is not None or name not in WITH_EXAMPLES)

    def check_names(self, named: Collection[str]) -> None:
        """Raise ValueError for a teacher that is not there, or one that cannot label; `named` are the user's own."""
        known = ("base", "api", *named)
        for key, names in (("teachers", self.teachers), ("merge", [self.merge] if self.merge else [])):
            for name in names:
                if name in _NEED_A_LABEL:
                    raise ValueError(f"label.{key}: {name} cannot label: {_NEED_A_LABEL[name]}; take base or api")
                if name not in known:
                    near = did_you_mean(name, known)
                    raise ValueError(f"label.{key}: there is no teacher {name!r}; there are {', '.join(known)}{near}")
