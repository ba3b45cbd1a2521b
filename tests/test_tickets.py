"""The bundled task: every ticket is parsed back from docs/tickets.md and triaged anew, without the generator's help."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from saywhy import tickets
from saywhy.records import LABEL_CUE, REASONING_CUE, Candidate, RequestError, Row

PAGE = Path(__file__).parent.parent / "docs" / "tickets.md"
SEEDS = (0, 1, 2)
DRAWN = cache(tickets.generate)


@dataclass(frozen=True)
class Page:
    """The tables of docs/tickets.md: clause → (name, points), status words → status, fillers, and label ranges."""

    facts: dict[str, tuple[str, int]]
    statuses: dict[str, str]
    worth_points: frozenset[str]
    fillers: frozenset[str]
    ranges: dict[str, str]
    shares: dict[tuple[str, str], int]
    sizes: dict[str, int]


def table(first_column: str) -> list[list[str]]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


@cache
def page() -> Page:
    return Page(
        facts={clause: (name, int(points)) for name, points, cell in table("fact") for clause in cell.split("<br>")},
        statuses={words: name for name, _, cell in table("status") for words in cell.split("<br>")},
        worth_points=frozenset(name for name, counts, _ in table("status") if counts == "its points"),
        fillers=frozenset(words for _, cell in table("filler") for words in cell.split("<br>")),
        ranges=dict((label, text) for label, text in table("label")),
        shares={(draw, value): int(share) for draw, value, share in table("draw")},
        sizes={name: int(size) for name, size, _ in table("part")},
    )


@cache
def words_quoted() -> int:
    found = re.findall(r"the first (\d+) words of its clause", " ".join(PAGE.read_text(encoding="utf-8").split()))
    assert len(found) == 1
    return int(found[0])


def label_by_page(total: int) -> str:
    for label, text in page().ranges.items():
        words = text.split()
        if words[1:] == ["or", "less"]:
            fits = total <= int(words[0])
        elif words[1:] == ["or", "more"]:
            fits = total >= int(words[0])
        else:
            fits = int(words[0]) <= total <= int(words[2])
        if fits:
            return label
    raise AssertionError(f"no range holds {total}")


def triage(text: str) -> tuple[str, int, list[str]]:
    """Reasoning, sum and fact names of a ticket, from the page alone."""
    assert text.endswith(".")
    total, steps, names = 0, [], []
    for sentence in text[:-1].split(". "):
        if sentence in page().fillers:
            continue
        clause, comma, words = sentence.partition(", ")
        name, points = page().facts[clause]
        status = page().statuses[words] if comma else "open"
        points = points if status in page().worth_points else 0
        total += points
        opening = " ".join(clause.split()[: words_quoted()])
        steps.append(f"{opening}: {name}{'' if status == 'open' else ', ' + status} {points}, sum {total}.")
        names.append(name)
    return " ".join(steps), total, names


def texts_and_labels(part: Sequence[Row]) -> tuple[list[str], list[str]]:
    return [row.text for row in part], [row.label or "" for row in part]


def all_texts(drawn: tickets.Tickets) -> list[str]:
    rows = (*drawn.train, *drawn.dev, *drawn.test)
    return [*(case.question for case in drawn.worked), *(row.text for row in rows)]


def test_page_lists_the_handbook_as_it_is_in_the_code() -> None:
    assert [(name, int(points), tuple(cell.split("<br>"))) for name, points, cell in table("fact")] == [
        (fact.name, fact.points, fact.wordings) for fact in tickets.HANDBOOK
    ]
    assert {name: tuple(cell.split("<br>")) for name, _, cell in table("status")} == tickets.STATUSES
    assert [tuple(cell.split("<br>")) for _, cell in table("filler")] == [tickets.OPENINGS, tickets.CLOSINGS]
    assert {label: f"sum {text}" for label, text in page().ranges.items()} == tickets.task().descriptions
    drawn: dict[str, Mapping[int, int] | Mapping[str, int]] = {
        "facts in a ticket": tickets.FACTS_PER_TICKET,
        "status of a fact": tickets.STATUS_SHARES,
        "filler": tickets.FILLER_SHARES,
    }
    assert page().shares == {
        (draw, str(value)): share for draw, shares in drawn.items() for value, share in shares.items()
    }
    assert f"every sum from {tickets.SMALLEST_SUM} to {tickets.LARGEST_SUM}," in PAGE.read_text(encoding="utf-8")


def test_page_shows_a_true_example() -> None:
    quotes = [line[2:] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("> ")]
    reasoning, total, _ = triage(quotes[0])
    assert quotes[1] == reasoning
    assert f"Label: `{label_by_page(total)}`" in PAGE.read_text(encoding="utf-8")


def test_handbook_can_be_read_one_way_only() -> None:
    clauses = [clause for fact in tickets.HANDBOOK for clause in fact.wordings]
    words = [words for wordings in tickets.STATUSES.values() for words in wordings]
    everything = [*clauses, *words, *tickets.OPENINGS, *tickets.CLOSINGS]
    assert len(set(everything)) == len(everything)
    assert len({fact.name for fact in tickets.HANDBOOK}) == len(tickets.HANDBOOK) == 20
    assert all(len(fact.wordings) == 4 for fact in tickets.HANDBOOK)
    assert all(text.isascii() and text == text.lower() and not set(text) & set(".,|") for text in everything)
    lowering = sum(fact.points < 0 for fact in tickets.HANDBOOK)
    assert lowering == 5
    assert all(-2 <= fact.points <= 4 and fact.points for fact in tickets.HANDBOOK)
    for shares in (tickets.FACTS_PER_TICKET, tickets.STATUS_SHARES, tickets.FILLER_SHARES):
        assert sum(shares.values()) == 100


def test_a_quote_names_one_wording() -> None:
    clauses = [clause for fact in tickets.HANDBOOK for clause in fact.wordings]
    openings = [clause.split()[: tickets.QUOTED_WORDS] for clause in clauses]
    assert words_quoted() == tickets.QUOTED_WORDS
    assert len({tuple(words) for words in openings}) == len(clauses) == 80
    assert all(len(words) == tickets.QUOTED_WORDS for words in openings)


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        (
            "just one account is touched by it. the saved files have been wiped and lost, but that was a false alarm.",
            "just one account: one user -1, sum -1. the saved files: data lost, false alarm 0, sum -1.",
        ),
        (
            "good morning. doctors use it for their patients, as we see again now. a second try always works.",
            "doctors use it: hospital 3, sum 3. a second try: way around -1, sum 2.",
        ),
    ],
)
def test_a_reasoning_quotes_names_and_adds_up(text: str, reasoning: str) -> None:
    assert tickets.explain(text).reasoning == reasoning


@pytest.mark.parametrize("seed", SEEDS)
def test_every_ticket_is_triaged_as_the_page_says(seed: int) -> None:
    drawn = DRAWN(seed)
    for case in drawn.worked:
        reasoning, total, _ = triage(case.question)
        assert (case.reasoning, case.answer) == (reasoning, label_by_page(total))
    for row in (*drawn.train, *drawn.dev, *drawn.test):
        reasoning, total, names = triage(row.text)
        assert (drawn.solutions[row.id], row.label) == (reasoning, label_by_page(total))
        assert 2 <= len(names) == len(set(names)) <= 4
        assert tickets.explain(row.text) == tickets.Solution(reasoning, total, label_by_page(total))


@pytest.mark.parametrize("seed", SEEDS)
def test_parts_have_their_sizes_and_share_no_text(seed: int) -> None:
    drawn = DRAWN(seed)
    parts = {"worked": drawn.worked, "train": drawn.train, "dev": drawn.dev, "test": drawn.test}
    assert {name: len(part) for name, part in parts.items()} == page().sizes
    assert page().sizes == {"worked": 400, "train": 1000, "dev": 200, "test": 1000}
    texts = all_texts(drawn)
    assert len(set(texts)) == len(texts) == 2600
    ids = [row.id for row in (*drawn.train, *drawn.dev, *drawn.test)]
    assert len(set(ids)) == 2200
    assert drawn.solutions.keys() == set(ids)


def test_texts_drawn_twice_are_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    poor = tuple(tickets.Fact(fact.name, fact.points, fact.wordings[:1]) for fact in tickets.HANDBOOK)
    monkeypatch.setattr(tickets, "HANDBOOK", poor)
    monkeypatch.setattr(tickets, "FACTS_PER_TICKET", {2: 50, 4: 50})
    monkeypatch.setattr(tickets, "STATUS_SHARES", {"unsaid": 100})
    monkeypatch.setattr(tickets, "FILLER_SHARES", {"none": 100})
    assert len(set(all_texts(tickets.generate(0)))) == 2600


@pytest.mark.parametrize("seed", SEEDS)
def test_labels_are_balanced_and_sums_even_in_every_part(seed: int) -> None:
    drawn = DRAWN(seed)
    answers = {"worked": [case.answer for case in drawn.worked]}
    answers |= {name: [row.label or "" for row in getattr(drawn, name)] for name in ("train", "dev", "test")}
    for labels in answers.values():
        shares = {label: count / len(labels) for label, count in Counter(labels).items()}
        assert shares.keys() == set(tickets.LABELS)
        assert all(0.14 < share < 0.36 for share in shares.values()), shares
    sums = Counter(triage(text)[1] for text in all_texts(drawn))
    assert sorted(sums) == list(range(-4, 12))
    assert max(sums.values()) - min(sums.values()) <= 8


def test_tickets_are_short_and_show_no_label_word() -> None:
    drawn = DRAWN(0)
    texts = all_texts(drawn)
    lengths = [len(text.split()) for text in texts]
    assert 28 <= sum(lengths) / len(lengths) <= 36
    assert sum(20 <= length <= 45 for length in lengths) > 0.8 * len(lengths)
    words = Counter(word for text in texts for word in text.replace(",", " ").replace(".", " ").split())
    assert len(words) < 400
    assert not words.keys() & set(tickets.LABELS)
    for reasoning in (*drawn.solutions.values(), *(case.reasoning for case in drawn.worked)):
        assert not any(label in reasoning for label in tickets.LABELS)
        assert REASONING_CUE not in reasoning and LABEL_CUE not in reasoning
        assert len(reasoning.split()) <= 40


def test_reasonings_have_the_sizes_on_the_page() -> None:
    words = " ".join(PAGE.read_text(encoding="utf-8").split())
    shown = re.findall(r"A text has (\d+) words on average and a true reasoning (\d+) \((\d+) to (\d+)\)", words)
    drawn = [DRAWN(seed) for seed in SEEDS]
    texts = [len(text.split()) for one in drawn for text in all_texts(one)]
    cases = [case.reasoning for one in drawn for case in one.worked]
    told = [len(text.split()) for text in (*cases, *(text for one in drawn for text in one.solutions.values()))]
    measured = (round(sum(texts) / len(texts)), round(sum(told) / len(told)), min(told), max(told))
    assert [tuple(map(int, found)) for found in shown] == [measured]


def test_fact_order_is_random() -> None:
    firsts = Counter(triage(row.text)[2][0] for row in DRAWN(0).train)
    assert len(firsts) == len(tickets.HANDBOOK)
    assert max(firsts.values()) < 100


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (0, "6b76407f028d556906ae4563ccc3819466307de20e1bdbc66681ceaa39f00255"),
        (1, "2fa1593d3bb6e574d1301161b19bb1592c9227547b9d03f8382df5be3ebf1c90"),
    ],
)
def test_files_have_the_same_bytes_for_a_seed(seed: int, expected: str, tmp_path: Path) -> None:
    tickets.write(tmp_path / "new" / "folder", seed)
    names = ("worked.jsonl", "train.jsonl", "dev.jsonl", "test.jsonl")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(names)
    content = b"".join((tmp_path / "new" / "folder" / name).read_bytes() for name in names)
    assert hashlib.sha256(content).hexdigest() == expected


def test_files_hold_what_was_drawn(tmp_path: Path) -> None:
    tickets.write(tmp_path, 3)
    tickets.write(tmp_path, 2)
    read = {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in tmp_path.iterdir()
    }
    drawn = DRAWN(2)
    assert read["worked"] == [
        {"question": case.question, "answer": case.answer, "reasoning": case.reasoning} for case in drawn.worked
    ]
    for name, part in (("train", drawn.train), ("dev", drawn.dev), ("test", drawn.test)):
        assert read[name] == [{"id": row.id, "text": row.text, "label": row.label} for row in part]


def test_seeds_differ() -> None:
    assert not {row.text for row in DRAWN(0).test} & {row.text for row in DRAWN(1).train}


def test_task_is_a_rating_scale_with_short_words() -> None:
    task = tickets.task()
    assert task.labels == tickets.LABELS == ("low", "normal", "high", "urgent")
    assert task.ordinal
    assert task.instruction == tickets.instruction
    assert len(task.instruction.split()) <= 25
    assert task.descriptions == {
        "low": "sum 0 or less",
        "normal": "sum 1 to 3",
        "high": "sum 4 to 7",
        "urgent": "sum 8 or more",
    }


@given(st.integers(-30, 30))
def test_label_of_a_sum_is_the_range_that_holds_it(total: int) -> None:
    assert tickets.label_of(total) == label_by_page(total)


@pytest.mark.parametrize(
    ("reasoning", "expected"),
    [
        ("the checkout is: checkout down 4, sum 4. this concerns the: test system -2, sum 2.", 2),
        ("take all the: no hurry -2, sum -2.", -2),
        ("sum 4. sum", 4),
        ("sum 12", 12),
        ("sum 2, 7", 2),
        ("the checkout is: checkout down 4.", None),
        ("checksum 4", None),
        ("", None),
        ("sum " + "9" * 5000, None),
    ],
)
def test_last_sum(reasoning: str, expected: int | None) -> None:
    assert tickets.last_sum(reasoning) == expected


@pytest.mark.parametrize(
    ("reasoning", "label", "dropped"),
    [
        ("the checkout is: checkout down 4, sum 4. doctors use it: hospital 3, sum 7.", "high", False),
        ("the checkout is: checkout down 4, sum 4. doctors use it: hospital 3, sum 7.", "urgent", True),
        ("the checkout is: checkout down 4, sum 4. staff passwords have: passwords leaked 4, sum 8.", "high", True),
        ("the checkout is: checkout down 4.", "high", True),
        ("", "low", True),
    ],
)
def test_sum_of_another_label(reasoning: str, label: str, dropped: bool) -> None:
    row = Row("a", "the checkout is down for every buyer.", label)
    assert tickets.sum_of_another_label(tickets.task(), row, Candidate("a", reasoning, "file")) is dropped


def test_true_reasonings_pass_the_sum_check_and_others_do_not() -> None:
    drawn = DRAWN(1)
    task = tickets.task()
    for row in drawn.train:
        assert not tickets.sum_of_another_label(task, row, Candidate(row.id, drawn.solutions[row.id], "file"))
    neighbours = zip(drawn.train, drawn.train[1:], strict=False)
    for row, other in neighbours:
        candidate = Candidate(row.id, drawn.solutions[other.id], "file")
        assert tickets.sum_of_another_label(task, row, candidate) is (row.label != other.label)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("hi all. the moon is down. no backup has been made this week.", "the moon is down"),
        (
            "the backup disk cannot be read, but nobody knows.",
            "the backup disk cannot be read, but nobody knows",
        ),
    ],
)
def test_explain_names_the_sentence_it_does_not_know(text: str, named: str) -> None:
    with pytest.raises(RequestError, match=f'no sentence "{named}"'):
        tickets.explain(text)


def linear_floor(drawn: tickets.Tickets) -> tuple[float, float]:
    """Accuracy in percent on test of TF-IDF 1-2-grams + logistic regression: C = 1, and C chosen on dev by macro F1."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2))
    texts, labels = texts_and_labels(drawn.train)
    train = vectorizer.fit_transform(texts)
    dev, dev_labels = texts_and_labels(drawn.dev)
    test, test_labels = texts_and_labels(drawn.test)
    fitted = {c: LogisticRegression(C=c, max_iter=2000).fit(train, labels) for c in (0.1, 0.3, 1, 3, 10, 30)}
    in_dev = vectorizer.transform(dev)
    chosen = max(fitted, key=lambda c: f1_score(dev_labels, fitted[c].predict(in_dev), average="macro"))
    in_test = vectorizer.transform(test)
    return 100 * fitted[1].score(in_test, test_labels), 100 * fitted[chosen].score(in_test, test_labels)


@pytest.mark.parametrize("seed", SEEDS)
def test_linear_floor(seed: int) -> None:
    plain, chosen = linear_floor(DRAWN(seed))
    print(f"seed {seed}: C = 1 {plain:.1f}%, C chosen on dev {chosen:.1f}%")
    assert 60 < plain < 75
    assert 60 < chosen < 75
    on_page = {cells[0]: [float(cell) for cell in cells[1:]] for cells in table("seed")}
    assert on_page[str(seed)] == pytest.approx([plain, chosen], abs=1.0)


def test_labels_can_be_made_rare() -> None:
    shares = {"low": 40, "normal": 5, "high": 30, "urgent": 25}
    made = tickets.generate(3, tickets.Sizes(40, 200, 40, 400), shares)
    assert [len(part) for part in (made.worked, made.train, made.dev, made.test)] == [40, 200, 40, 400]
    rows = (*made.train, *made.dev, *made.test)
    found = Counter([*(row.label for row in rows), *(case.answer for case in made.worked)])
    assert all(abs(found[label] - 6.8 * share) <= 2 for label, share in shares.items())
    assert len({row.text for row in rows} | {case.question for case in made.worked}) == 680
    assert all(tickets.explain(row.text).label == row.label for row in rows)
