"""The rules that keep or drop a reasoning."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from saywhy import checks
from saywhy.records import Candidate, RequestError, Row, Task

EMOTIONS = ("sadness", "joy", "anger")
NAMES = ("empty", "too_long", "cut_off", "copy_of_text", "label_named_first", "another_label_named", "cue_inside")
WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=12)


def task_of(*labels: str) -> Task:
    return Task(name="t", instruction="Which?", labels=labels)


def candidate_of(reasoning: str, cut: bool = False, tokens: int = 0) -> Candidate:
    return Candidate("r", reasoning, "file", cut=cut, tokens=tokens)


def row_of(label: str | None, text: str = "some text", choices: tuple[str, ...] | None = None) -> Row:
    return Row("r", text, label, choices)


def named_first(reasoning: str, *labels: str) -> bool:
    return checks.label_named_first(task_of(*labels), row_of(labels[0]), candidate_of(reasoning))


def another_named(reasoning: str, labels: tuple[str, ...], gold: str | None, text: str = "some text") -> bool:
    return checks.another_label_named(task_of(*labels), row_of(gold, text), candidate_of(reasoning))


def is_copy(reasoning: str, text: str) -> bool:
    return checks.copy_of_text(task_of("a", "b"), row_of("a", text), candidate_of(reasoning))


@pytest.mark.parametrize(
    ("reasoning", "dropped"),
    [("", True), (" \n\t", True), ("...", True), ("— !", True), ("ok", False), ("1", False), ("好", False)],
)
def test_empty(reasoning: str, dropped: bool) -> None:
    assert checks.empty(task_of("a", "b"), row_of("a"), candidate_of(reasoning)) is dropped


def test_cut_off_is_what_the_writer_said() -> None:
    assert checks.cut_off(task_of("a", "b"), row_of("a"), candidate_of("whole.", cut=True))
    assert not checks.cut_off(task_of("a", "b"), row_of("a"), candidate_of("half a sen"))


@given(limit=st.integers(1, 500), tokens=st.integers(0, 600))
def test_too_long_drops_what_is_over_the_limit(limit: int, tokens: int) -> None:
    check = checks.too_long(limit)
    assert check.__name__ == "too_long"
    assert check(task_of("a", "b"), row_of("a"), candidate_of("x", tokens=tokens)) is (tokens > limit)


@pytest.mark.parametrize(
    ("reasoning", "text", "dropped"),
    [
        ("i feel so alone tonight", "i feel so alone tonight", True),
        ("I feel so ALONE, tonight!", "i feel so alone tonight", True),
        ("i feel alone", "i feel so alone tonight and cold", True),
        ("a b c d e f g h i x", "a b c d e f g h i j", True),
        ("a b c d e f g h x y", "a b c d e f g h i j", False),
        ("tonight alone so feel i", "i feel so alone tonight", False),
        ("the writer misses company", "i feel so alone tonight", False),
        ("i feel so alone tonight. that is a lack of company.", "i feel so alone tonight", False),
        ("今晚我很孤独", "今晚我很孤独。", True),
        ("作者想念朋友", "今晚我很孤独。", False),
        ("मैं खुश हूँ", "मैं आज खुश हूँ", True),
        ("", "", False),
        ("...", "...", False),
    ],
)
def test_copy_of_text(reasoning: str, text: str, dropped: bool) -> None:
    assert is_copy(reasoning, text) is dropped


def common_by_table(first: list[str], second: list[str]) -> int:
    row = [0] * (len(second) + 1)
    for word in first:
        before = row
        row = [0]
        for i, other in enumerate(second):
            row.append(before[i] + 1 if word == other else max(row[i], before[i + 1]))
    return row[-1]


@given(first=WORDS, second=WORDS)
def test_copy_of_text_counts_common_words_in_order(first: list[str], second: list[str]) -> None:
    expected = bool(first) and common_by_table(first, second) >= 0.9 * len(first)
    assert is_copy(" ".join(first), " ".join(second)) is expected


@pytest.mark.parametrize(
    ("reasoning", "labels", "dropped"),
    [
        ("This is joy. The writer smiles.", EMOTIONS, True),
        ("The writer shows Anger, not more. So it is.", EMOTIONS, True),
        ("The writer smiles. This is joy.", EMOTIONS, False),
        ("The writer smiles\nThis is joy.", EMOTIONS, False),
        ("... Joy is here. The writer smiles.", EMOTIONS, True),
        ('"What a day!" says the writer. Joy.', EMOTIONS, False),
        ("The writer enjoys the joyful day.", EMOTIONS, False),
        ("The writer smiles, hence joy", EMOTIONS, True),
        ("Rated 4.5 of some scale. Then 1.", ("1", "4", "5"), False),
        ("It deserves 1 star. Bad.", ("1", "2"), True),
        ("It deserves 10 or -1 or 1,000 or 0.1. Bad.", ("1", "2"), False),
        ("A 1-star review. Bad.", ("1", "2"), True),
        ("Yes, the text says so. Fine.", ("yes", "no"), True),
        ("Yesterday nothing was known. Fine.", ("yes", "no"), False),
        ("I don't know. Fine.", ("t", "don"), True),
        ("I don't know. Fine.", ("t", "x"), False),
        ("The label 'x' fits. Fine.", ("t", "x"), True),
        ("A lost_or_stolen card is meant. Fine.", ("lost or stolen", "x"), True),
        ("A lost or stolen card is meant. Fine.", ("lost_or-stolen", "x"), True),
        ("A lost  or\tstolen card is meant. Fine.", ("Lost_or_stolen", "x"), True),
        ("A lost card or a stolen one. Fine.", ("lost_or_stolen", "x"), False),
        ("这是快乐的。好。", ("快乐", "悲伤"), True),
        ("作者在笑。这是快乐。", ("快乐", "悲伤"), False),
        ("यह खुशी है। ठीक।", ("खुशी", "दुख"), True),
        ("यह खुशी है। ठीक।", ("खुश", "दुख"), False),
        ("Автор чувствует радость. Да.", ("Радость", "Гнев"), True),
        ("Автор безрадостен. Да.", ("рад", "Гнев"), False),
        ("ฉันมีความสุขมาก", ("ความสุข", "ความเศร้า"), True),
        ("Uses C++ here. Fine.", ("C++", "Rust"), True),
        ("👍 is meant. Fine.", ("👍", "👎"), True),
        ("The ＪＯＹ is wide. Fine.", EMOTIONS, True),
        ("", EMOTIONS, False),
    ],
)
def test_label_named_first(reasoning: str, labels: tuple[str, ...], dropped: bool) -> None:
    assert named_first(reasoning, *labels) is dropped


@pytest.mark.parametrize(
    ("reasoning", "labels", "gold", "text", "dropped"),
    [
        ("The writer smiles, so joy.", EMOTIONS, "joy", "what a day", False),
        ("The writer smiles. Not anger but joy.", EMOTIONS, "joy", "what a day", True),
        ('The writer says "anger is gone".', EMOTIONS, "joy", "my anger is gone", False),
        ('The writer says "angers".', EMOTIONS, "joy", "my angers are gone", False),
        ("This is anger.", EMOTIONS, "joy", "my angers are gone", True),
        ("The credit card is lost.", ("credit card", "card"), "credit card", "help", False),
        ("The credit-card is lost, a card.", ("credit_card", "card"), "credit_card", "help", True),
        ("The credit card is lost.", ("card", "credit_card"), "card", "help", True),
        ("A card is lost.", ("card", "credit card"), "card", "help", False),
        ("The card is lost, so credit card.", ("credit card", "card"), "credit card", "my card is lost", False),
        ("Not non-toxic.", ("toxic", "non-toxic"), "toxic", "help", True),
        ("It is non toxic.", ("non-toxic", "toxic"), "non-toxic", "help", False),
        ("It uses C++.", ("C++", "C"), "C++", "help", False),
        ("It uses C++.", ("Rust", "C++"), "Rust", "help", True),
        ("No reason to say yes.", ("yes", "no"), "yes", "help", True),
        ("Nothing says yes.", ("yes", "no"), "yes", "help", False),
        ("A 2 rather than a 1.", ("1", "2"), "2", "help", True),
        ("Out of 12 a 2.", ("1", "2"), "2", "help", False),
        ("The text counts 1 apple.", ("1", "2"), "2", "1 apple", False),
        ("这是悲伤。", ("快乐", "悲伤"), "快乐", "今天很好", True),
        ("这是快乐。", ("快乐", "悲伤"), "快乐", "今天很好", False),
        ("这是不快乐。", ("不快乐", "快乐"), "不快乐", "今天很好", False),
        ("Some joy.", EMOTIONS, None, "what a day", True),
        ("Some day.", EMOTIONS, None, "what a day", False),
        ("", EMOTIONS, "joy", "what a day", False),
    ],
)
def test_another_label_named(
    reasoning: str, labels: tuple[str, ...], gold: str | None, text: str, dropped: bool
) -> None:
    assert another_named(reasoning, labels, gold, text) is dropped


def test_choices_of_the_row_replace_the_labels_of_the_task() -> None:
    row = row_of("red", choices=("red", "blue"))
    empty_task, other_task = task_of(), task_of("red", "green")
    for task in (empty_task, other_task):
        assert checks.another_label_named(task, row, candidate_of("It is blue."))
        assert checks.label_named_first(task, row, candidate_of("It is blue."))
        assert not checks.another_label_named(task, row, candidate_of("It is green."))
        assert not checks.label_named_first(task, row, candidate_of("It is green."))


LETTERS = st.text(alphabet="abcdé", min_size=1, max_size=6)


@given(
    label=st.lists(LETTERS, min_size=1, max_size=3).map(" ".join),
    before=st.sampled_from(["", "the ", "(", '"', "so, ", "_"]),
    after=st.sampled_from(["", ".", ")", '"', " then", "!", "_"]),
    joint=st.sampled_from([" ", "-", "_"]),
    upper=st.booleans(),
)
def test_a_label_is_named_in_any_spelling_and_place(
    label: str, before: str, after: str, joint: str, upper: bool
) -> None:
    written = label.upper() if upper else label
    reasoning = f"{before}{written.replace(' ', joint)}{after}"
    assert named_first(reasoning, label, "another one")
    assert another_named(reasoning, ("another one", label), "another one")
    assert not another_named(reasoning, ("another one", label), "another one", text=f"some {label} here")
    assert not another_named(reasoning, ("another one", label), label)


@given(label=LETTERS, before=st.sampled_from(["", "x", "1", "ü"]), after=st.sampled_from(["", "x", "1", "ü"]))
def test_a_label_inside_a_longer_word_is_not_named(label: str, before: str, after: str) -> None:
    assume(before or after)
    assert not named_first(f"it is {before}{label}{after} then", label, "another one")


@pytest.mark.parametrize(
    ("reasoning", "dropped"),
    [
        ("The writer smiles. Label: joy", True),
        ("The writer smiles.\nlabel: joy", True),
        ("The writer smiles.\n**LABEL:** joy", True),
        ("The writer smiles.\n- Label : joy", True),
        ("The writer smiles.\nLabel：joy", True),
        ("Reasoning: the writer smiles.", True),
        (" reasoning: the writer smiles.", True),
        ("MisLabel: joy", True),
        ("The label is clear from the reasoning.", False),
        ("The box has a label: fragile.", False),
        ("Labels: none", False),
        ("", False),
    ],
)
def test_cue_inside(reasoning: str, dropped: bool) -> None:
    assert checks.cue_inside(task_of("a", "b"), row_of("a"), candidate_of(reasoning)) is dropped


@given(before=st.text(max_size=20), after=st.text(max_size=20), cue=st.sampled_from(["Label:", "Reasoning:"]))
def test_a_cue_is_found_wherever_it_stands(before: str, after: str, cue: str) -> None:
    assert checks.cue_inside(task_of("a", "b"), row_of("a"), candidate_of(before + cue + after))


def test_by_name_gives_the_checks_in_the_order_asked_for() -> None:
    assert tuple(check.__name__ for check in checks.by_name(NAMES, 8)) == NAMES
    assert tuple(check.__name__ for check in checks.by_name(NAMES[::-1], 8)) == NAMES[::-1]
    assert checks.by_name((), 8) == ()
    (limit,) = checks.by_name(["too_long"], 8)
    assert limit(task_of("a", "b"), row_of("a"), candidate_of("x", tokens=9))
    assert not limit(task_of("a", "b"), row_of("a"), candidate_of("x", tokens=8))


def test_by_name_refuses_unknown_names() -> None:
    with pytest.raises(RequestError, match='no check "cut_of"; did you mean "cut_off"'):
        checks.by_name(["empty", "cut_of"], 8)
    with pytest.raises(RequestError, match=r"the checks are empty, too_long, cut_off, .*cue_inside"):
        checks.by_name(["zzz"], 8)


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (candidate_of(""), "empty"),
        (candidate_of("", cut=True, tokens=99), "empty"),
        (candidate_of("A smile is seen.", tokens=9), "too_long"),
        (candidate_of("A smile is seen.", cut=True), "cut_off"),
        (candidate_of("what a day"), "copy_of_text"),
        (candidate_of("It is joy."), "label_named_first"),
        (candidate_of("A smile is seen. No anger."), "another_label_named"),
        (candidate_of("A smile is seen. Label: joy"), "cue_inside"),
        (candidate_of("A smile is seen. It is joy.", tokens=8), ""),
    ],
)
def test_first_failing_names_the_reason(candidate: Candidate, reason: str) -> None:
    built_in = checks.by_name(NAMES, 8)
    assert checks.first_failing(built_in, task_of(*EMOTIONS), row_of("joy", "what a day"), candidate) == reason


def test_first_failing_takes_checks_of_the_caller() -> None:
    def no_smile(task: Task, row: Row, candidate: Candidate) -> bool:
        return "smile" not in candidate.reasoning

    own: tuple[checks.Check, ...] = (no_smile,)
    assert checks.first_failing(own, task_of(*EMOTIONS), row_of("joy"), candidate_of("A tear.")) == "no_smile"
    assert checks.first_failing(own, task_of(*EMOTIONS), row_of("joy"), candidate_of("A smile.")) == ""
    assert checks.first_failing((), task_of(*EMOTIONS), row_of("joy"), candidate_of("")) == ""


@given(reasoning=st.text(max_size=60), text=st.text(max_size=60), labels=st.lists(st.text(max_size=4), max_size=4))
def test_every_check_answers_for_any_text(reasoning: str, text: str, labels: list[str]) -> None:
    row = row_of(labels[0] if labels else None, text)
    for check in checks.by_name(NAMES, 8):
        assert isinstance(check(task_of(*labels), row, candidate_of(reasoning)), bool)


@given(first=st.text(max_size=40), second=st.text(max_size=40))
def test_a_text_is_a_copy_of_itself_and_of_its_surroundings(first: str, second: str) -> None:
    assume(any(character.isalnum() and character.isascii() for character in first))
    assert is_copy(first, first)
    assert is_copy(first, f"{first} {second}")
