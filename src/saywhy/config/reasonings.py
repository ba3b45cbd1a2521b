"""Settings of stage 2: who writes the reasonings, what is measured of them, and which are kept."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from saywhy.config.basis import Items, Settings, Words, did_you_mean, one_or_more
from saywhy.controls import CORRUPT, KINDS

TeacherName = Literal["reasoner", "base", "column", "file", "api"]
TEACHERS: tuple[str, ...] = get_args(TeacherName)
# Those that bring what somebody wrote before: nothing is asked of them twice.
GIVEN = ("column", "file")
CheckName = Literal[
    "empty", "too_long", "too_short", "cut_off", "refusal", "other_language", "copy_of_text", "generic",
    "special_tokens", "cue_inside", "label_named_first", "another_label_named", "contradiction", "no_support",
]  # fmt: skip
# All but `another_label_named`, which also drops what weighs one label against another; `contradiction` does not.
CHECKS: tuple[CheckName, ...] = tuple(name for name in get_args(CheckName) if name != "another_label_named")
CONTROLS = ("none", *KINDS)


def _check_replace(value: Any) -> str:
    if value in CONTROLS or (isinstance(value, str) and CORRUPT.fullmatch(value)):
        return str(value)
    near = did_you_mean(str(value), CONTROLS)
    raise ValueError(f"should be one of {', '.join(CONTROLS)} or corrupt(0.2), not {value!r}{near}")


class ReasoningsFile(Settings):
    """A file that brings reasonings by row id."""

    path: Words = Field(description="a file, a folder or a hub id; 'id:split' picks a part")
    id: Words = Field(default="id", description="the column with the ids of training rows")
    reasoning: Words = Field(default="reasoning", description="a column or a template, as task.text")


class Price(Settings):
    """What a server asks for a million tokens, in any one currency."""

    input: float = Field(ge=0, description="for a million tokens of prompts")
    output: float = Field(ge=0, description="for a million tokens it writes")


class Api(Settings):
    """An OpenAI-compatible server that writes reasonings."""

    base_url: Words | None = Field(default=None, description="null: the client's own")
    model: Words | None = Field(default=None, description="the server's name for its model; no default")
    key_env: Words = Field(default="OPENAI_API_KEY", description="the environment variable that holds the key")
    concurrency: int = Field(default=8, ge=1, description="requests under way at once; ours")
    timeout: float = Field(default=60.0, gt=0, description="seconds that one attempt may take; ours")
    tries: int = Field(default=5, ge=1, description="attempts at one answer, with growing pauses; ours")
    price: Price | None = Field(default=None, description="what tokens cost; null: cost is not reckoned")


class NamedTeacher(Settings):
    """A teacher under a name of its own: a model on this machine, or a server."""

    local: Words | None = Field(default=None, description="a hub id or a folder: this model is asked as it is")
    api: Api | None = Field(default=None, description="a server, as reasonings.api")

    @model_validator(mode="after")
    def _check(self) -> NamedTeacher:
        if (self.local is None) == (self.api is None):
            raise ValueError("a teacher of your own is either local: MODEL or api: {model: …}")
        return self


class Sampling(Settings):
    """How a teacher's words are drawn."""

    temperature: float = Field(default=0.8, ge=0, description="ours: candidates should differ; 0 is greedy")
    top_p: float = Field(default=0.95, gt=0, le=1, description="ours, as temperature")
    max_tokens: int = Field(default=256, ge=1, description="the limit of one reasoning; ours")


class Reasonings(Settings):
    """Who writes the reasonings and which of them are kept."""

    teacher: Annotated[tuple[str, ...], BeforeValidator(one_or_more)] = Field(
        default=(),
        description="reasoner, base, column, file, api, names of `named`, or a list of these; "
        "absent: the reasoner where there are worked cases, else nobody",
    )
    column: Words = Field(default="reasoning", description="the training rows' column, for the teacher column")
    file: ReasoningsFile | None = None
    api: Api = Api()
    named: dict[str, NamedTeacher] = Field(default={}, description="teachers of your own, by name")
    merge: Words | None = Field(
        default=None,
        description="the teacher that makes one reasoning of what the others wrote; null: they stand side by side",
    )
    sampling: Sampling = Sampling()
    candidates: int = Field(default=4, ge=1, description="written per row; ours: the checks need a choice")
    max_tries: int = Field(
        default=3,
        ge=1,
        description="rounds of candidates for a row of which none is kept, the first one included; ours",
    )
    per_row: int = Field(default=1, ge=1, description="kept per row at the most; both papers have one")
    top_up: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="more reasonings for rare classes, until each has this share of what an even split would give it",
    )
    without_reasoning: Literal["label_only", "leave_out"] = Field(
        default="label_only",
        description="rows of which no reasoning is kept: trained with their label, or left out of all arms",
    )
    label_shown: bool = Field(
        default=True,
        description="whoever writes sees the answer; false: a control, the reasoner learns and all write without it",
    )
    replace: Annotated[str, PlainValidator(_check_replace)] = Field(
        default="none",
        description="what stands in for the reasonings, as a control: shuffle, bag_corpus, bag_class, random_vocab, "
        "swap_same, swap_other, filler, corrupt(0.2)",
    )
    checks: Items[CheckName] = Field(
        default=CHECKS,
        description="rules that drop a reasoning; ours: the first paper had none",
    )
    too_long_tokens: int = Field(
        default=256, ge=1, description="the limit of the check too_long, in the student's tokens"
    )
    too_short_tokens: int = Field(default=3, ge=0, description="fewer than these are too_short; ours")
    generic_rows: float = Field(
        default=0.02,
        gt=0,
        le=1,
        description="generic: as good as the same for more than this share of the rows, and for more than 20; ours",
    )
    support: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="measure support, likelihood and early with scorers that never saw the row; "
        "auto: unless column and file are the only teachers",
    )
    support_share: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="a scorer's share of the classifier's steps; ours: two of them are trained",
    )
    least_support: float = Field(
        default=0.0, description="no_support: support is less, in nats, and another label wins; ours"
    )
    early_tokens: int = Field(default=8, ge=1, description="tokens of a reasoning that the figure early reads; ours")

    @model_validator(mode="after")
    def _check(self) -> Reasonings:
        if len(set(self.teacher)) < len(self.teacher) or len(set(self.checks)) < len(self.checks):
            raise ValueError("teacher and checks name each of theirs once")
        for name in self.named:
            if name in TEACHERS or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
                raise ValueError(f"named: {name!r} cannot be a teacher's name: it is empty, odd or already taken")
        known = (*TEACHERS, *self.named)
        for name in (*self.teacher, *([self.merge] if self.merge else [])):
            if name not in known:
                raise ValueError(
                    f"there is no teacher {name!r}; there are {', '.join(known)}{did_you_mean(name, known)}"
                )
        if self.merge in GIVEN or self.merge == "reasoner":
            raise ValueError(f"merge: {self.merge} cannot: name base, api or a teacher of your own")
        if self.merge is not None and len(self.teacher) < 2:
            raise ValueError("merge needs two teachers or more, whose reasonings it makes one of")
        if "file" in self.teacher and self.file is None:
            raise ValueError("the teacher file needs file: {path: …}")
        if self.top_up is not None and self.brought and self.merge is None:
            raise ValueError(
                f"top_up: a {' or a '.join(self.teacher)} has one reasoning a row and writes no more; name a teacher "
                "that writes beside, or set classifier.train.class_weights to balanced"
            )
        if self.per_row > self.candidates:
            raise ValueError(f"per_row ({self.per_row}) is more than candidates ({self.candidates})")
        return self

    @property
    def brought(self) -> bool:
        """Whether there are teachers, and the reasonings of all come with the rows."""
        return bool(self.teacher) and set(self.teacher) <= set(GIVEN)

    @property
    def measured(self) -> bool:
        """Whether figures are taken that need a model."""
        if self.support == "auto":
            return bool(self.teacher) and not self.brought
        return self.support == "always"
