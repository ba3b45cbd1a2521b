"""The rules that keep or drop a reasoning."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from saywhy import checks, tickets
from saywhy.checks import languages, names, rules
from saywhy.config.reasonings import CheckName
from saywhy.records import Candidate, Figures, RequestError, Row, Task

EMOTIONS = ("sadness", "joy", "anger")
NAMES: tuple[str, ...] = get_args(CheckName)
LIMITS = checks.Limits(too_long=8, too_short=2, generic=3, least_support=0.0)
WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=12)


def task_of(*labels: str) -> Task:
    return Task(name="t", instruction="Which?", labels=labels)


def candidate_of(reasoning: str, cut: bool = False, tokens: int = 0, figures: Figures | None = None) -> Candidate:
    return Candidate("r", reasoning, "file", cut=cut, tokens=tokens, figures=figures or Figures())


def row_of(label: str | None, text: str = "some text", choices: tuple[str, ...] | None = None) -> Row:
    return Row("r", text, label, choices)


def named_first(reasoning: str, *labels: str) -> bool:
    return rules.label_named_first(task_of(*labels), row_of(labels[0]), candidate_of(reasoning))


def another_named(reasoning: str, labels: tuple[str, ...], gold: str | None, text: str = "some text") -> bool:
    return rules.another_label_named(task_of(*labels), row_of(gold, text), candidate_of(reasoning))


def is_copy(reasoning: str, text: str) -> bool:
    return rules.copy_of_text(task_of("a", "b"), row_of("a", text), candidate_of(reasoning))


@pytest.mark.parametrize(
    ("reasoning", "dropped"),
    [("", True), (" \n\t", True), ("...", True), ("— !", True), ("ok", False), ("1", False), ("好", False)],
)
def test_empty(reasoning: str, dropped: bool) -> None:
    assert rules.empty(task_of("a", "b"), row_of("a"), candidate_of(reasoning)) is dropped


def test_cut_off_is_what_the_writer_said() -> None:
    assert rules.cut_off(task_of("a", "b"), row_of("a"), candidate_of("whole.", cut=True))
    assert not rules.cut_off(task_of("a", "b"), row_of("a"), candidate_of("half a sen"))


@given(limit=st.integers(1, 500), tokens=st.integers(0, 600), length=st.none() | st.integers(0, 600))
def test_lengths_are_the_students_where_counted_and_the_limit_is_kept(
    limit: int, tokens: int, length: int | None
) -> None:
    candidate = candidate_of("x", tokens=tokens, figures=Figures(length=length))
    counted = tokens if length is None else length
    for make, dropped in ((rules.too_long, counted > limit), (rules.too_short, 0 < counted < limit)):
        check = make(limit)
        assert check.__name__ == make.__name__
        assert check(task_of("a", "b"), row_of("a"), candidate) is dropped


def test_what_nobody_counted_is_not_too_short() -> None:
    assert not rules.too_short(3)(task_of("a", "b"), row_of("a"), candidate_of("A smile is seen."))


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
        assert rules.another_label_named(task, row, candidate_of("It is blue."))
        assert rules.label_named_first(task, row, candidate_of("It is blue."))
        assert not rules.another_label_named(task, row, candidate_of("It is green."))
        assert not rules.label_named_first(task, row, candidate_of("It is green."))


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
    assert rules.cue_inside(task_of("a", "b"), row_of("a"), candidate_of(reasoning)) is dropped


@given(before=st.text(max_size=20), after=st.text(max_size=20), cue=st.sampled_from(["Label:", "Reasoning:"]))
def test_a_cue_is_found_wherever_it_stands(before: str, after: str, cue: str) -> None:
    assert rules.cue_inside(task_of("a", "b"), row_of("a"), candidate_of(before + cue + after))


def test_by_name_gives_the_checks_in_the_order_asked_for() -> None:
    assert tuple(check.__name__ for check in checks.by_name(NAMES, LIMITS)) == NAMES
    assert tuple(check.__name__ for check in checks.by_name(NAMES[::-1], LIMITS)) == NAMES[::-1]
    assert checks.by_name((), LIMITS) == ()


def test_by_name_hands_every_limit_to_its_check() -> None:
    limits = checks.Limits(too_long=80, too_short=5, generic=30, least_support=-0.5)
    too_long, too_short, generic, no_support = checks.by_name(
        ["too_long", "too_short", "generic", "no_support"], limits
    )

    def drops(check: checks.Check, **figures: object) -> bool:
        return check(task_of("a", "b"), row_of("a"), candidate_of("x", figures=Figures(**figures)))  # type: ignore[arg-type]

    assert (drops(too_long, length=80), drops(too_long, length=81)) == (False, True)
    assert (drops(too_short, length=5), drops(too_short, length=4)) == (False, True)
    assert (drops(generic, twins=30), drops(generic, twins=31)) == (False, True)
    assert (drops(no_support, support=-0.5, wins="b"), drops(no_support, support=-0.6, wins="b")) == (False, True)


def test_by_name_refuses_unknown_names() -> None:
    with pytest.raises(RequestError, match='no check "cut_of"; did you mean "cut_off"'):
        checks.by_name(["empty", "cut_of"], LIMITS)
    with pytest.raises(RequestError, match=r"the checks are empty, too_long, too_short, .*no_support"):
        checks.by_name(["zzz"], LIMITS)


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (candidate_of(""), "empty"),
        (candidate_of("", cut=True, tokens=99), "empty"),
        (candidate_of("A smile is seen.", tokens=9), "too_long"),
        (candidate_of("A smile is seen.", cut=True), "cut_off"),
        (candidate_of("what a day"), "copy_of_text"),
        (candidate_of("A smile.", tokens=1), "too_short"),
        (candidate_of("I'm sorry, but I cannot help with that."), "refusal"),
        (candidate_of("Улыбка видна сразу."), "other_language"),
        (candidate_of("A smile is seen.", figures=Figures(twins=4)), "generic"),
        (candidate_of("A smile is seen.</s>"), "special_tokens"),
        (candidate_of("It is joy."), "label_named_first"),
        (candidate_of("A smile is seen. No anger."), "another_label_named"),
        (candidate_of("A smile is seen.", figures=Figures(support=-0.1, wins="anger")), "no_support"),
        (candidate_of("A smile is seen. Label: joy"), "cue_inside"),
        (candidate_of("A smile is seen. It is joy.", tokens=8), ""),
    ],
)
def test_first_failing_names_the_reason(candidate: Candidate, reason: str) -> None:
    built_in = checks.by_name(NAMES, LIMITS)
    assert checks.first_failing(built_in, task_of(*EMOTIONS), row_of("joy", "what a day"), candidate) == reason


def test_first_failing_takes_checks_of_the_caller() -> None:
    def no_smile(task: Task, row: Row, candidate: Candidate) -> bool:
        return "smile" not in candidate.reasoning

    own: tuple[checks.Check, ...] = (no_smile,)
    assert checks.first_failing(own, task_of(*EMOTIONS), row_of("joy"), candidate_of("A tear.")) == "no_smile"
    assert checks.first_failing(own, task_of(*EMOTIONS), row_of("joy"), candidate_of("A smile.")) == ""
    assert checks.first_failing((), task_of(*EMOTIONS), row_of("joy"), candidate_of("")) == ""


ANY_TEXT = st.text(st.characters(), max_size=60) | st.text("aI'm so 不好<|>[/].,:=→ \n\ud800", max_size=60)


@given(reasoning=ANY_TEXT, text=ANY_TEXT, labels=st.lists(st.text(st.characters(), max_size=4), max_size=4))
def test_every_check_answers_for_any_text_and_always_the_same(reasoning: str, text: str, labels: list[str]) -> None:
    row, candidate = row_of(labels[0] if labels else None, text), candidate_of(reasoning)
    for check in checks.by_name(NAMES, LIMITS):
        answer = check(task_of(*labels), row, candidate)
        assert isinstance(answer, bool)
        assert check(task_of(*labels), row, candidate) is answer
    share, at = checks.text_figures(task_of(*labels), row, reasoning)
    assert 0 <= share <= 1
    assert (at is None) is (share == 0)
    assert at is None or 0 <= at < 1


@given(first=st.text(max_size=40), second=st.text(max_size=40))
def test_a_text_is_a_copy_of_itself_and_of_its_surroundings(first: str, second: str) -> None:
    assume(any(character.isalnum() and character.isascii() for character in first))
    assert is_copy(first, first)
    assert is_copy(first, f"{first} {second}")


@given(text=st.text("aZ09 .,-_'é好", max_size=30))
def test_words_of_plain_texts_are_found_the_same_way_as_those_of_others(text: str) -> None:
    assert names.words(text + " é") == [*names.words(text), "é"]


@pytest.mark.parametrize(
    ("labels", "reasoning", "share", "at"),
    [
        (EMOTIONS, "The writer smiles.", 0.0, None),
        (EMOTIONS, "", 0.0, None),
        (EMOTIONS, "joy", 1.0, 0.0),
        (EMOTIONS, "A smile is Joy, not anger.", 2 / 6, 3 / 6),
        (EMOTIONS, "She enjoys it.", 0.0, None),
        (("credit card", "card"), "My credit-card is lost", 2 / 5, 1 / 5),
        (("a b", "b c"), "a b c d", 3 / 4, 0.0),
        (("👍", "👎"), "so 👍", 1 / 2, 1 / 2),
        (("快乐", "悲伤"), "这是快乐", 2 / 4, 2 / 4),
    ],
)
def test_text_figures(labels: tuple[str, ...], reasoning: str, share: float, at: float | None) -> None:
    assert checks.text_figures(task_of(*labels), row_of(labels[0]), reasoning) == (share, at)


def test_text_figures_look_for_the_choices_of_the_row() -> None:
    row = row_of("red", choices=("red", "blue"))
    assert checks.text_figures(task_of("green", "it"), row, "it is red") == (1 / 3, 2 / 3)


@pytest.mark.parametrize(
    "reasoning",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I cannot classify this text.",
        "I am sorry, but I am unable to assist.",
        "I'm sorry, but this request goes against my guidelines.",
        "Sorry, I can't do that.",
        "I apologize, but I cannot provide an answer.",
        "The text is harmful. I cannot assist with this request.",
        "As an AI language model, I do not have feelings.",
        "The text is short; however, as a large language model I can only guess.",
        "I am just an AI and cannot feel.",
        "I cannot determine the correct label.",
        "I don't have enough information to answer.",
        "Unfortunately, I cannot answer this question.",
        "Es tut mir leid, aber ich kann dabei nicht helfen.",
        "Leider kann ich diese Anfrage nicht beantworten.",
        "Als KI-Sprachmodell kann ich keine Gefühle haben.",
        "Als Sprachmodell habe ich keine Meinung.",
        "Je suis désolé, mais je ne peux pas vous aider.",
        "Désolée, je ne peux pas répondre.",
        "En tant que modèle de langage, je n'ai pas d'opinion.",
        "Lo siento, pero no puedo ayudarte con eso.",
        "Como modelo de lenguaje, no puedo opinar.",
    ],
)
def test_refusal(reasoning: str) -> None:
    assert rules.refusal(task_of(*EMOTIONS), row_of("joy"), candidate_of(reasoning))
    quoting = row_of("joy", f"He wrote to me: {reasoning}")
    assert not rules.refusal(task_of(*EMOTIONS), quoting, candidate_of(reasoning)), "it is the row's own text"


@pytest.mark.parametrize(
    "reasoning",
    [
        "The customer is sorry that nobody could help.",
        "The caller says sorry, but they cannot pay.",
        "'i'm sorry' is an apology that she cannot take back.",
        "The writer cannot help but feel alone.",
        "I am sorry, I cannot help but smile at this.",
        "I cannot tell from the picture whether the man is asleep.",
        "She works as an assistant, so she writes letters.",
        "The text introduces the robot as an AI that learns.",
        "We cannot assume that a man is a doctor.",
        "One cannot answer the phone and drive.",
        "A language model is what the text is about.",
        "Als Assistent kann er nicht entscheiden.",
        "Es tut dem Kunden leid, dass es nicht ging.",
        "Elle est désolée de ne pas pouvoir venir.",
        "En tant que médecin, je peux le dire.",
        "El cliente no puede pagar.",
    ],
)
def test_no_refusal(reasoning: str) -> None:
    assert not rules.refusal(task_of(*EMOTIONS), row_of("joy"), candidate_of(reasoning))


ENGLISH = "The writer says that she is at home and that she has not seen her friends for a week."
GERMAN = "Der Text sagt, dass sie zu Hause ist und ihre Freunde seit einer Woche nicht gesehen hat."
FRENCH = "Le texte dit que la fille est dans sa maison et qu'elle ne voit pas ses amis."
SPANISH = "La chica dice que está en la casa y que no ha visto a sus amigos por una semana."
RUSSIAN, CHINESE, JAPANESE = "Автор скучает по друзьям.", "作者很想念她的朋友们。", "作者は友達に会いたいと言っている。"
ASKED = "Which emotion does the writer of this text express?"


@pytest.mark.parametrize(
    ("reasoning", "text", "instruction", "dropped"),
    [
        (ENGLISH, ENGLISH, ASKED, False),
        (ENGLISH, GERMAN, ASKED, False),
        (GERMAN, GERMAN, ASKED, False),
        (FRENCH, GERMAN, ASKED, True),
        (GERMAN, ENGLISH, ASKED, True),
        (SPANISH, ENGLISH, ASKED, True),
        (GERMAN, ENGLISH, "Emotion?", False),
        (GERMAN, "lonely tonight", ASKED, False),
        ("so alone", GERMAN, "Was ist das Gefühl, das der Text ausdrückt?", False),
        (RUSSIAN, ENGLISH, ASKED, True),
        (CHINESE, ENGLISH, "Emotion?", True),
        (CHINESE, "12 + 3", ASKED, True),
        (CHINESE, "12 + 3", "?", False),
        (ENGLISH, CHINESE, ASKED, False),
        (ENGLISH, CHINESE, "情感是什么？", True),
        (CHINESE, JAPANESE, "感情は何ですか", False),
        ("'Автор' is said by the writer, and that is Russian.", ENGLISH, ASKED, False),
        ("12 + 3 = 15", CHINESE, "情感是什么？", False),
        ("", ENGLISH, ASKED, False),
    ],
)
def test_other_language(reasoning: str, text: str, instruction: str, dropped: bool) -> None:
    task = Task(name="t", instruction=instruction, labels=EMOTIONS)
    assert rules.other_language(task, row_of("joy", text), candidate_of(reasoning)) is dropped


@pytest.mark.parametrize(
    ("text", "script", "language"),
    [
        (ENGLISH, "LATIN", "en"),
        (GERMAN, "LATIN", "de"),
        (FRENCH, "LATIN", "fr"),
        (SPANISH, "LATIN", "es"),
        ("Autoren skriver at hun ikke har set sine venner og er ked af det.", "LATIN", "da"),
        ("De schrijver zegt dat zij haar vrienden niet heeft gezien.", "LATIN", "nl"),
        ("A autora diz que não viu os amigos e que está em casa.", "LATIN", "pt"),
        ("L'autrice dice che non ha visto gli amici e che è sola.", "LATIN", "it"),
        ("Hon skriver att hon inte har sett sina vänner och är ledsen.", "LATIN", "sv"),
        ("de la que", "LATIN", ""),
        ("the cat and dog", "LATIN", ""),
        ("абab", "", ""),
        ("абаb", "CYRILLIC", ""),
        ("作者は悲しい", "CJK", ""),
        ("ＡＢＣ", "LATIN", ""),
        ("12 + 3", "", ""),
    ],
)
def test_script_and_language_are_told_where_they_are_clear(text: str, script: str, language: str) -> None:
    assert (languages.script(text), languages.language(text)) == (script, language)


def test_names_inside_longer_ones_are_left_out() -> None:
    found = names.named(("card", "credit card", "lost"), "a credit card or card is lost")
    assert found == [(2, 13, "credit card"), (17, 21, "card"), (25, 29, "lost")]


@pytest.mark.parametrize(
    ("reasoning", "dropped"),
    [
        ("A smile.<|im_end|>", True),
        ("<|im_start|>assistant A smile.", True),
        ("<｜begin▁of▁sentence｜>A smile.", True),
        ("A smile.</s>", True),
        ("[INST] A smile. [/INST]", True),
        ("<<SYS>> A smile.", True),
        ("<think> A smile. </think>", True),
        ("A smile.<end_of_turn>", True),
        ("<tool_call> A smile.", True),
        ("A smile.<pad><pad>", True),
        ("A smile.<0x0A>", True),
        ("[CLS] A smile.", True),
        ("A <b>smile</b>.", False),
        ("a < b > c, and 3 <4> 2", False),
        ("x |> f <| y", False),
        ("A smile [sic] and [1].", False),
        ("See <https://example.org/a_b>.", False),
        ("I think </3 is a broken heart, <3 a whole one.", False),
        ("<p>A smile.</p>", False),
    ],
)
def test_special_tokens(reasoning: str, dropped: bool) -> None:
    assert rules.special_tokens(task_of(*EMOTIONS), row_of("joy"), candidate_of(reasoning)) is dropped
    assert not rules.special_tokens(task_of(*EMOTIONS), row_of("joy", f"text {reasoning}"), candidate_of(reasoning))


@pytest.mark.parametrize(
    ("support", "wins", "dropped"),
    [
        (-0.1, "anger", True),
        (0.0, "anger", False),
        (-0.1, "joy", False),
        (-0.1, None, False),
        (None, "anger", False),
        (None, None, False),
    ],
)
def test_no_support_needs_a_figure_below_and_another_winner(
    support: float | None, wins: str | None, dropped: bool
) -> None:
    candidate = candidate_of("x", figures=Figures(support=support, wins=wins))
    assert rules.no_support(0.0)(task_of(*EMOTIONS), row_of("joy"), candidate) is dropped


def test_generic_needs_more_rows_than_its_limit() -> None:
    for twins, dropped in ((None, False), (0, False), (3, False), (4, True)):
        candidate = candidate_of("x", figures=Figures(twins=twins))
        assert rules.generic(3)(task_of(*EMOTIONS), row_of("joy"), candidate) is dropped


@pytest.mark.parametrize(
    ("share", "rows", "limit"),
    [(0.02, 1000, 20), (0.02, 0, 20), (0.02, 1049, 20), (0.02, 1050, 21), (1.0, 10, 20), (1.0, 30, 30)],
)
def test_generic_limit_is_a_share_of_the_rows_and_twenty_at_least(share: float, rows: int, limit: int) -> None:
    assert checks.generic_limit(share, rows) == limit


def test_the_true_reasonings_of_the_bundled_task_pass_and_what_fits_every_ticket_does_not() -> None:
    parts, task = tickets.generate(0), tickets.task()
    rows = parts.train
    said = [parts.solutions[row.id] for row in rows]
    for number in range(0, 1000, 10):
        said[number] = "The writer asks for help."
    texts = [row.text for row in rows]
    twins = checks.count_twins(checks.index(zip(texts, said, strict=True)), texts, said)
    built_in = checks.by_name(NAMES, checks.Limits(256, 3, checks.generic_limit(0.02, len(rows)), 0.0))
    for number, (row, reasoning) in enumerate(zip(rows, said, strict=True)):
        candidate = candidate_of(reasoning, figures=Figures(twins=int(twins[number])))
        expected = "generic" if number % 10 == 0 else ""
        assert checks.first_failing(built_in, task, row, candidate) == expected, reasoning
