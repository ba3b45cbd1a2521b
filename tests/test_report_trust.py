"""The report of probes: how far reasonings can be trusted, layers, cost, the rarest class, what rows can show."""

from __future__ import annotations

import re
from typing import Any

import pytest

from reported import BOTH, FULL, LABEL, LINEAR, REASON, bare, check_sound, faithful, inside, probes, run, scores, share
from saywhy import report
from saywhy.report import cost, story, trust
from saywhy.report import inside as layers


@pytest.fixture(scope="module")
def probed() -> tuple[dict[str, Any], str]:
    metrics, predictions = run(FULL, n=120)
    metrics["probes"] = probes(metrics)
    return metrics, report.render(metrics, predictions)


def part(page: str, name: str) -> str:
    """A section of the page by its id."""
    found = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)
    assert found is not None
    return found[0]


def words(html: str) -> str:
    return " ".join(re.sub("<[^>]*>", " ", html).replace("&nbsp;", " ").split())


@pytest.mark.parametrize(
    ("changed", "case", "said"),
    [
        ({}, "follows", "it took that answer in 92.9% [89.2, 95.3] of 280 rows and stayed as it was in 3.9% [2.2,"),
        ({"followed": 0.04, "stayed": 0.93}, "decoration", "the answer stayed as it was in 92.9% [89.2, 95.3] of 280"),
        ({"followed": 0.5, "stayed": 0.47}, "mixed", "it took that answer in 50.0% [44.2, 55.8] of 280 rows"),
        ({"masked": 0.41}, "leaks", "61.0% [55.4, 66.3] of the reasonings name a label, and with its words masked"),
        ({"first": 0.92}, "leaks", "its first token alone leads to the same answer in 94.0% [90.7, 96.2] of rows"),
        ({"followed": None, "stayed": None}, "unknown", "No row could be given the reasoning of a row with another"),
    ],
)
def test_the_verdict_is_what_most_rows_do_and_has_its_figures(changed: dict[str, Any], case: str, said: str) -> None:
    found = trust.sections({REASON: faithful(**changed)})[0]
    assert (found.name, found.n, found.case, found.verdict) == (REASON, 300, case, trust.VERDICTS[case])
    assert said in found.sentence
    assert found.sentence.endswith(trust.READ_AS[case] + ".")


def test_an_early_answer_that_the_text_alone_gives_is_no_leak() -> None:
    found = trust.sections({REASON: faithful(first=0.92, without=0.92)})[0]
    assert found.case == "follows"
    assert any("most answers are known before the reasoning begins" in one for one in found.said)
    assert not any("known before" in one for one in trust.sections({REASON: faithful()})[0].said)


def test_what_was_measured_is_said_with_figures() -> None:
    said = " ".join(trust.sections({REASON: faithful()})[0].said)
    for sentence in (
        "Without any of the reasoning 35.0% [29.8, 40.6] of the answers are the same; accuracy goes from 30.0%",
        "Behind the first half of it 67.3% [61.8, 72.4]",
        "with the same answer, 97.1% [94.5, 98.5] stayed",
        "One mistake put into the reasoning changed 43.9%",
        "with its words masked 88.0% [82.5, 91.9] of those keep their answer",
        "it is the answer in 98.1% [95.7, 99.2] of them",
        "rows answered wrongly in 73.3% [61.0, 82.9]: right answers hang on their reasonings more than wrong ones",
    ):
        assert sentence in said, sentence
    assert "The probe itself" not in said
    told = {**faithful(), "own": share(0.95, 300)}
    assert "found the saved answer in only 95.0% [91.9, 96.9] of rows" in trust.sections({REASON: told})[0].said[0]


def test_the_section_is_a_page_with_figures_their_numbers_and_scores_that_are_explained(
    probed: tuple[dict[str, Any], str],
) -> None:
    metrics, page = probed
    check_sound(page)
    section = part(page, "trust")
    assert '<a href="#trust">' in page and "evaluate.probes" not in section
    figures = section.split("<figure")[1:]
    assert len(figures) == 4 * len(metrics["probes"]["faithfulness"]) == 4
    for one in figures:
        assert one.count('role="img"') == one.count("<table>") == 1
    assert words(figures[1]).count("%") > 11 and "[55.4, 66.3]" in words(section)
    text = words(section)
    assert "RQ, points +8.2 [+3.1, +13.3] 300" in text
    assert "with the reasoning (76.0%) less that without one (67.8% (label_only/label))" in text
    assert "LAS, points −2.1 [−6.0, +1.8] 300" in text and "LAS, hidden −9.3 – 101" in text
    assert "REV, wrong, nats −0.070 [−0.170, 0.030] 72" in text and "0 if the measure is sound" in text
    assert section.count('class="band') == 4


def test_scores_that_could_not_be_had_are_not_shown_as_figures() -> None:
    nothing = {"value": None, "ci95": None, "n": 0}
    metrics = bare(BOTH, REASON)
    told = {
        **faithful(),
        "rq": None,
        "las": {"value": None, "ci95": None, "leaking": nothing, "hidden": nothing},
        "rev": None,
        "missing": "no label_only arm was trained",
        "truncated": [],
        "masked": {key: share(None, 0) for key in ("named", "same", "accuracy")},
    }
    metrics["probes"] = {"faithfulness": {REASON: told}}
    page = report.render(metrics, {})
    check_sound(page)
    section = words(part(page, "trust"))
    assert "RQ, LAS and REV could not be had: no label_only arm was trained." in section
    assert "RQ, points +" not in section and "LAS, leaking – – 0" in section and "How much" not in section


def test_without_the_probe_one_sentence_names_the_setting() -> None:
    page = words(part(report.render(bare(BOTH, REASON), {}), "trust"))
    assert "was not measured" in page and "evaluate.probes: [faithfulness]" in page and "The answer follows" not in page
    for mode in ("explain", "label"):
        plain = report.render(bare({LABEL: 0.6, f"label_then_reason/{mode}": 0.6}, LABEL), {})
        assert 'id="trust"' not in plain


def test_positions_inside_the_model_are_never_drawn_together(probed: tuple[dict[str, Any], str]) -> None:
    metrics, page = probed
    section = part(page, "inside")
    assert "Compare systems only at the same position" in section
    before, behind = section.split('<h3 class="place">')[1:]
    assert before.startswith("After the text") and behind.startswith("After the reasoning")
    for half, names in ((before, ("label_only/label", "label_then_reason/label")), (behind, (REASON,))):
        for figure in half.split("<figure")[1:]:
            legend = re.search(r'<ul class="legend">(.*?)</ul>', figure)
            assert legend is not None and re.findall(r'class="key">([^<]*)', legend[1]) == list(names)
            assert figure.count('class="curve c') == 2 * len(names) and figure.count('class="band') == len(names)
            assert figure.partition("</figure>")[0].count('<th scope="row">') == 5 * len(names)
    found = layers.places(metrics["probes"]["inside"])
    assert [one.output.rows[0][:4] for one in found] == [
        (LABEL, "300", "0.410", "[0.310, 0.510]"),
        (REASON, "300", "0.410", "[0.310, 0.510]"),
    ]


def test_an_undefined_layer_is_left_out_of_the_line() -> None:
    told = inside()
    told["layers"][0]["logit_lens"] = {"mean": None, "ci95": None, "n": 0}
    figure = layers.places({LABEL: told})[0].drawn[0]
    assert [row[1] for row in figure.numbers.rows] == ["1", "2", "3", "4"]


def test_right_answers_are_told_by_second_and_by_tokens(probed: tuple[dict[str, Any], str]) -> None:
    metrics, page = probed
    found = cost.latency(metrics["probes"]["latency"], {one.key: one for one in story.systems(metrics)})
    assert found is not None
    # 130 right of 200 in 8 seconds with 9,000 tokens.
    assert found.table.rows[0] == (LABEL, "1", "200", "65.0", "25.0", "16.2", "45.0", "14.4")
    assert [row[:2] for row in found.table.rows[3:5]] == [(REASON, "1"), (REASON, "8")]
    assert "the same 200 test rows on cpu with 2 threads" in found.where
    section = part(page, "cost")
    assert words(section).count("Right answers a second") >= 2 and "label_only/label, batch 32" in section
    assert cost.latency({"rows": 0, "device": "cpu", "threads": 1, "systems": {}}, {}) is None


def rare(lost: int) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """A run in which the reasoned arm misses so many more of the 40 rows of the rarest class."""
    metrics, predictions = run({LABEL: 0.6, REASON: 0.7}, labels=("much", "rare"), n=80, ordinal=False)
    metrics["audit"]["splits"]["train"]["classes"] = {"much": 900, "rare": 31}
    metrics["reasonings"]["samples"] = [
        {"label": "rare", "teacher": "x", "reasoning": "said in <vain>", "dropped_because": "cut_off"},
        {"label": "rare", "teacher": "x", "reasoning": "said well", "dropped_because": ""},
        {"label": "much", "teacher": "x", "reasoning": "of much else", "dropped_because": ""},
    ]
    for key, misses in (("label_only-label", 2), ("reason_then_label-reason", 2 + lost)):
        for index, row in enumerate(predictions[key]):
            row["gold"] = "rare" if index < 40 else "much"
            row["label"] = "rare" if misses <= index < 40 else "much"
        arm, _, mode = key.partition("-")
        row = metrics["arms"][arm]["modes"][mode]["test"]["per_class"]["rare"]
        row.update(recall=(40 - misses) / 40, precision=1.0, support=40, recall_ci95=[0.5, 0.9], precision_ci95=None)
    return metrics, predictions


def test_a_reasoned_arm_that_loses_the_rarest_class_is_named() -> None:
    page = report.render(*rare(10))
    check_sound(page)
    section = words(part(page, "classes")).replace("\u00a0", " ")
    assert "The rarest class: rare" in section and "31 training rows." in section
    assert (
        "reason_then_label (mode reason) loses rows of the rarest class: it finds 70.0% [50.0, 90.0] of the 40 test "
        "rows of rare, label_only 95.0% [50.0, 90.0]. It misses 10 that label_only finds and finds 0 that label_only "
        "misses (p = 0.002)."
    ) in section
    assert section.index("said well") < section.index("said in &lt;vain&gt;") and "of much else" not in section
    answers = part(page, "classes")[part(page, "classes").index("Its test rows with what") :]
    assert re.findall('class="answer (right|wrong)"', answers) == ["right"] * 3 + ["wrong"] * 3


def test_a_loss_that_may_be_chance_is_said_to_be_one_and_no_loss_is_said_too() -> None:
    few = words(part(report.render(*rare(2)), "classes"))
    assert "finds fewer rows of the rarest class" in few and "chance alone can bring that about" in few
    none = words(part(report.render(*rare(0)), "classes"))
    assert "No mode that reasons finds fewer of its test rows than label_only/label does." in none
    metrics, predictions = rare(2)
    metrics["audit"]["splits"]["train"]["classes"] = {"much": 31, "rare": 31}
    assert "The rarest class" not in report.render(metrics, predictions)


def test_what_the_rows_could_have_shown_stands_beside_every_verdict_of_no_difference() -> None:
    rows = [
        (REASON, LABEL, "accuracy", 0.01, -0.03, 0.05, 0.71, 0.71),
        (REASON, LINEAR, "accuracy", 0.02, -0.02, 0.06, 0.5, 0.71),
    ]
    metrics = bare(BOTH, REASON, rows)
    plain = report.render(metrics, {})
    assert "four times out of five" not in plain and "could show" not in plain
    for row, mde in zip(metrics["comparisons"], (0.061, 0.048), strict=True):
        row["mde"] = mde
    told = story.headline(metrics, story.systems(metrics))
    assert told.sentence.endswith(
        "The smallest difference that these 300 rows would have shown four times out of five is 6.1 points."
    )
    assert told.asides[0].endswith("four times out of five is 4.8 points.")
    page = report.render(metrics, {})
    table = words(part(page, "comparisons"))
    assert "could show" in table and "+1.0 −3.0 to +5.0 6.1 0.71" in table
    metrics["comparisons"][0].update(difference=0.09, ci95=[0.05, 0.13], p_mcnemar=0.001, p_holm=0.002)
    assert "four times" not in story.headline(metrics, story.systems(metrics)).sentence
    metrics["comparisons"][0]["mde"] = None
    check_sound(report.render(metrics, {}))


def test_an_encoder_and_the_base_as_it_is_are_floors_like_the_others() -> None:
    encoder = (REASON, "floors/encoder", "accuracy", -0.2, -0.25, -0.15, 0.0001, 0.0002)
    metrics = bare(BOTH, REASON, [encoder])
    metrics["floors"] |= {"encoder": scores(0.86), "zero_shot": scores(0.31)}
    told = story.headline(metrics, story.systems(metrics))
    assert "The fine-tuned encoder beats reason_then_label (mode reason) by 20.0 points" in " ".join(told.asides)
    page = report.render(metrics, {})
    check_sound(page)
    assert "encoder (floor)" in page and "zero-shot (floor)" in page and "zero-shot floor" in page
    only = bare({}, "")
    only["floors"]["encoder"] = scores(0.86)
    sentence = story.headline(only, story.systems(only)).sentence
    assert "the fine-tuned encoder is right in 86.0% of the test rows (95% interval 81.0 to 91.0%" in sentence


def test_every_figure_has_its_numbers_in_a_table(probed: tuple[dict[str, Any], str]) -> None:
    figures = re.findall(r"<figure.*?</figure>", probed[1], re.DOTALL)
    assert len(figures) > 15
    without = [re.search("<h3>(.*?)</h3>", one, re.DOTALL) for one in figures if "<table" not in one]
    # F1 by class has its table just beneath it.
    assert [words(one[1]).strip() for one in without if one] == ["F1 by class, %"]
