"""The report: what its sentences say in each case, that hostile text stays text, and that the page is sound."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reported import BOTH, FULL, LABEL, LINEAR, REASON, REASONINGS, URGENCY, answers, bare, check_sound, run, scores
from saywhy import evaluate, report, store
from saywhy.records import RequestError
from saywhy.report import figures, story


@pytest.fixture(scope="module")
def full() -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    return run(FULL)


@pytest.fixture(scope="module")
def page(full: tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]) -> str:
    return report.render(*full)


def told(metrics: dict[str, Any]) -> story.Headline:
    return story.headline(metrics, story.systems(metrics))


def text_of(headline: story.Headline) -> str:
    return " ".join([headline.verdict, headline.sentence, *headline.asides]).replace("\u00a0", " ")


def test_headline_says_that_reasoning_helped_with_interval_p_and_n() -> None:
    found = told(bare(BOTH, REASON, [(REASON, LABEL, "accuracy", 0.063, 0.012, 0.114, 0.004, 0.012)]))
    assert (found.case, found.verdict) == ("helped", "Saying why helped.")
    assert found.asides[-1].startswith("Each arm was trained once: the interval and p speak of other rows")
    assert found.sentence.replace("\u00a0", " ") == (
        "reason_then_label (mode reason) beats label_only by 6.3 points of accuracy on the test split "
        "(95% interval 1.2 to 11.4 points, McNemar p = 0.004, n = 300)."
    )


def test_headline_turns_a_row_that_is_stored_the_other_way_round() -> None:
    found = told(bare(BOTH, REASON, [(LABEL, REASON, "accuracy", -0.063, -0.114, -0.012, 0.004, 0.012)]))
    assert found.case == "helped"
    assert "6.3 points" in found.sentence and "1.2 to 11.4" in found.sentence
    row = story.difference(bare(BOTH, REASON, [(LABEL, REASON, "accuracy", -0.1, -0.2, -0.05, 0, 0)]), REASON, LABEL)
    assert row is not None and (row.a_only, row.b_only) == (10, 30)


def test_headline_says_that_label_only_wins() -> None:
    rows = [(REASON, LABEL, "accuracy", -0.063, -0.114, -0.012, 0.0004, 0.0004)]
    found = told(bare(BOTH, LABEL, rows))
    assert (found.case, found.verdict) == ("hurt", "Label-only wins.")
    assert found.sentence.startswith("label_only beats reason_then_label (mode reason) by 6.3 points of accuracy")
    assert "(95% interval 1.2 to 11.4 points, McNemar p < 0.001" in text_of(found)
    recommended_other = told(bare(BOTH, REASON, rows))
    assert recommended_other.case == "hurt"
    assert "The dev split recommended reason_then_label (mode reason)" in text_of(recommended_other)


def test_headline_says_that_no_difference_was_found() -> None:
    found = told(bare(BOTH, LABEL, [(REASON, LABEL, "accuracy", 0.01, -0.03, 0.05, 0.71, 0.71)]))
    assert (found.case, found.verdict) == ("none", "No difference was found.")
    assert "trained once" not in text_of(found)
    assert "beats" not in found.sentence
    assert "95% interval −3.0 to 5.0 points" in found.sentence
    assert "does not show that the two are equal" in found.sentence
    same = told(bare(BOTH, LABEL, [(REASON, LABEL, "accuracy", 0.0, -0.03, 0.03, 1.0, 1.0)]))
    assert "are right equally often" in same.sentence


@pytest.mark.parametrize(("low", "p", "holm"), [(0.002, 0.03, 0.09), (-0.001, 0.03, 0.03), (0.002, 0.06, 0.06)])
def test_headline_calls_a_hint_a_hint(low: float, p: float, holm: float) -> None:
    floor = (REASON, LINEAR, "accuracy", 0.16, 0.1, 0.2, 0.0, 0.0)
    found = told(bare(BOTH, REASON, [(REASON, LABEL, "accuracy", 0.04, low, 0.08, p, holm), floor]))
    assert (found.case, found.verdict) == ("hint", "A hint, but no finding.")
    assert "beats" not in found.sentence and "after Holm’s correction for 2 tests" in found.sentence


def test_headline_without_reasoned_arms_or_without_label_only_claims_nothing_about_reasoning() -> None:
    only = told(bare({LABEL: 0.6}, LABEL, [(LABEL, LINEAR, "accuracy", 0.1, 0.05, 0.15, 0.001, 0.001)]))
    assert only.case == "only_label_only"
    assert "beats the linear floor by 10.0 points" in text_of(only) and "was not measured" in text_of(only)
    without = told(bare({REASON: 0.6}, REASON))
    assert without.case == "no_label_only" and "nothing to compare with" in text_of(without)
    nothing = told(bare({}, ""))
    assert nothing.case == "nothing" and "the linear floor is right in 50.0%" in nothing.sentence
    assert told(bare(BOTH, REASON)).case == "unmeasured"


def test_headline_tells_of_a_better_floor_and_of_a_majority_that_is_as_good() -> None:
    rows = [
        (REASON, LABEL, "accuracy", 0.06, 0.01, 0.11, 0.004, 0.008),
        (LINEAR, REASON, "accuracy", 0.2, 0.15, 0.25, 0.0001, 0.0002),
    ]
    metrics = bare(BOTH, REASON, rows, linear=0.86)
    assert "The linear floor (TF-IDF and logistic regression) beats reason_then_label" in text_of(told(metrics))
    metrics["floors"]["majority"] = scores(0.66)
    assert "Always giving the most frequent label is right at least as often (66.0%)" in text_of(told(metrics))


def test_headline_mentions_the_chosen_metric_where_it_tells_another_story() -> None:
    accuracy = (REASON, LABEL, "accuracy", 0.063, 0.012, 0.114, 0.004, 0.012)
    against = told(bare(BOTH, REASON, [accuracy, (REASON, LABEL, "macro_f1", -0.05, -0.09, -0.01, None, None)]))
    assert "By macro F1, label_only is ahead of reason_then_label (mode reason): 5.0 points" in text_of(against)
    along = told(bare(BOTH, REASON, [accuracy, (REASON, LABEL, "macro_f1", 0.05, 0.01, 0.09, None, None)]))
    assert "By macro F1" not in text_of(along)


def test_the_pair_of_the_headline_is_chosen_by_dev_and_never_by_test() -> None:
    metrics = bare({LABEL: 0.6, "label_only_matched/label": 0.62, REASON: 0.7, "label_then_reason/label": 0.65}, LABEL)
    metrics["arms"]["label_then_reason"]["modes"]["label"]["test"] = scores(0.99)
    metrics["arms"]["label_only_matched"]["modes"]["label"]["test"] = scores(0.99)
    assert [one.key for one in told(metrics).systems] == [REASON, LABEL]
    metrics["recommended"] = {"arm": "label_then_reason", "mode": "label", "metric": "macro_f1", "why": ""}
    assert [one.key for one in told(metrics).systems] == ["label_then_reason/label", "label_only_matched/label"]


def test_an_arm_with_a_name_of_its_own_is_what_it_says_it_is() -> None:
    row = (REASON, "plain/label", "accuracy", 0.1, 0.05, 0.15, 0, 0)
    metrics = bare({"plain/label": 0.6, REASON: 0.7}, REASON, [row])
    metrics["arms"]["plain"]["arm"] = "label_only"
    assert told(metrics).case == "helped"


def test_candidates_are_shown_by_class_and_with_one_of_each_verdict(full: Any) -> None:
    metrics, predictions = full
    told = {
        "by_class": {
            "calm": {"rows": 800, "without": 3, "candidates": 3200, "kept": 797, "dropped": {"cut_off": 96}},
            "rage": {"rows": 400, "without": 67, "candidates": 1600, "kept": 333, "dropped": {"copy_of_text": 311}},
        },
        "samples": [
            {"label": "rage", "teacher": "base", "reasoning": "<b>bold</b> words", "dropped_because": "copy_of_text"},
            {"label": "calm", "teacher": "base", "reasoning": "", "dropped_because": "empty"},
            {"label": "calm", "teacher": "base", "reasoning": "still water", "dropped_because": ""},
        ],
    }
    shown = {"left": "leave_out", "kept": "label_only"}
    pages = {
        name: report.render(
            {**metrics, "reasonings": {**REASONINGS, **told, "without_reasoning": setting}}, predictions
        )
        for name, setting in shown.items()
    }
    assert "70 rows had none kept and were left out of all arms." in pages["left"]
    assert "70 rows had none kept and were trained with their label alone in every arm." in pages["kept"]
    words = re.sub(r"<[^>]*>|\s+", " ", pages["kept"][pages["kept"].index("Candidates by class") :])
    assert re.search(r"calm\s+800\s+3\s+3,200\s+797", words) and re.search(r"rage\s+400\s+67\s+1,600\s+333", words)
    assert "&lt;b&gt;bold&lt;/b&gt; words" in pages["kept"] and "nothing was written" in words
    assert words.index("still water") < words.index("bold") < words.index("nothing was written")


def test_limits_name_seed_half_width_small_classes_overlap_and_that_reasonings_are_no_proof(full: Any) -> None:
    metrics = full[0]
    known = story.systems(metrics)
    main = next(one for one in known if one.recommended)
    said = " ".join(story.limits(metrics, known, main))
    assert "One training seed (0)" in said and "half the width of its 95% interval" in said
    assert "3 test texts stand in train" in said and "not a proof of how the label was decided" in said
    assert "Fewer than" not in said
    small = {"per_class": {"rare": {"support": 4}, "common": {"support": 90}}}
    scarce = story.System("a/label", "a", "label", "base", None, {**scores(0.5), **small}, 1.0, True)
    assert "Fewer than 20 test rows in: rare." in " ".join(story.limits(metrics, known, scarce))


def test_unequal_training_is_said() -> None:
    metrics = bare(BOTH, REASON)
    for arm, steps in (("label_only", 100), ("reason_then_label", 300)):
        metrics["arms"][arm]["train"] = {"steps": steps, "rows": 3200}
    assert "not trained equally: label_only 100 steps over 3,200 rows, reason_then_label 300" in story.training(metrics)
    metrics["arms"]["label_only"]["train"]["steps"] = 300
    assert "the same 300 steps" in story.training(metrics)


def test_the_page_is_sound_and_the_same_every_time(full: Any, page: str) -> None:
    check_sound(page)
    assert page == report.render(*full)
    assert page.count('role="img"') == 1 + 1 + 1 + 7 + 2 + 1 + 1 + 1


def test_the_policy_lets_the_style_and_the_script_of_the_page_run_and_nothing_else(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None and "unsafe" not in policy[1] and "style=" not in page
    rules = dict(rule.split(" ", 1) for rule in policy[1].split("; "))
    assert [rules.pop(name) for name in ("default-src", "base-uri", "form-action")] == ["'none'"] * 3
    for tag in ("style", "script"):
        inside = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert (len(inside), rules.pop(f"{tag}-src")) == (1, f"'sha256-{digest}'")
    assert rules == {}


def test_the_page_has_every_part(full: Any, page: str) -> None:
    metrics, _ = full
    for part in (
        *("Saying why", "Recommended", metrics["recommended"]["why"], "MAE", "QWK", "majority floor", "linear floor"),
        *("McNemar p", "Holm p", "only a", "Brier", "ECE", "temperature", "target tokens", "label tokens"),
        *("AURC", "MAE, expected", "Answer only when sure", "abstain_below"),
        "strict reading",
        *("label named first", "1,804 (37.6%)", "3 test texts stand in train", "One training seed (0)", "2.13.0"),
        *("not a proof of how the label was decided", "15 min 12 s", "test texts that stand in train, too"),
    ):
        assert part in page, part
    found = re.findall(r'<li class="answer (right|wrong)">', page)
    assert (found.count("right"), found.count("wrong")) == (10, 10)
    assert page.count("<b>Reasoning</b>") == 20


def test_the_page_says_what_answering_only_the_surest_rows_gives(full: Any, page: str) -> None:
    metrics, _ = full
    by_key = {f"{arm}/{mode}": s for arm, facts in metrics["arms"].items() for mode, s in facts["modes"].items()}
    pair = told(metrics).systems
    assert [one.key for one in pair] == ["reason_then_label/vote", "label_only/label"]
    table = page[page.index("<h3>Answer only when sure</h3>") : page.index('<section id="cost">')]
    rows = [re.findall(r"<td>(?:<b>)?([^<]*)", row) for row in table.split("<tr>")[2:]]
    for share, cells in zip((1.0, 0.9, 0.8, 0.5), rows, strict=True):
        expected = []
        for one in pair[::-1]:
            points = by_key[one.key]["test"]["coverage"]
            point = next(point for point in points if point["share"] == share)
            of_dev = next(point for point in by_key[one.key]["dev"]["coverage"] if point["share"] == share)
            assert point["threshold"] == of_dev["threshold"]
            shares = (point["coverage"], point["accuracy"])
            expected += [f"{point['threshold']:.4f}", *(f"{100 * one:.1f}" for one in shares)]
        assert cells == expected
    assert "leaves" not in table, "nobody set a probability"


def test_the_figures_of_sureness_tell_their_points_in_words_and_draw_each(full: Any, page: str) -> None:
    metrics, _ = full
    test = metrics["arms"]["label_only"]["modes"]["label"]["test"]
    found = dict(re.findall(r'<desc id="(\w+)-description">(.*?)</desc>', page))
    pairs = {
        "reliability": [(one["confidence"], one["right"]) for one in test["reliability"]],
        "coverage": sorted((one["coverage"], one["accuracy"]) for one in test["coverage"]),
    }
    for key, points in pairs.items():
        mine = found[key].split("; ")[0]
        assert mine.startswith("label_only/label (") and len(found[key].split("; ")) == 2
        assert mine.endswith(", ".join(f"({100 * x:.1f}, {100 * y:.1f})" for x, y in dict(points).items()))
    drawn = page[page.index('aria-labelledby="reliability-title') :]
    drawn = drawn[: drawn.index("</figure>")]
    assert drawn.count('<circle class="spot c0"') == drawn.count('<circle class="spot c1"') == 15
    equal = re.search(r'class="zero" stroke-dasharray="3 4" x1="1.50%" x2="98.50%" y1="([\d.]+)" y2="([\d.]+)"', drawn)
    assert equal is not None and (float(equal[1]), float(equal[2])) == (260.0, 18.0)


def test_the_page_tells_of_abstaining_and_of_recall_where_false_alarms_are_few() -> None:
    metrics, predictions = run({LABEL: 0.6, REASON: 0.66}, n=60)
    for arm, mode in (("label_only", "label"), ("reason_then_label", "reason")):
        metrics["arms"][arm]["modes"][mode]["test"] |= {"abstained": 0.125, "accuracy_answered": 0.75}
    recall = metrics["arms"]["label_only"]["modes"]["label"]["test"]["recall_at_fpr"]
    recall["low"]["0.01"], recall["low"]["0.1"] = 0.123, None
    page = report.render(metrics, predictions)
    check_sound(page)
    assert page.count("leaves 12.5% of the test rows unanswered and is right in 75.0% of the others") == 2
    assert "<td>12.3</td>" in page and "Recall of each class where false alarms are few" in page
    for heading in ("1%", "5%", "10%"):
        assert page.count(f'<th scope="col">{heading}</th>') == 2


def test_figures_of_an_older_run_are_left_out() -> None:
    page = report.render(bare(BOTH, LABEL), {})
    check_sound(page)
    assert "Answer only when sure" not in page and "false alarms" not in page and "AURC" in page


def test_examples_do_not_depend_on_the_order_of_the_rows(full: Any, page: str) -> None:
    metrics, predictions = full
    assert report.render(metrics, {key: rows[::-1] for key, rows in predictions.items()}) == page


def test_hostile_text_stays_text() -> None:
    attacks = (
        *("<script>alert(1)</script>", "</style><b onclick=x>", "\u202eevil\u202c", "\U0001f642" * 70, "a" * 5000),
        *("שלום עולם", "x\x00\x1b\ud800y", "\"'&amp;{{ 7*7 }}", "]]><!--"),
    )
    metrics, predictions = run({LABEL: 0.6, REASON: 0.66}, labels=attacks, n=180, ordinal=False, name=attacks[0] * 30)
    for rows in predictions.values():
        for index, row in enumerate(rows):
            row["text"] = row["id"] = attacks[index % len(attacks)] + str(index)
            row["reasoning"] = attacks[(index + 1) % len(attacks)] if row["reasoning"] else None
    metrics["audit"]["notes"] = list(attacks)
    metrics["notes"] = list(attacks)
    metrics["versions"] = {attacks[0]: attacks[1]}
    metrics["recommended"]["why"] = attacks[0]
    page = report.render(metrics, predictions)
    check_sound(page)
    page.encode("utf-8")
    assert "<script>alert" not in page and "&lt;script&gt;" in page and "{{ 7*7 }}" in page
    assert page.count("</style>") == 1
    assert "a" * 601 not in page and "…" in page
    assert not set("\x00\x1b\ud800") & set(page)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.text(max_size=80))
def test_any_text_gives_a_sound_page(words: str) -> None:
    metrics = bare({"label_only/label": 0.6}, LABEL)
    metrics["task"]["labels"] = [words, words + "b"]
    row = {"id": words, "text": words, "gold": words, "label": words, "probabilities": [0.75, 0.25], "reasoning": words,
           "forced": True}  # fmt: skip
    page = report.render({**metrics, "notes": [words]}, {"label_only-label": [row]})
    check_sound(page)
    page.encode("utf-8")


@pytest.mark.parametrize("count", [2, 20, 21, 150])
def test_any_number_of_labels_stays_readable(count: int) -> None:
    labels = [f"class_{i}" for i in range(count)]
    metrics, predictions = run({LABEL: 0.6, REASON: 0.61}, labels=labels, n=400, ordinal=False)
    page = report.render(metrics, predictions)
    check_sound(page)
    classes = re.search(r'<svg class="wide" role="img" aria-labelledby="classes-title.*?</svg>', page, re.DOTALL)
    assert classes is not None
    assert classes[0].count("n = ") == min(count, 20)
    assert (f"of {count}; the table has all of them" in page) is (count > 20)
    assert (f"instead of a matrix of {count} × {count}" in page) is (count > 20)
    assert ('class="cell' in page) is (count <= 20)


def test_the_worst_classes_are_shown_where_there_are_many() -> None:
    labels = [f"class_{i}" for i in range(30)]
    metrics, predictions = run({LABEL: 0.6}, labels=labels, n=300, ordinal=False)
    for system in (metrics["arms"]["label_only"]["modes"]["label"], {"test": metrics["floors"]["linear"]}):
        for index, label in enumerate(labels):
            system["test"]["per_class"][label]["f1"] = None if index == 0 else (30 - index) / 100
    page = report.render(metrics, predictions)
    drawn = re.search(r'<desc id="classes-description">(.*?)</desc>', page)
    assert drawn is not None
    assert re.findall(r"class_\d+", drawn[1]) == [f"class_{i}" for i in range(29, 9, -1)]


def test_rows_with_their_own_choices_have_no_tables_by_class() -> None:
    metrics = bare(BOTH, REASON, [(REASON, LABEL, "accuracy", 0.063, 0.012, 0.114, 0.004, 0.012)], linear=None)
    metrics["task"]["labels"] = []
    row = {"id": "1", "text": "t", "gold": "x", "label": "y", "choices": ["y", "x"], "probabilities": [0.75, 0.25],
           "reasoning": "so y", "forced": False}  # fmt: skip
    page = report.render(metrics, {"reason_then_label-reason": [row]})
    check_sound(page)
    assert "Every row brings its own answers" in page and "(75.0%)" in page
    assert "linear floor" not in page


def test_undefined_is_a_dash_that_says_so(page: str) -> None:
    dash = '<abbr title="undefined">–</abbr>'
    metrics = bare(BOTH, REASON)
    metrics["arms"]["label_only"]["modes"]["label"]["test"] = scores(None)
    made = report.render(metrics, {})
    check_sound(made)
    assert "None" not in re.sub(r"<(style|script)>.*?</\1>", "", made, flags=re.DOTALL) and made.count(dash) > 20
    assert "None" not in re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)


def test_examples_show_calibrated_probabilities() -> None:
    metrics = bare({LABEL: 0.6}, LABEL)
    metrics["arms"]["label_only"]["modes"]["label"]["temperature"] = 2.0
    row = {"id": "1", "text": "t", "gold": "a", "label": "a", "probabilities": [0.9, 0.1], "reasoning": None}
    assert "(75.0%)" in report.render(metrics, {"label_only-label": [row]})


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_contrast_is_enough_in_both_themes(theme: int) -> None:
    style = (files("saywhy.report") / "style.css").read_text("utf-8")
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[theme]))
    pairs = [(ink, ground) for ink in ("ink", "soft", "reasoned", "base") for ground in ("paper", "card")]
    pairs += [("ink", "mark"), ("soft", "mark")] + [(f"t{shade}", f"q{shade}") for shade in range(7)]
    for ink, ground in pairs:
        light, dark = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(2, 8))
def test_ticks_cover_the_range_and_are_few(low: float, span: float, most: int) -> None:
    marks = figures.ticks(low, low + span, most)
    slack = 1e-6 * (abs(low) + span + 1)
    assert marks[0] <= low + slack and marks[-1] >= low + span - slack
    assert 2 <= len(marks) <= most + 3 and marks == sorted(set(marks))


def test_fit_counts_wide_characters_twice_and_thin_keeps_both_ends() -> None:
    assert figures.fit("abcdef", 6) == "abcdef" and figures.fit("abcdefg", 6) == "abcde…"
    assert figures.fit("漢字漢字", 6) == "漢字…" and figures.fit(" a \n b ", 9) == "a b"
    line = [(float(i), 1.0) for i in range(5000)]
    kept = figures.thin(line)
    assert len(kept) == figures.CURVE_POINTS and (kept[0], kept[-1]) == (line[0], line[-1])
    assert figures.thin(line[:7]) == line[:7]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0004, "p < 0.001"), (0.0123, "p = 0.012"), (0.25, "p = 0.25"), (None, "p not tested")]
)
def test_p_values_are_written_as_in_papers(value: float | None, text: str) -> None:
    assert story.p_value(value).replace("\u00a0", " ") == text


def test_points_never_write_a_signed_zero() -> None:
    assert [story.points(x, sign=True) for x in (0.0123, -0.0123, -0.0001, 0.0)] == ["+1.2", "−1.2", "0.0", "0.0"]


def test_write_reads_the_run_folder_and_is_byte_identical(tmp_path: Path) -> None:
    metrics, _ = run({LABEL: 0.6, REASON: 0.8}, n=60)
    store.write_json(tmp_path / "metrics.json", metrics)
    (tmp_path / "predictions").mkdir()
    for split in ("dev", "test"):
        path = tmp_path / "predictions" / f"reason_then_label-reason-{split}.parquet"
        evaluate.save_answers(answers(URGENCY, 60, 0.8, 210, reasoned=True), path)
    target = report.write(tmp_path)
    first = target.read_bytes()
    assert target.name == "report.html" and b"60 rows" in first
    assert report.write(tmp_path).read_bytes() == first
    check_sound(first.decode())


def test_answers_of_floors_are_no_examples(full: tuple[dict[str, Any], dict[str, Any]]) -> None:
    metrics, predictions = full
    of_floor = {"floors-linear": next(iter(predictions.values()))}
    bare = {**metrics, "arms": {}, "comparisons": [], "recommended": None}
    assert "drawn by the hash of the row" in report.render(metrics, predictions | of_floor)
    assert "drawn by the hash of the row" not in report.render(bare, of_floor)


def test_write_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"metrics\.json.*saywhy evaluate"):
        report.write(tmp_path)
    store.write_json(tmp_path / "metrics.json", {"task": {}})
    with pytest.raises(RequestError, match="lacks arms, floors, comparisons"):
        report.write(tmp_path)


def test_importing_the_report_brings_no_torch() -> None:
    code = "import sys, saywhy.report; sys.exit(bool({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def reads(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "mean_recall": accuracy, "named": 0.1, "other_named": 0.05}


def controlled(kind: str = "bag_corpus", accuracy: float = 0.31, crossed: float = 0.3) -> dict[str, Any]:
    """A run whose arms were taught a control, of which a linear model reads so much of the label."""
    metrics = bare(BOTH, REASON, [(REASON, LABEL, "accuracy", 0.063, 0.012, 0.114, 0.004, 0.012)])
    metrics["reasonings"] = {
        "rows": 300, "candidates": 400, "kept": 300, "dropped": {"empty": 100}, "rows_without": 0,
        "replace": kind, "replaced": 300,
        "leakage": {
            "rows": 300, "reasonings": 300, "majority": 0.4, "chance": 0.3, "chance_error": 0.02,
            "written": reads(0.9), "taught": reads(accuracy), "crossed": reads(crossed), "missing": "",
        },
    }  # fmt: skip
    return metrics


def test_a_control_that_helped_is_not_called_saying_why() -> None:
    found = told(controlled())
    assert (found.case, found.verdict) == ("helped", "The control helped.")
    assert found.asides[0].startswith(
        "Every arm but label_only was taught a control in the place of reasonings: bag_corpus, words drawn"
    )
    assert "(300 of 300 reasonings were replaced)" in found.asides[0]
    plain = controlled()
    plain["reasonings"] |= {"replace": "none", "replaced": 0}
    assert told(plain).verdict == "Saying why helped."
    assert "control" not in text_of(told(plain))


@pytest.mark.parametrize(
    ("accuracy", "crossed", "said", "unsaid"),
    [
        (0.33, 0.27, "33.0%: next to nothing of the label is left", "wrong labels"),
        (0.5, 0.3, "50.0%: the label is still told in part", "wrong labels"),
        (0.87, 0.88, "87.0%: the label is told as well as by the written ones", "wrong labels"),
        (0.45, 0.05, "only 5.0% of what was taught instead: they speak for wrong labels", "next to nothing"),
    ],
)
def test_the_report_says_what_is_left_of_the_label(accuracy: float, crossed: float, said: str, unsaid: str) -> None:
    page = " ".join(report.render(controlled(accuracy=accuracy, crossed=crossed), {}).split())
    assert "reads the right label of 90.0% of 300 reasonings" in page
    assert said in page and unsaid not in page
    assert "taught (bag_corpus)" in page and "taught (bag_corpus), read as if written" in page


def test_leakage_that_was_not_measured_is_said() -> None:
    metrics = controlled()
    unmeasured = {"written": None, "taught": None, "crossed": None, "missing": "rows have their own choices"}
    metrics["reasonings"]["leakage"] |= unmeasured
    page = report.render(metrics, {})
    assert "was not measured: rows have their own choices." in page
    assert "taught (bag_corpus)" not in page
