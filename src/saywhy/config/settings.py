"""Every setting, with its default and where that comes from; `card` is the model card of syvai/emotion-reasoning-1b."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    PlainValidator,
    PrivateAttr,
    Tag,
    field_validator,
    model_validator,
)

from saywhy.config.basis import Items, Settings, Words, did_you_mean, to_tuple
from saywhy.config.labelling import Labelling
from saywhy.config.reasonings import Reasonings
from saywhy.config.study import Study

ArmName = Literal["label_only", "reason_then_label", "label_then_reason", "both"]
ModeName = Literal["label", "reason", "explain", "vote", "ensemble", "adaptive"]
TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]
ProbeName = Literal["faithfulness", "inside", "latency"]
# What stands in a run's folder beside the arms' own folders.
RUN_FILES = (
    "base", "reasoner", "reasonings", "scorer-0", "scorer-1", "answers.sqlite", "predictions", "probes",
    "trackers", "floors", "config.yaml", "journal.jsonl", "metrics.json", "report.html",
)  # fmt: skip

BALANCED_TWICE = (
    "class_weights and sampler are both balanced: each alone makes every label count the same, both would correct "
    "twice; set one of them to none or shuffled"
)
LEARNING_RATE = 2e-5  # model card of syvai/emotion-reasoning-1b
SCRATCH_LEARNING_RATE = 2e-3  # ours: random weights of a few million parameters learn too slowly at 2e-5
LORA_LEARNING_RATE = 2e-4  # 2305.14314 (QLoRA), appendix B: for models of 7 and 13 billion parameters


def label_fault(label: str) -> str:
    """Say why a label could not be scored, "" where it can."""
    if not label.strip():
        return "is empty"
    if len(label.splitlines()) > 1 or label != label.strip():
        return "starts or ends with white space or holds a line break, so that it could not be told apart in an answer"
    return ""


# What YAML gives, made into what a field holds. A ValueError's text goes on where the key stands.


def _check_rows(value: Any) -> int | str:
    if value == "all":
        return "all"
    if type(value) is int and value >= 2:
        return int(value)
    raise ValueError(f"should be all or a whole number from 2 on, not {value!r}")


def _check_split(value: Any) -> str | float:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, float) and 0 < value < 1:
        return value
    raise ValueError(f"should be a file, a folder, a hub id or a share of train between 0 and 1, not {value!r}")


def _check_label_weight(value: Any) -> str | float:
    if value in ("balanced", "tokens"):
        return str(value)
    if type(value) in (int, float) and 0 < value < float("inf"):
        return float(value)
    raise ValueError(f"should be balanced, tokens or a number above 0, not {value!r}")


def _check_warmup(value: Any) -> float:
    if type(value) in (int, float) and (0 <= value < 1 or (value >= 1 and value == value // 1)):
        return float(value)
    raise ValueError(f"should be a share of the steps from 0 to below 1, or a whole number of steps, not {value!r}")


def _check_targets(value: Any) -> str | tuple[str, ...]:
    if value == "all":
        return "all"
    names = to_tuple(value)
    if isinstance(names, tuple) and names and all(isinstance(name, str) and name.strip() for name in names):
        return names
    raise ValueError(f"should be all or a list of names such as [q_proj, v_proj], not {value!r}")


def _check_labels(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, list | dict):
        raise ValueError(f"should be a list of labels, or a mapping from label to description, not {value!r}")
    described = value if isinstance(value, dict) else {}
    for label in value:
        if not isinstance(label, str):
            raise ValueError(f"should hold labels, not {label!r}")
        if fault := label_fault(label):
            raise ValueError(f"label {label!r} {fault}")
        if not isinstance(described.get(label), str | None):
            raise ValueError(f"label {label!r} should be described by one text")
    if len(set(value)) < max(2, len(value)):
        raise ValueError("should hold at least two labels, each once")
    return {label: (described.get(label) or "").strip() for label in value}


def _kind_of_base(value: Any) -> str:
    return "(text)" if isinstance(value, str) and value != "scratch" else "(mapping)"


def _one_or_list(value: Any) -> str:
    return "(list)" if isinstance(value, list | tuple) else "(mapping)"


Rows = Annotated[int | Literal["all"], PlainValidator(_check_rows)]
Split = Annotated[str | float, PlainValidator(_check_split)]


class TaskConfig(Settings):
    """What is asked of every row."""

    name: str = Field(
        pattern=r"^[^\s./\\:*?\"<>|][^/\\:*?\"<>|\n]*$", description="names the task and its folder: no / \\ : * ?"
    )
    instruction: Words = Field(description="the sentence that stands before every text")
    labels: Annotated[dict[str, str] | None, BeforeValidator(_check_labels)] = Field(
        default=None,
        description='label to description ("" for none), in the order of every table; null: read from train',
    )
    text: Words = Field(
        default="text",
        description="a column, or a template over columns such as 'Premise: {premise}'; conversations become text",
    )
    label: Words = Field(default="label", description="the column with one label a row")
    choices: Words | None = Field(default=None, description="the column with each row's own answers")
    ordinal: bool = Field(default=False, description="the labels are a rating scale, lowest first")

    @model_validator(mode="after")
    def _check(self) -> TaskConfig:
        if self.choices is not None and (self.labels is not None or self.ordinal):
            raise ValueError("choices are each row's own answers: leave labels and ordinal out, or choices")
        return self


class DataConfig(Settings):
    """Where the rows are."""

    train: Words = Field(description="a file (csv, tsv, jsonl, parquet), a folder or a hub id; 'id:split' picks a part")
    dev: Split = Field(default=0.1, description="likewise, or a share of train; ours: customary")
    test: Split = Field(default=0.2, description="likewise; a share is cut off first; ours: customary")
    id: Words | None = Field(default=None, description="the column of unique ids; null: a hash of the row's columns")
    label_names: Annotated[tuple[str, ...] | None, BeforeValidator(to_tuple)] = Field(
        default=None, description="names of integer labels from 0 on; null: the data set's own, where it has them"
    )
    rows: Rows = Field(default="all", description="a number draws that many training rows: seeded, stratified, nested")
    dev_rows: Rows = Field(
        default="all", description="a number draws that many rows of dev: by class, the same ones whatever the seed"
    )
    test_rows: Rows = Field(default="all", description="likewise of test")
    balanced: bool = Field(
        default=False,
        description="draw the same number of training rows of every label: rows divided by the labels, or with all as "
        "many as the rarest label has",
    )
    on_overflow: Literal["cut", "drop", "error"] = Field(
        default="cut", description="what happens to a text that does not fit"
    )

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        shares = [share for share in (self.dev, self.test) if isinstance(share, float)]
        if sum(shares) >= 1:
            raise ValueError(f"the shares dev and test ({' + '.join(map(str, shares))}) leave nothing to train on")
        for name in self.label_names or ():
            if fault := label_fault(name):
                raise ValueError(f"label_names: {name!r} {fault}")
        if self.label_names is not None and len(set(self.label_names)) < max(2, len(self.label_names)):
            raise ValueError("label_names should hold at least two names, each once")
        return self


class Scratch(Settings):
    """A small Llama with random weights and a tokenizer trained on the rows."""

    width: int = Field(
        default=128, ge=8, description="size of a hidden state; ours: learns in minutes on two CPU cores"
    )
    layers: int = Field(default=4, ge=1, description="number of layers; ours, as width")
    vocabulary: int = Field(
        default=3000, ge=260, description="tokens of the tokenizer, 256 of them bytes; ours, as width"
    )
    heads: int = Field(default=4, ge=1, description="attention heads; width is a multiple of twice this")

    @model_validator(mode="after")
    def _check(self) -> Scratch:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} should be a multiple of twice heads ({2 * self.heads})")
        return self


class FromScratch(Settings):
    """A base that is made instead of loaded."""

    scratch: Scratch = Scratch()

    @classmethod
    def _written(cls, value: Any) -> Any:
        return {"scratch": {}} if value == "scratch" else value


Base = Annotated[
    Annotated[Words, Tag("(text)")] | Annotated[FromScratch, Tag("(mapping)")], Discriminator(_kind_of_base)
]


class Lora(Settings):
    """A small adapter that is trained in the place of all weights (2106.09685)."""

    rank: int = Field(default=16, ge=1, description="rank of each change to a matrix; ours: customary")
    alpha: int = Field(default=32, ge=1, description="scales changes by alpha / rank; ours: twice the rank, customary")
    targets: Annotated[Literal["all"] | tuple[str, ...], BeforeValidator(_check_targets)] = Field(
        default="all",
        description="all: every linear layer but the head (2305.14314, section 4); a list: what their names end with",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of an adapter's inputs left out; peft's default")


class Train(Settings):
    """How one model is trained."""

    epochs: float = Field(
        default=3.0, gt=0, description="passes over the rows; ours: the card's one starves a label-only arm"
    )
    steps: int | None = Field(default=None, ge=1, description="optimizer steps; overrides epochs")
    rows_per_step: int | None = Field(
        default=32, ge=1, description="rows a step, so that all arms take the same steps; ours"
    )
    tokens_per_step: int | None = Field(default=None, ge=1, description="tokens a step instead, as both papers have it")
    learning_rate: float = Field(
        default=LEARNING_RATE,
        gt=0,
        description="highest rate; 2e-5 from the card, 2e-3 for scratch, 2e-4 with lora (2305.14314, appendix B)",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="from the card")
    warmup: Annotated[float, PlainValidator(_check_warmup)] = Field(
        default=0.05, description="steps with rising rate: below 1 a share of all, from 1 on a number; the card has 10"
    )
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="muon: learns few rows from scratch in far fewer steps; torch 2.9 or later"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="from the card")
    clip: float = Field(default=1.0, gt=0, description="longest gradient of a step; the default of common trainers")
    label_weight: Annotated[Literal["balanced", "tokens"] | float, PlainValidator(_check_label_weight)] = Field(
        default="balanced",
        description="label against reasoning in the loss; ours: best as measured; tokens: the papers'",
    )
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="balanced: the tokens of rare labels weigh more; the same in all arms"
    )
    sampler: Literal["shuffled", "balanced"] = Field(
        default="shuffled", description="balanced: every label is drawn equally often instead; the same in all arms"
    )
    lora: Lora | None = Field(default=None, description="train an adapter; null: all weights")
    bits: Literal[4] | None = Field(
        default=None, description="4: hold the base in 4 bits while lora trains (2305.14314); needs a GPU and bf16"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute layers again in the backward pass: less memory, more time, the same result"
    )
    precision: Literal["auto", "bf16", "float32"] = Field(
        default="auto", description="auto: the faster of two timed steps"
    )
    layout: Literal["auto", "tree", "rows"] = Field(default="auto", description="auto: the faster of the first steps")
    pack_tokens: int = Field(
        default=2048,
        ge=16,
        description="longest pack, but for a row that nearly fills it; ours: bounds memory, changes no result",
    )
    evaluations: int = Field(
        default=4, ge=1, description="how often the dev split is asked which checkpoint is best; card: 2"
    )
    dev_rows: int = Field(default=400, ge=1, description="dev rows used for that; ours: five points of 95% interval")
    patience: int | None = Field(
        default=None, ge=1, description="end after so many evaluations in a row that are no new best; null: never"
    )
    checkpoint_every: int = Field(default=50, ge=1, description="steps that a killed run loses at most; ours")

    def deciding(self) -> dict[str, Any]:
        """Give what decides which model comes out; the rest may change while a stopped training goes on."""
        return self.model_dump(exclude={"pack_tokens", "checkpoint_every"})

    @classmethod
    def _written(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if value.get("bits") is not None and value.get("precision", "auto") == "auto":
            # What 4 bits stand for is multiplied in bf16, so float32 would promise more than it keeps.
            value = {**value, "precision": "bf16"}
        rows, tokens = value.get("rows_per_step"), value.get("tokens_per_step")
        if rows is not None and tokens is not None:
            raise ValueError("rows_per_step and tokens_per_step exclude each other: set one of them to null")
        if tokens is not None:
            return {**value, "rows_per_step": None}
        if rows is not None:
            return {**value, "tokens_per_step": None}
        return {key: setting for key, setting in value.items() if key != "rows_per_step"}

    @model_validator(mode="after")
    def _check(self) -> Train:
        if self.class_weights == self.sampler == "balanced":
            raise ValueError(BALANCED_TWICE)
        return self

    @property
    def is_balanced(self) -> bool:
        """Whether labels count otherwise than their rows are many."""
        return "balanced" in (self.class_weights, self.sampler)


class ReasonerTrain(Train):
    """How the reasoner is trained."""

    epochs: float = Field(default=1.0, gt=0, description="from the card")

    @model_validator(mode="after")
    def _check_reasoner(self) -> ReasonerTrain:
        if self.is_balanced:
            raise ValueError("worked cases have no labels to balance: set class_weights to none, sampler to shuffled")
        if self.patience is not None:
            raise ValueError("patience: no dev rows judge the reasoner, so it would never end early; set it to null")
        return self


class WorkedCases(Settings):
    """Where the worked cases are, as columns or templates."""

    data: Words = Field(description="a file, a folder or a hub id; 'id:split' picks a part")
    question: Words = Field(
        default="question", description="a column or a template, into lists too: '{messages[0].content}'"
    )
    answer: Words = Field(default="answer", description="likewise")
    reasoning: Words = Field(default="reasoning", description="likewise")
    of_this_task: bool = Field(default=False, description="they are cases of this task: ask them with its instruction")
    rows: Rows = Field(default="all", description="a number draws that many of them: seeded, nested")


class Reasoner(Settings):
    """The model that learns to lead from a question to its answer."""

    base: Base | None = Field(default=None, description="null: the config's base")
    worked_cases: (
        Annotated[
            Annotated[WorkedCases, Tag("(mapping)")] | Annotated[Items[WorkedCases], Tag("(list)")],
            Discriminator(_one_or_list),
        ]
        | None
    ) = Field(default=None, description="what it learns from, or a list of such sources; null: there is no reasoner")
    train: ReasonerTrain = ReasonerTrain()

    @field_validator("worked_cases")
    @classmethod
    def _check_cases(cls, told: WorkedCases | tuple[WorkedCases, ...] | None) -> Any:
        if told == ():
            raise ValueError("is an empty list: name a source, or null for none")
        return told

    @property
    def sources(self) -> tuple[WorkedCases, ...]:
        """Every source of worked cases, none where there is no reasoner."""
        told = self.worked_cases
        return (told,) if isinstance(told, WorkedCases) else told or ()


class Arm(Settings):
    """One way to train a classifier, under a name of its own."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.]*$", description="names its folder; absent: as arm")
    arm: ArmName = Field(description="what is taught: the label, the reasoning first, it second, or both orders")
    train: Train = Field(default=Train(), description="what differs from classifier.train; once loaded, all of it")
    match: Literal["tokens", "steps"] | None = Field(
        default=None, description="as many steps as the arm `to` takes, or as compute as many tokens as it does"
    )
    to: str | None = Field(default=None, description="the name of the arm it is matched with; goes with `match`")

    @classmethod
    def _written(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value, "arm": value}
        if isinstance(value, dict) and "name" not in value and "arm" in value:
            return {"name": value["arm"], **value}
        return value


class Classifier(Settings):
    """The arms to compare."""

    base: Base | None = Field(default=None, description="null: the config's base")
    arms: Items[Arm] = Field(
        default=tuple(Arm(name=name, arm=name) for name in ("label_only", "reason_then_label", "label_then_reason")),
        description="both papers compare the first with one of the others",
    )
    train: Train = Train()
    save: Literal["merged", "adapter"] = Field(
        default="merged",
        description="what an arm with lora leaves: a whole model, or its adapter, which is asked with its base",
    )

    @field_validator("arms")
    @classmethod
    def _check_arms(cls, arms: tuple[Arm, ...]) -> tuple[Arm, ...]:
        names = [arm.name for arm in arms]
        if not arms:
            raise ValueError("should hold at least one arm")
        # Some file systems do not tell `A` from `a`.
        if len({name.casefold() for name in names}) < len(names):
            raise ValueError("two arms have the same name: give one of them another `name`")
        for name in names:
            if name.casefold() in RUN_FILES:
                raise ValueError(f"arm '{name}': a run keeps something else under this name: give it another `name`")
        for arm in arms:
            if (arm.match is None) != (arm.to is None):
                raise ValueError(f"arm '{arm.name}': match and to go together")
            others = [other.name for other in arms if other.match is None]
            if arm.to is not None and arm.to not in others:
                near = did_you_mean(arm.to, others)
                raise ValueError(f"arm '{arm.name}': to: no arm '{arm.to}' is trained without a match{near}")
        return arms

    @model_validator(mode="after")
    def _check_training(self) -> Classifier:
        first = self.arms[0]
        for key in ("class_weights", "sampler"):
            for arm in self.arms:
                if (value := self.setting(arm, key)) != self.setting(first, key):
                    raise ValueError(
                        f"arm '{arm.name}': train.{key} is {value}, and {self.setting(first, key)} in '{first.name}': "
                        "two things at once would differ between them; set it in classifier.train, for all arms"
                    )
        if self.setting(first, "class_weights") == self.setting(first, "sampler") == "balanced":
            raise ValueError(BALANCED_TWICE)
        for arm in self.arms:
            patience, evaluations = self.setting(arm, "patience"), self.setting(arm, "evaluations")
            if patience is not None and patience >= evaluations:
                raise ValueError(
                    f"arm '{arm.name}': patience {patience} never ends a training of {evaluations} evaluations; raise "
                    "evaluations"
                )
        return self

    def setting(self, arm: Arm, key: str) -> Any:
        """Give a training setting of an arm: its own, or that of all arms."""
        return getattr(arm.train if key in arm.train.model_fields_set else self.train, key)


class Budget(Settings):
    """What an answer may cost: it chooses arm and mode on dev, and where the mode adaptive reasons."""

    keep: float = Field(
        default=0.95, gt=0, le=1, description="share of what reasoning gains on dev that adaptive has to keep"
    )
    tokens_per_row: float | None = Field(
        default=None,
        gt=0,
        description="tokens a row that may be computed on average, as dev counts them; whatever keep is",
    )


class Evaluate(Settings):
    """How the arms are asked."""

    max_tokens_in_flight: int = Field(
        default=16384, ge=16, description="tokens asked at once; ours: bounds memory only"
    )
    prune: float = Field(
        default=1e-4, ge=0, le=1, description="leave a label whose beginning is so much less likely than the best label"
    )
    explain_rows: int = Field(
        default=200, ge=0, description="rows that are explained after their label; ours: enough to read"
    )
    bootstrap: int = Field(default=2000, ge=100, description="resamples behind each interval; customary")
    modes: Annotated[tuple[ModeName, ...] | None, BeforeValidator(to_tuple)] = Field(
        default=None,
        description="only these modes, where an arm was taught them; null: all but vote and ensemble, which cost more",
    )
    zero_shot: bool = Field(
        default=False, description="a floor beside the others: the classifier's base as it is, its labels scored"
    )
    encoder: Words | None = Field(
        default=None,
        description="a floor beside the others: this encoder finetuned, a hub id or a folder; null: none",
    )
    budget: Budget = Budget()
    abstain_below: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="the least probability of a label that is answered with; kept for predict; null: answer every row",
    )
    probes: Items[ProbeName] = Field(
        default=(), description="what is looked into beside the answers to test; each costs more: docs/evidence.md"
    )
    batches: Items[Annotated[int, Field(ge=1)]] = Field(
        default=(1, 8, 32), min_length=1, description="rows asked at once by the probe latency: one user, some, many"
    )


class Config(Settings):
    """Everything a run is told."""

    task: TaskConfig
    data: DataConfig
    base: Base | None = Field(default=None, description="hub id, folder or scratch; both papers: a pretrained model")
    trust_remote_code: bool = Field(
        default=False, description="run code that a model's repository brings; off for safety"
    )
    reasoner: Reasoner = Reasoner()
    reasonings: Reasonings = Reasonings()
    classifier: Classifier = Classifier()
    evaluate: Evaluate = Evaluate()
    recommend_by: Literal["macro_f1", "accuracy", "mean_recall"] = Field(
        default="macro_f1",
        description="what chooses on the dev split; ours: the papers' gain hid a collapsed rare class",
    )
    trackers: Annotated[tuple[TrackerName, ...], BeforeValidator(to_tuple)] = Field(
        default=(), description="programs that are told every step of a training; changes no result"
    )
    label: Labelling | None = Field(default=None, description="how `saywhy label` labels texts that have no label")
    study: Study | None = None
    seed: int = Field(default=0, ge=0, lt=2**32, description="of everything that is drawn")
    _folder: Path = PrivateAttr(default=Path())

    @property
    def folder(self) -> Path:
        """The folder that relative paths are relative to."""
        return self._folder

    def __eq__(self, other: object) -> bool:
        # Paths are absolute once loaded, so the same settings mean the same wherever they are written down.
        return isinstance(other, Config) and self.model_dump() == other.model_dump()

    @model_validator(mode="after")
    def _check(self) -> Config:
        if "reasoner" in self.reasonings.teacher and self.reasoner.worked_cases is None:
            raise ValueError("reasonings.teacher: the reasoner needs reasoner.worked_cases to learn from")
        if self.task.choices is not None and self.data.balanced:
            raise ValueError("data.balanced: it balances labels that rows share, and task.choices gives each its own")
        if self.task.choices is not None and self.reasonings.top_up is not None:
            raise ValueError(
                "reasonings.top_up: it tops up labels that rows share, and task.choices gives each row its own"
            )
        balances = {self.classifier.setting(self.classifier.arms[0], key) for key in ("class_weights", "sampler")}
        if self.task.choices is not None and "balanced" in balances:
            raise ValueError(
                "classifier: class_weights and sampler balance labels that rows share, and task.choices gives each row "
                "its own answers: set them to none and shuffled"
            )
        if self.label is not None:
            self.label.check_names(self.reasonings.named)
            if self.task.labels is None:
                raise ValueError("label: texts without labels do not tell which there are; write them in task.labels")
        return self
