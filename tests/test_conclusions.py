"""The check `contradiction`: what concludes with another label, and its many neighbours that do not."""

from __future__ import annotations

import pytest

from saywhy import checks
from saywhy.records import Candidate, Row, Task

(CONTRADICTION,) = checks.by_name(["contradiction"], checks.Limits(256, 3, 3, 0.0))
EMOTIONS = Task("emotion", "Which emotion does the writer express?", ("sadness", "joy", "anger", "fear"))
PRIORITIES = Task("tickets", "Which priority does the handbook give this ticket?", ("low", "normal", "high", "urgent"))
ANSWERS = Task("qa", "Answer the question with yes or no.", ("yes", "no"))
TOPICS = Task("news", "What is the article about?", ("world", "sports", "business", "other"))
STARS = Task("stars", "How many stars does the review give?", ("1", "2", "3", "4", "5"))
LETTERS = Task("choices", "Which option is right?", ("A", "B", "C", "D"))


def dropped(task: Task, label: str | None, reasoning: str, text: str = "some text") -> bool:
    return CONTRADICTION(task, Row("r", text, label), Candidate("r", reasoning, "file"))


@pytest.mark.parametrize(
    "conclusion",
    [
        "So the label is {}.",
        "The label is therefore {}",
        "The emotion is {}.",
        "The emotion is clearly {} and nothing else.",
        "Therefore, {}.",
        "Hence: '{}'.",
        "So it is {}.",
        "All of this makes it {}.",
        "Answer: {}",
        "Answer : {}.",
        "This is classified as {}.",
        "That is {} rather than OWN.",
        "It is not OWN but {}.",
        "This points to {}.",
        "The writer expresses deep {} about the day.",
        "It is a sign of {}; the label is {}!",
        "Das Label ist {}.",
        "Daher {}.",
        "La réponse est {}.",
        "La respuesta es {}.",
    ],
)
def test_the_conclusion_decides(conclusion: str) -> None:
    for before in ("", "The day was lost. ", "At first one thinks of OWN. ", "There may be {}. "):
        said = (before + conclusion).replace("OWN", "joy").replace("{}", "sadness")
        assert dropped(EMOTIONS, "joy", said)
        assert not dropped(EMOTIONS, "sadness", said)


@pytest.mark.parametrize(
    "reasoning",
    [
        "The writer smiles all day.",
        "The writer feels joy.",
        "So it is not sadness but joy.",
        "The smile is joy rather than sadness.",
        "It is joy, not sadness.",
        "This is not sadness.",
        "This isn't anger.",
        "It could be sadness.",
        "If the label is sadness, then why the smile?",
        "Is the label sadness?",
        "One may think that the answer is sadness.",
        "One may think that it is sadness. But the emotion is joy.",
        "So the emotion is joy. Nothing points to sadness.",
        "At first the label is sadness. In the end the label is joy.",
        "So the label is sadness? The smile speaks against it.",
        "There is neither anger nor sadness.",
        "There is less sadness than one might think.",
        "The fear of yesterday is gone.",
        "The anger management class went well.",
        "A smile without fear.",
        "Her sadness was long ago.",
        "The end of sadness.",
        "It shows the anger of others.",
    ],
)
def test_what_names_another_label_without_concluding_with_it_stays(reasoning: str) -> None:
    assert not dropped(EMOTIONS, "joy", reasoning)


def test_a_word_of_the_rows_text_is_a_quote_unless_it_is_the_answer() -> None:
    assert dropped(EMOTIONS, "joy", "What remains is anger.")
    assert not dropped(EMOTIONS, "joy", "What remains is anger.", "all my anger is gone")
    assert dropped(EMOTIONS, "joy", "So the answer is anger.", "all my anger is gone")


@pytest.mark.parametrize(
    ("task", "label", "reasoning"),
    [
        (PRIORITIES, "low", "The price is high."),
        (PRIORITIES, "low", "Orders are back to normal."),
        (PRIORITIES, "urgent", "The stakes are so high."),
        (PRIORITIES, "low", "The shop is closed, so it is normal to wait."),
        (PRIORITIES, "low", "The shop is closed, so it is normal."),
        (PRIORITIES, "urgent", "Nobody can pay, so high losses follow."),
        (PRIORITIES, "normal", "the backup job: backup failed 2, sum 2. this concerns the: test system -2, sum 0."),
        (ANSWERS, "yes", "There is no reason to doubt it."),
        (ANSWERS, "yes", "So no harm is done."),
        (ANSWERS, "no", "Yes, he is old. That is not enough."),
        (ANSWERS, "yes", "The answer is no secret."),
        (TOPICS, "business", "The company is the largest in the world."),
        (TOPICS, "business", "On the one hand jobs, prices on the other."),
        (TOPICS, "business", "The firm makes sports shoes."),
        (TOPICS, "business", "It is about a world record in sales."),
        (STARS, "2", "The plot takes 3 hours, so 4 is generous."),
        (STARS, "2", "3 + 1 = 4, so 4 plates."),
        (STARS, "2", "The hotel has 4 stars."),
        (LETTERS, "B", "So A, B and C meet at noon."),
        (LETTERS, "B", "The answer is a number."),
    ],
)
def test_everyday_words_are_not_conclusions(task: Task, label: str, reasoning: str) -> None:
    assert not dropped(task, label, reasoning)


@pytest.mark.parametrize(
    ("task", "label", "reasoning"),
    [
        (PRIORITIES, "low", "The sum is 5, so the priority is high."),
        (PRIORITIES, "low", "The sum is 5, which makes it high."),
        (PRIORITIES, "low", "This ticket is urgent."),
        (ANSWERS, "yes", "He died before. So the answer is no."),
        (ANSWERS, "yes", "He died before. Therefore, no."),
        (TOPICS, "business", "The article is about a cup; the category is sports."),
        (TOPICS, "business", "So the answer is other."),
        (STARS, "2", "The rating is 4."),
        (LETTERS, "A", "So A, B and C meet at noon. Answer: option D."),
    ],
)
def test_everyday_words_are_conclusions_where_the_words_before_say_so(task: Task, label: str, reasoning: str) -> None:
    assert dropped(task, label, reasoning)
    other = next(name for name in ("urgent", "high", "no", "sports", "other", "4", "D") if f" {name}." in reasoning)
    assert not dropped(task, other, reasoning)


def test_choices_are_things_that_are_named_in_passing() -> None:
    task = Task("cqa", "Which choice fits?", ())
    row = Row("r", "Where does one mend a tyre?", "repair shop", ("repair shop", "car", "airport"))

    def drops(reasoning: str) -> bool:
        return CONTRADICTION(task, row, Candidate("r", reasoning, "file"))

    assert not drops("Of the above choices, only repair shops mend what is a car.")
    assert drops("Of the above choices, only one has a hall, so the answer is airport.")


def test_a_name_inside_a_longer_one_is_not_named() -> None:
    task = Task("nli", "Does it follow?", ("entailment", "not entailment"))
    assert dropped(task, "entailment", "So the label is not_entailment.")
    assert not dropped(task, "not entailment", "So the label is not-entailment.")
    assert dropped(task, "not entailment", "So the label is entailment.")


def test_texts_without_a_label_have_no_contradiction() -> None:
    assert not dropped(EMOTIONS, None, "So the label is joy.")
