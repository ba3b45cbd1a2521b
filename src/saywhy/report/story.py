"""What the figures of a run say, in sentences: who won, what floors say about it, and what limits the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saywhy import controls

SIGNIFICANT = 0.05
FEW_ROWS = 20  # a class with fewer test rows is named in the small print
NBSP = "\u00a0"  # keeps "n = 300" on one line
UNMEASURED = "Whether saying why helped was not measured."
ONE_TRAINING = (
    "Each arm was trained once: the interval and p speak of other rows, not of training again with another seed, for "
    "which there is `saywhy study`."
)
FLOOR_NAMES = {
    "majority": "the majority floor",
    "linear": "the linear floor",
    "encoder": "the fine-tuned encoder",
    "zero_shot": "the base asked as it is",
}
BESIDE = {"linear": "the linear floor (TF-IDF and logistic regression)"}  # a floor at greater length
METRIC_NAMES = {"accuracy": "accuracy", "macro_f1": "macro F1", "mean_recall": "mean recall"}


@dataclass(frozen=True)
class System:
    """One thing that answers: an arm in one mode, or a floor. `tone` is base (a label_only arm), reasoned or floor."""

    key: str
    arm: str
    mode: str
    tone: str
    dev: Mapping[str, Any] | None
    test: Mapping[str, Any] | None
    temperature: float | None
    recommended: bool
    prior: Mapping[str, float] | None = None

    @property
    def name(self) -> str:
        """What sentences call it."""
        if self.tone == "floor":
            return FLOOR_NAMES.get(self.mode, f"the {self.mode} floor")
        return self.arm if self.tone == "base" else f"{self.arm} (mode {self.mode})"


@dataclass(frozen=True)
class Difference:
    """A row of `comparisons`, turned so that `a` is the one asked for."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float | None
    p_holm: float | None
    a_only: int
    b_only: int
    n: int
    mde: float | None = None

    @property
    def apart(self) -> bool:
        """The interval leaves zero out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Headline:
    """The verdict in few words, the sentence with its figures, what else must be said, and the systems it is about.

    `case` is helped, hurt, hint, none, unmeasured, only_label_only, no_label_only or nothing.
    """

    case: str
    verdict: str
    sentence: str
    asides: tuple[str, ...]
    systems: tuple[System, ...]


def systems(metrics: Mapping[str, Any]) -> list[System]:
    """Every arm in every mode, in the order of metrics.json, then the floors that were measured."""
    chosen = metrics.get("recommended") or {}
    found = []
    for arm, facts in metrics["arms"].items():
        # An arm with a name of its own brings its kind along as "arm".
        tone = "base" if facts.get("arm", arm).startswith("label_only") else "reasoned"
        for mode, scores in facts["modes"].items():
            best = (arm, mode) == (chosen.get("arm"), chosen.get("mode"))
            split = (scores.get("dev"), scores.get("test"), scores.get("temperature"))
            found.append(System(f"{arm}/{mode}", arm, mode, tone, *split, best, scores.get("prior")))
    for name, scores in metrics["floors"].items():
        if scores is not None:
            found.append(System(f"floors/{name}", "floors", name, "floor", None, scores, None, False))
    return found


def difference(metrics: Mapping[str, Any], a: str, b: str, metric: str = "accuracy") -> Difference | None:
    """The comparison of `a` with `b`, whichever way round it is stored; None where it was not made."""
    for row in metrics["comparisons"]:
        if row["metric"] != metric or {row["a"], row["b"]} != {a, b} or row["difference"] is None or not row["ci95"]:
            continue
        low, high = row["ci95"]
        only = (row.get("a_only") or 0, row.get("b_only") or 0)
        p = (row["p_mcnemar"], row["p_holm"])
        rest = (row["n"], row.get("mde"))
        if row["a"] == a:
            return Difference(a, b, row["difference"], low, high, *p, *only, *rest)
        return Difference(a, b, -row["difference"], -high, -low, *p, only[1], only[0], *rest)
    return None


def headline(metrics: Mapping[str, Any], known: Sequence[System]) -> Headline:
    """Who won and by how much.

    The pair it speaks of is fixed by the dev split, so that the test split chooses nothing: the best label_only arm,
    and the recommended arm and mode, or the best reasoned one where label_only is recommended.
    """
    metric = (metrics.get("recommended") or {}).get("metric") or "macro_f1"
    base = _best([one for one in known if one.tone == "base"], metric)
    reasoned = _best([one for one in known if one.tone == "reasoned" and one.mode != "explain"], metric)
    if base is None and reasoned is None:
        return _nothing([one for one in known if one.test])
    if base is None or reasoned is None:
        return _one_side(metrics, known, next(one for one in (base, reasoned) if one is not None))
    row = difference(metrics, reasoned.key, base.key)
    if row is None:
        return _unmeasured(metrics, known, reasoned, base)
    case = _case(row)
    verdicts = {
        "helped": "Saying why helped.",
        "hurt": "Label-only wins.",
        "hint": "A hint, but no finding.",
        "none": "No difference was found.",
    }
    winner = base if case == "hurt" or (case in ("none", "hint") and base.recommended) else reasoned
    said = control(metrics)
    if said:
        verdicts["helped"] = "The control helped."
    asides = [*said, *_other_metric(metrics, reasoned, base, row, case, metric)]
    asides += _other_choice(case, reasoned, base) + _beside_floors(metrics, known, winner)
    if case in ("helped", "hurt"):
        asides.append(ONE_TRAINING)
    sentence = _pair_sentence(metrics, reasoned, base, row, case)
    return Headline(case, verdicts[case], sentence, tuple(asides), (reasoned, base))


def limits(metrics: Mapping[str, Any], known: Sequence[System], main: System | None) -> list[str]:
    """What a reader must know before trusting a figure further than it reaches."""
    said = [
        f"One training seed ({metrics.get('seed')}): the intervals speak of which rows were drawn for the test split. "
        "Another seed would move every figure."
    ]
    said += _half_width(main)
    dev = main.dev["n"] if main and main.dev else None
    if dev is not None:
        said.append(
            f"The dev split ({dev:,} rows) chose checkpoints, temperatures and the recommendation; its own figures "
            "flatter what it chose. Test figures were computed once, afterwards."
        )
    tested = sum(row["p_mcnemar"] is not None for row in metrics["comparisons"])
    if tested > 1:
        said.append(
            f"{tested} pairs were tested; p values after Holm’s correction hold for all of them together, "
            "the 95% intervals each for its own pair."
        )
    said += _few_rows(main) + _overlap(metrics.get("audit") or {})
    said += [f"{one.key}: in {100 * one.test['forced']:.1f}% of the rows the length limit ended the reasoning."
             for one in known if one.test and (one.test.get("forced") or 0) > 0.05]  # fmt: skip
    if any(one.tone == "reasoned" for one in known):
        said.append(
            "Reasonings are text that a model wrote. They are not a proof of how the label was decided, "
            "and a good one can stand before a wrong label."
        )
    return said + list(metrics.get("notes") or [])


def control(metrics: Mapping[str, Any]) -> list[str]:
    """That the reasoned arms learnt from a control, where they did."""
    told = metrics.get("reasonings") or {}
    kind = told.get("replace", "none")
    if kind == "none":
        return []
    return [
        f"Every arm but label_only was taught a control in the place of reasonings: {kind}, {controls.meaning(kind)} "
        f"({amount(told.get('replaced'))} of {amount(told.get('kept'))} reasonings were replaced). Their figures speak "
        "of what the control keeps, not of reasonings."
    ]


def leakage(found: Mapping[str, Any] | None) -> list[str]:
    """What a linear model reads of the label from the reasonings alone, and from what was taught in their place."""
    if not found:
        return []
    if not found["written"]:
        return [f"What the reasonings alone tell of the label was not measured: {found['missing']}."]
    n, written, taught, crossed = found["reasonings"], found["written"], found["taught"], found["crossed"]
    said = [
        "From the written reasoning alone, without the text, a linear model reads the right label of "
        f"{_percent(written)} of {amount(n)} reasonings, learning from those of other rows; always saying the most "
        f"frequent label is right for {100 * found['majority']:.1f}%. What it reads there, the reasoning gives away."
    ]
    if not taught:
        return said
    # What lies within two standard errors of chance is as good as nothing. Chance is the same in mean recall whatever
    # the shares of the labels are.
    chance, margin = found["chance"], 2 * found["chance_error"]
    much = "the label is still told in part"
    if taught["mean_recall"] <= chance + margin:
        much = "next to nothing of the label is left"
    elif taught["mean_recall"] >= written["mean_recall"] - margin:
        much = "the label is told as well as by the written ones"
    said.append(f"From what was taught instead it reads {_percent(taught)}: {much}.")
    if crossed["mean_recall"] < chance - margin:
        said.append(
            f"One that learnt from the written reasonings reads the right label in only {_percent(crossed)} of what "
            "was taught instead: they speak for wrong labels."
        )
    return said


def _percent(told: Mapping[str, Any]) -> str:
    return f"{100 * told['accuracy']:.1f}%"


def training(metrics: Mapping[str, Any]) -> str:
    """Whether the arms were trained equally; empty for fewer than two arms."""
    facts = {arm: one.get("train") or {} for arm, one in metrics["arms"].items()}
    if len(facts) < 2:
        return ""
    steps = {arm: one.get("steps") for arm, one in facts.items()}
    rows = {arm: one.get("rows") for arm, one in facts.items()}
    if len(set(steps.values())) > 1 or len(set(rows.values())) > 1:
        each = ", ".join(f"{arm} {amount(steps[arm])} steps over {amount(rows[arm])} rows" for arm in facts)
        return f"The arms were not trained equally: {each}. Part of a difference may come from the length of training."
    first = next(iter(facts))
    return (
        f"Every arm took the same {amount(steps[first])} steps over the same {amount(rows[first])} rows. "
        "What differs is what a row teaches: see target tokens and label tokens."
    )


def amount(value: float | None) -> str:
    """A whole number with its thousands marked, an en dash for none."""
    return "–" if value is None else f"{value:,.0f}"


def points(value: float, sign: bool = False) -> str:
    """A share from -1 to 1 in points with one decimal; `sign` writes the plus, too."""
    text = f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"
    text = text.lstrip("+-") if float(text) == 0 else text
    return text.replace("-", "−")


def p_value(value: float | None) -> str:
    """A p value as papers print it, with its relation."""
    if value is None:
        return "p not tested"
    return f"p{NBSP}<{NBSP}0.001" if value < 0.001 else f"p{NBSP}={NBSP}{value:.{2 if value >= 0.1 else 3}f}"


def _best(found: Sequence[System], metric: str) -> System | None:
    """The recommended one, else the first with the highest dev figure."""

    def dev(one: System) -> tuple[bool, float]:
        value = one.dev.get(metric) if one.dev else None
        return one.recommended, -1.0 if value is None else value

    return max(found, key=dev, default=None)


def _case(row: Difference) -> str:
    if row.apart and row.p_holm is not None and row.p_holm < SIGNIFICANT:
        return "helped" if row.difference > 0 else "hurt"
    if row.apart or (row.p is not None and row.p < SIGNIFICANT):
        return "hint"
    return "none"


def _pair_sentence(metrics: Mapping[str, Any], reasoned: System, base: System, row: Difference, case: str) -> str:
    better, other = (reasoned, base) if row.difference >= 0 else (base, reasoned)
    low, high = (row.low, row.high) if row.difference >= 0 else (-row.high, -row.low)
    tested = sum(one["p_mcnemar"] is not None for one in metrics["comparisons"])
    interval = f"95% interval {points(low)} to {points(high)}"
    if points(row.difference) == "0.0":
        start = f"{reasoned.name} and {base.name} are right equally often on the test split"
    else:
        far = points(abs(row.difference))
        start = f"{better.name} beats {other.name} by {far} points of accuracy on the test split"
        if case in ("none", "hint"):
            start = f"{better.name} is {far} points of accuracy ahead of {other.name} on the test split"
    holm = f", after Holm’s correction for {tested} tests {p_value(row.p_holm)}" if tested > 1 else ""
    figures = f"({interval} points, McNemar {p_value(row.p)}{holm}, n{NBSP}={NBSP}{row.n:,})"
    ends = {
        "none": ": chance alone can bring that about. It does not show that the two are equal",
        "hint": ": a sign of a difference, but the interval and the corrected test do not both bear it out",
    }
    shown = f" {could_show(row)}" if case in ends else ""
    return f"{start} {figures}{ends.get(case, '')}.{shown}".rstrip()


def could_show(row: Difference) -> str:
    """The smallest difference that the rows of a comparison could have shown; empty where that is not known."""
    if row.mde is None:
        return ""
    return (
        f"The smallest difference that these {row.n:,} rows would have shown four times out of five is "
        f"{points(row.mde)} points."
    )


def _other_metric(
    metrics: Mapping[str, Any], reasoned: System, base: System, row: Difference, case: str, metric: str
) -> list[str]:
    """The chosen metric where it tells another story than accuracy."""
    other = difference(metrics, reasoned.key, base.key, metric) if metric != "accuracy" else None
    if other is None or not other.apart:
        return []
    if case in ("helped", "hurt") and (other.difference > 0) == (row.difference > 0):
        return []
    ahead, behind = (reasoned, base) if other.difference > 0 else (base, reasoned)
    low, high = sorted((abs(other.low), abs(other.high)))
    return [
        f"By {METRIC_NAMES.get(metric, metric)}, {ahead.name} is ahead of {behind.name}: "
        f"{points(abs(other.difference))} points (95% interval {points(low)} to {points(high)})."
    ]


def _other_choice(case: str, reasoned: System, base: System) -> list[str]:
    """A recommendation, made on the dev split, that the test split does not bear out."""
    if case == "hurt" and reasoned.recommended:
        return [f"The dev split recommended {reasoned.name}; the test split does not bear it out."]
    if case == "helped" and base.recommended:
        return [f"The dev split recommended {base.name} all the same; the choice is not made on the test split."]
    return []


def _beside_floors(metrics: Mapping[str, Any], known: Sequence[System], winner: System) -> list[str]:
    """How the winner stands to the floors."""
    said = []
    for floor in ("linear", "encoder", "zero_shot"):
        row = difference(metrics, winner.key, f"floors/{floor}")
        if row is None:
            continue
        name = FLOOR_NAMES[floor]
        full = BESIDE.get(floor, name)
        figures = (
            f"{points(abs(row.difference))} points (95% interval {points(min(abs(row.low), abs(row.high)))} to "
            f"{points(max(abs(row.low), abs(row.high)))}, {p_value(row.p)})"
        )
        clear = row.apart and row.p is not None and row.p < SIGNIFICANT
        if clear and row.difference < 0:
            said.append(f"{full[0].upper()}{full[1:]} beats {winner.name} by {figures}.")
        elif clear:
            said.append(f"{winner.name} beats {name} by {figures}.")
        else:
            sentence = (
                f"{winner.name} and {full} are not clearly apart: "
                f"{points(row.difference, sign=True)} points (95% interval {points(row.low)} to {points(row.high)}, "
                f"{p_value(row.p)}). {could_show(row)}"
            )
            said.append(sentence.rstrip())
    majority = next((one.test for one in known if one.key == "floors/majority" and one.test), None)
    if majority and 0 <= _accuracy(winner.test) <= _accuracy(majority):
        said.append(f"Always giving the most frequent label is right at least as often ({_share(majority)}).")
    return said


def _one_side(metrics: Mapping[str, Any], known: Sequence[System], only: System) -> Headline:
    """Only label_only arms, or none of them: whether saying why helps was not measured."""
    sentence = f"{only.name} is right in {_share(only.test)} of the test rows{_interval(only.test)}."
    asides = _beside_floors(metrics, known, only)
    if only.tone == "base":
        asides.append("Whether saying why helps was not measured: no arm with reasonings was trained.")
        pair = (only, *(one for one in known if one.key == "floors/linear"))
        return Headline("only_label_only", "Only label-only was trained.", sentence, tuple(asides), pair)
    asides.append("No label_only arm was trained, so there is nothing to compare with.")
    return Headline("no_label_only", UNMEASURED, sentence, tuple(asides), (only,))


def _unmeasured(metrics: Mapping[str, Any], known: Sequence[System], reasoned: System, base: System) -> Headline:
    sentence = (
        f"{reasoned.name} is right in {_share(reasoned.test)} of its test rows{_interval(reasoned.test)}, {base.name} "
        f"in {_share(base.test)}{_interval(base.test)}; the two were not compared row by row."
    )
    asides = tuple(_beside_floors(metrics, known, reasoned if reasoned.recommended else base))
    return Headline("unmeasured", UNMEASURED, sentence, asides, (reasoned, base))


def _nothing(floors: Sequence[System]) -> Headline:
    best = max(floors, key=lambda one: _accuracy(one.test), default=None)
    sentence = "There are no figures."
    if best is not None:
        sentence = (
            f"Only the floors were measured: {best.name} is right in {_share(best.test)} of the test rows"
            f"{_interval(best.test)}."
        )
    return Headline("nothing", "No model was trained.", sentence, (), (best,) if best else ())


def _accuracy(scores: Mapping[str, Any] | None) -> float:
    """The accuracy, below every share where there is none."""
    value = scores["accuracy"] if scores else None
    return -1.0 if value is None else float(value)


def _share(scores: Mapping[str, Any] | None) -> str:
    return "–" if _accuracy(scores) < 0 else f"{100 * _accuracy(scores):.1f}%"


def _interval(scores: Mapping[str, Any] | None) -> str:
    if not scores or not scores.get("accuracy_ci95"):
        return ""
    low, high = scores["accuracy_ci95"]
    return f" (95% interval {points(low)} to {points(high)}%, n{NBSP}={NBSP}{scores['n']:,})"


def _half_width(main: System | None) -> list[str]:
    if main is None or not main.test or not main.test.get("accuracy_ci95"):
        return []
    low, high = main.test["accuracy_ci95"]
    small = " Smaller differences need more rows." if high - low > 0.06 else ""
    return [
        f"With {main.test['n']:,} test rows an accuracy is known to ±{points((high - low) / 2)} points "
        f"(half the width of its 95% interval).{small}"
    ]


def _few_rows(main: System | None) -> list[str]:
    per_class = main.test.get("per_class") if main and main.test else None
    few = [label for label, row in (per_class or {}).items() if row["support"] < FEW_ROWS]
    if not few:
        return []
    named = ", ".join(label if len(label) <= 40 else label[:39] + "…" for label in few[:5])
    more = f" and {len(few) - 5:,} more" if len(few) > 5 else ""
    return [f"Fewer than {FEW_ROWS} test rows in: {named}{more}. Figures of these classes move with every row."]


def _overlap(audit: Mapping[str, Any]) -> list[str]:
    shared = (audit.get("overlap") or {}).get("test_in_train") or 0
    if not shared:
        return []
    return [f"{shared:,} test texts stand in train, too: they can be answered from memory, which flatters every model."]
