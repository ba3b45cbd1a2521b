"""The page of a study: what its sentences say in each case, what its tables and figures show, and that it is sound."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

import made_study
from made_study import LABEL, LINEAR, REASON
from reported import check_sound
from saywhy import report, store
from saywhy.records import RequestError
from saywhy.report import study_answers, study_parts, study_probes, study_story
from saywhy.report.study_story import Finding, Side

WORDS = re.compile(r"<[^>]*>|\s+")


@pytest.fixture(scope="module")
def full() -> dict[str, Any]:
    return made_study.full()


@pytest.fixture(scope="module")
def page(full: dict[str, Any]) -> str:
    return report.render_study(full, made_study.predictions(full, 20))


def text_of(page: str) -> str:
    """What a reader sees of a page, on one line."""
    visible = re.sub(r"<(style|script)[^>]*>.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", WORDS.sub(" ", visible))


def section(page: str, ident: str) -> str:
    return page[page.index(f'<section id="{ident}"') :].partition("</section>")[0]


def cells(html: str) -> list[list[str]]:
    """The rows of all tables as the texts of their cells."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", html, re.DOTALL)
    return [
        [re.sub(r"\s+", " ", WORDS.sub(" ", cell)).strip() for cell in re.split(r"</t[hd]>", row)[:-1]] for row in rows
    ]


def side(system: str, setting: str = "s0", name: str = "as written", kind: str = "", replace: str = "none") -> Side:
    return Side(setting, name, system, kind or system.partition("/")[0], replace)


def finding(
    difference: float,
    ci95: tuple[float, float] | None = None,
    seeds: int = 3,
    a: Side | None = None,
    b: Side | None = None,
    **more: Any,
) -> Finding:
    """A comparison of reasoning first with label_only that no test bears out, unless `more` says so."""
    told: dict[str, Any] = {
        "part": "grid", "a": a or side(REASON), "b": b or side(LABEL), "metric": "accuracy", "difference": difference,
        "by_seed": (difference,) * seeds, "ci95": ci95 or (difference - 0.02, difference + 0.02),
        "seed_ci95": (difference - 0.03, difference + 0.03) if seeds > 1 else None,
        "p": 0.4, "p_holm": 0.9,
        "p_mcnemar": (0.5,) * seeds, "p_mcnemar_holm": (1.0,) * seeds, "mde": 0.024, "n": 400,
        "seeds": tuple(range(seeds)),
    }  # fmt: skip
    return Finding(**(told | more))


BORNE_OUT = {"p": 0.001, "p_holm": 0.01}


def test_a_sentence_gives_a_clear_gain_with_both_intervals() -> None:
    found = finding(0.085, (0.064, 0.105), seed_ci95=(0.051, 0.119), **BORNE_OUT)
    assert study_story.sentence(found) == (
        "Reasoning first (reason_then_label/reason) gains 8.5 points of accuracy over label_only (95% interval +6.4 to "
        "+10.5 over rows and 3 seeds; seed-level +5.1 to +11.9)."
    )


def test_a_sentence_says_that_label_only_wins() -> None:
    said = study_story.sentence(finding(-0.041, (-0.06, -0.02), seed_ci95=(-0.08, -0.001), **BORNE_OUT))
    assert said == (
        "label_only beats reasoning first (reason_then_label/reason) by 4.1 points of accuracy (95% interval +2.0 to "
        "+6.0 over rows and 3 seeds; seed-level +0.1 to +8.0)."
    )


def test_a_sentence_without_a_difference_says_what_could_have_been_seen() -> None:
    said = study_story.sentence(finding(0.008))
    assert said.startswith("No difference is shown: reasoning first (reason_then_label/reason) is ahead of label_only")
    assert said.endswith(
        "the smallest difference that these rows and seeds could have shown is about 2.4 points of accuracy."
    )
    assert study_story.sentence(finding(0.008, mde=None)).endswith("does not show that the two are equal.")
    assert "come out the same" in study_story.sentence(finding(0.0))


@pytest.mark.parametrize(
    ("more", "case"),
    [
        ({}, "none"),
        ({"p": 0.03}, "hint"),
        ({"p_mcnemar": (0.01, 0.01, 0.01)}, "hint"),
        ({"p_mcnemar": (0.01, 0.01, 0.2)}, "none"),
        ({"p_holm": 0.04}, "none"),
        ({"ci95": (0.01, 0.03)}, "hint"),
        ({"ci95": (0.01, 0.03), "p_holm": 0.04}, "clear"),
        ({"ci95": (-0.03, -0.01), "p_holm": 0.04}, "clear"),
        ({"ci95": (0.01, 0.03), "p": None, "p_holm": None, "p_mcnemar": (), "p_mcnemar_holm": ()}, "clear"),
    ],
)
def test_a_difference_is_clear_only_where_interval_and_a_corrected_test_agree(more: dict[str, Any], case: str) -> None:
    assert finding(0.02, **({"ci95": (-0.01, 0.05), "seed_ci95": (-0.1, 0.1)} | more)).case == case


def test_turning_a_comparison_twice_gives_it_back_and_less_error_is_a_gain() -> None:
    found = finding(0.02, (0.01, 0.05), by_seed=(0.01, 0.03, 0.02))
    assert found.turned().turned() == found
    assert (found.turned().difference, found.turned().ci95) == (-0.02, (-0.05, -0.01))
    error = finding(-0.08, (-0.1, -0.05), metric="mae", **BORNE_OUT)
    assert error.gain == 0.08 and error.turned().gain == -0.08
    assert "gains 0.080 of mean absolute error over label_only (95% interval −0.100" in study_story.sentence(error)


def test_a_comparison_of_settings_names_them() -> None:
    a, b = side(REASON, "s1", "reasonings.replace=bag_class", replace="bag_class"), side(REASON)
    said = study_story.sentence(finding(-0.05, (-0.07, -0.03), a=a, b=b, **BORNE_OUT))
    assert said.startswith("reason_then_label/reason with as written beats reasonings.replace=bag_class by 5.0 points")


def test_the_headline_is_the_comparison_that_the_study_names(full: dict[str, Any]) -> None:
    known = study_story.findings(full)
    told = study_story.headline(full, known)
    assert (told.case, told.verdict) == ("helped", "Saying why helped.")
    assert told.finding is not None and (told.finding.a.setting, told.finding.a.system) == ("s3", REASON)
    row = next(one for one in full["comparisons"] if one["a"] == {"setting": "s3", "system": REASON})
    assert f"gains {100 * row['difference']:.1f} points of accuracy over label_only" in told.sentence
    assert "over rows and 3 seeds; seed-level" in told.sentence
    asides = " ".join(told.asides)
    assert "This is data.rows=all, one of 21 settings" in asides and "3 seeds are few" in asides
    turned = full | {"headline": full["headline"] | {"a": full["headline"]["b"], "b": full["headline"]["a"]}}
    assert study_story.headline(turned, known).sentence == told.sentence


def headline_of(**more: Any) -> study_story.Told:
    """The headline of a study whose only comparison is changed so."""
    document = made_study.full((0, 1, 2))
    row = next(one for one in document["comparisons"] if one["a"] == {"setting": "s3", "system": REASON})
    document["comparisons"] = [row | more]
    return study_story.headline(document, study_story.findings(document))


def test_the_headline_is_honest_about_losses_hints_nothing_and_few_seeds() -> None:
    lost = headline_of(
        difference=-0.05, ci95=[-0.07, -0.03], p_holm=0.01, by_seed=[-0.06, 0.01, -0.1],
        seed_ci95=[-0.2, 0.1],
    )  # fmt: skip
    assert (lost.case, lost.verdict) == ("hurt", "Label-only wins.")
    assert "a training yet to come may go the other way" in " ".join(lost.asides)
    assert "The seeds do not agree on the direction: −6.0, +1.0, −10.0." in lost.asides
    hint = headline_of(difference=0.02, ci95=[0.001, 0.04], p_holm=0.3, p_mcnemar_holm=[0.2] * 3)
    assert (hint.case, hint.verdict) == ("hint", "A hint, but no finding.")
    none = headline_of(difference=0.002, ci95=[-0.02, 0.02], p=0.9, p_holm=1.0, seed_ci95=[-0.1, 0.1],
                       p_mcnemar=[0.9] * 3, p_mcnemar_holm=[1.0] * 3)  # fmt: skip
    assert (none.case, none.verdict) == ("none", "No difference is shown.")


def test_one_seed_says_so_and_a_control_is_not_called_saying_why() -> None:
    single = made_study.full((0,))
    told = study_story.headline(single, study_story.findings(single))
    assert "over rows alone, one seed)" in told.sentence and "seed-level" not in told.sentence
    assert any(one.startswith("One seed: how much another training would differ") for one in told.asides)
    assert any(one.startswith("One seed a setting") for one in study_story.limits(single, []))
    control = made_study.full()
    control["headline"] |= {"part": "controls", "a": {"setting": "c0", "system": REASON},
                            "b": {"setting": "c0", "system": LABEL}}  # fmt: skip
    told = study_story.headline(control, study_story.findings(control))
    assert told.verdict == "The control helped." and "the control bag_class (reason_then" in told.sentence.lower()
    assert any("words drawn by their frequency" in one for one in told.asides)


def test_a_study_without_a_headline_claims_nothing() -> None:
    document = made_study.runs() | {"headline": None}
    assert study_story.headline(document, study_story.findings(document)).case == "unmeasured"
    check_sound(report.render_study(document, {}))
    failed = made_study.choices()
    for one in failed["settings"]:
        one |= {"systems": {}, "task": None, "rows": None, "seeds": [], "folders": [], "recommended": [],
                "failed": [{"seed": 0, "why": "No space left on device."}]}  # fmt: skip
    failed |= {"headline": None, "comparisons": []}
    page = report.render_study(failed, {})
    check_sound(page)
    assert "Nothing was measured." in page and page.count("No space left on device.") == 2
    assert "No setting of this part has finished." in page


def test_a_part_says_in_a_line_where_reasons_help_and_where_not(full: dict[str, Any]) -> None:
    known = study_story.findings(full)
    line, across = study_story.part_lines(full["parts"][0], known, "accuracy", REASON)
    mine = [one for one in known if one.part == "sizes" and one.metric == "accuracy" and one.a.system == REASON]
    cases = [one.case for one in mine if one.within]
    assert cases == ["clear", "none", "hint", "clear"]
    assert line.startswith(
        "Reasoning first (reason_then_label/reason) against label_only, by accuracy: a clear gain in 1 of 4 settings"
    )
    assert "a clear loss in 1 of 4 settings (−5.0 points" in line and "with data.rows=64" in line
    least = max(one.mde or 0 for one in mine if one.within and one.case in ("none", "hint"))
    assert (
        "no clear difference in 2 of 4 settings, of which one is a hint (less than about "
        f"{100 * least:.1f} points could not be seen)" in line
    )
    assert "against the first setting (data.rows=64)" in across and "a clear gain in all 3 settings" in across


def test_a_part_calls_a_shared_setting_by_its_own_values(full: dict[str, Any]) -> None:
    names = study_story.setting_names(full)
    assert (names[("sizes", "s3")], names[("controls", "s3")]) == ("data.rows=all", "as written")
    assert names[("weights", "w01")] == "classifier.train.label_weight=balanced, data.rows=all"
    assert names[("reasoner", "r2")] == "the base as it is"
    part = {"name": "p", "axes": ["k"], "settings": ["s"], "values": [{"k": None}]}
    one = {"id": "s", "name": "other=1", "values": {"other": 1}}
    told = {"kind": "study", "parts": [part], "settings": [one]}
    assert study_story.setting_names(told) == {("p", "s"): "k=none"}


def test_limits_say_what_seeds_rows_and_tests_cover(full: dict[str, Any]) -> None:
    said = " ".join(study_story.limits(full, study_story.findings(full)))
    for part in ("3 seeds a setting", "400 test rows", "comparisons were made", "Holm", "1 cell has failed",
                 "3 test texts stand in train", "missed more often than one time in five"):  # fmt: skip
        assert part in said, part


def check_study(document: dict[str, Any], page: str) -> None:
    """Sound, without anything undefined that does not say so, with every setting and its floors."""
    check_sound(page)
    assert "None" not in text_of(page) and "undefined" not in text_of(page).lower() and " style=" not in page
    for one in document["settings"]:
        assert one["name"] in page
    floors = cells(section(page, "systems"))
    assert sum(row[0].endswith("floors/ majority") for row in floors) == len(document["settings"])


@pytest.mark.parametrize("kind", ["choices", "runs", "many"])
def test_every_kind_of_study_gives_a_sound_page(kind: str) -> None:
    document = made_study.many(14) if kind == "many" else getattr(made_study, kind)()
    check_study(document, report.render_study(document, made_study.predictions(document, 6)))


def test_the_page_is_sound_and_the_same_every_time(full: dict[str, Any], page: str) -> None:
    check_study(full, page)
    assert page == report.render_study(json.loads(json.dumps(full)), made_study.predictions(full, 20))


def test_tables_hold_the_figures_of_the_document(full: dict[str, Any], page: str) -> None:
    setting = full["settings"][3]
    told = setting["systems"][REASON]["test"]
    row = next(
        row for row in cells(section(page, "systems")) if row[0].startswith("data.rows=all") and row[1] == REASON
    )
    low, high = told["accuracy"]["ci95"]
    assert row[2] == f"{100 * told['accuracy']['mean']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert row[7:11] == ["91.5", "6.4", f"{100 * told['accuracy_unforced']['mean']:.1f}", "2 of 3"]
    found = next(
        one for one in study_story.findings(full) if one.part == "sizes" and one.within and one.a.system == REASON
    )
    row = next(row for row in cells(section(page, "comparisons")) if row[0] == "reason_then_label/ reason data.rows=64")
    assert row[1] == "label_only/ label data.rows=64"
    assert row[2] == study_story.signed("accuracy", found.difference)
    assert row[3] == study_story.span("accuracy", found.ci95 or (0, 0))
    assert (row[5], row[6]) == (f"{100 * (found.mde or 0):.1f}", "clear loss")
    assert len(row[9].split(", ")) == len(row[10].split(", ")) == 3 and row[12:] == ["3", "400"]


def test_a_comparison_that_two_parts_share_stands_once_among_all(full: dict[str, Any], page: str) -> None:
    rows = cells(section(page, "comparisons"))
    shared = [row for row in rows if row[:2] and row[0].startswith("reason_then_label/ reason data.rows=all")]
    assert len([row for row in shared if row[1] == "label_only/ label data.rows=all"]) == 2  # accuracy and macro F1
    assert full["parts"][1]["settings"][0] == "s3"


def test_sizes_are_drawn_as_lines_and_words_as_blocks(page: str) -> None:
    sizes, controls, weights = (section(page, f"part-{at}") for at in (0, 1, 4))
    assert sizes.count('<polyline class="curve c') == 2 * 4 and "whisker thin" in sizes
    assert re.findall(r'text-anchor="\w+">(64|256|512|all)<', sizes.partition("</figure>")[0]) == [
        "64",
        "256",
        "512",
        "all",
    ]
    assert "polyline" not in controls and 'class="seed c1"' in controls
    assert re.findall(r'class="name" x="0" y="\d+">([^<]*)<', controls.partition("</figure>")[0]) == [
        "as written", "bag_class", "swap_other", "corrupt(0.2)",
    ]  # fmt: skip
    assert weights.count("<h4>label_weight=") == 2 * 3
    assert "<title" in sizes and "At 64, 256, 512, all: label_only/label " in sizes


def drawn(axis: str, values: Sequence[Any]) -> str:
    """The horizontal places of label_only's points over these values of a key."""
    settings = [
        made_study.setting(f"s{at}", f"{axis}={value}", {axis: value}, {LABEL: 0.5 + at / 50, REASON: 0.6})
        for at, value in enumerate(values)
    ]
    document = made_study.document(
        [{"name": "p", "axes": [axis], "settings": [one["id"] for one in settings]}], settings
    )
    view = study_parts.part_view(
        0, document["parts"][0], document, [], "accuracy", REASON, study_parts.systems_of(settings)
    )
    if not view["curve"]:
        return "blocks"
    svg = str(view["plots"][0]["panels"][0].figure)
    assert svg.count('<polygon class="band') == 2
    return " ".join(re.findall(r'<svg x="([\d.]+)%"[^>]*><path class="point c0"', svg))


def test_the_axis_is_of_logarithms_where_sizes_are_far_apart_and_even_where_zero_is_among_them() -> None:
    assert drawn("data.rows", [64, 256, 1024, 4096]) == "9.00 38.00 67.00 96.00"
    assert drawn("classifier.train.label_weight", [1, 2, 4]) == "9.00 38.00 96.00"
    assert drawn("classifier.train.label_weight", [0, 1, 100]) == "9.00 52.50 96.00"
    assert drawn("classifier.train.label_weight", ["balanced", 1, 2]) == "blocks"
    assert drawn("classifier.both", [True, False]) == "blocks"


def test_many_settings_stay_readable() -> None:
    document = made_study.many()
    page = report.render_study(document, made_study.predictions(document, 2))
    part = section(page, "part-0")
    assert "The first 12 of 40 settings; the table has all." in text_of(part)
    names = re.findall(r'class="name" x="0" y="\d+">([^<]*)<', part.partition("</figure>")[0])
    assert names[:2] == ["candidates=0,", "base=HuggingFaceTB/SmolLM2-0M-Ins…"] and len(names) == 2 * 12
    assert len(page) < 3_000_000
    shown = study_answers.shown(document, study_story.headline(document, study_story.findings(document)).finding)
    assert len(shown) == study_answers.SYSTEMS and [one["id"] for one, _ in shown[:2]] == ["s39", "s39"]


def test_plots_with_more_models_than_colours_keep_the_pair_and_say_what_is_left_out() -> None:
    names = {f"arm_{at}/label": 0.5 + at / 100 for at in range(8)}
    one = made_study.setting("s0", "as written", {}, {**names, LABEL: 0.6, REASON: 0.7})
    other = made_study.setting("s1", "base=large", {"base": "large"}, {**names, LABEL: 0.6, REASON: 0.7})
    document = made_study.document([{"name": "p", "axes": ["base"], "settings": ["s0", "s1"]}], [one, other])
    page = report.render_study(document, {})
    part = section(page, "part-0")
    legend = re.findall(r'</svg><span class="key">([^<]*)</span>', part.partition("</ul>")[0])
    assert len(legend) == 6 and {LABEL, REASON} <= set(legend)
    assert "4 more models are in the table alone." in text_of(part)


def test_stage_one_shows_what_was_kept_and_scored_beside_strictly_read(full: dict[str, Any], page: str) -> None:
    part = section(page, "part-5")
    rows = cells(part)
    assert ["the base as it is", "1,200", "4,800", "22.0", "234", "0.20", "58.8", "–", "25.0"] in rows
    setting = next(one for one in full["settings"] if one["name"] == "the base as it is")
    test = setting["systems"][REASON]["test"]
    strict = next(
        row for row in rows if len(row) == 5 and row[:2] == ["the base as it is reason_then_label/ reason", REASON]
    )
    assert strict[2].startswith(f"{100 * test['accuracy']['mean']:.1f} ")
    assert strict[3] == f"{100 * test['accuracy_unforced']['mean']:.1f}"
    assert "81% were kept with cases of this task and 22% with the base as it is" in text_of(part)
    assert "The reasonings that each setting wrote" not in section(page, "part-0"), "they are the same in every size"


def test_the_rarest_class_stands_with_intervals_before_and_after_topping_up(full: dict[str, Any], page: str) -> None:
    rare = section(page, "rare")
    assert "“ urgent ”, 16 test rows" in text_of(rare)
    by_id = {one["id"]: one for one in full["settings"]}
    before, after = (by_id[one]["systems"][REASON]["per_class"]["urgent"]["recall"] for one in ("s3", "t1"))
    row = next(row for row in cells(rare) if row[:2] == ["urgent", REASON] and len(row) == 9)
    assert row[3].startswith(f"{100 * before['mean']:.1f} [") and row[4].startswith(f"{100 * after['mean']:.1f} [")
    assert row[5] == f"+{100 * (after['mean'] - before['mean']):.1f}"
    assert "money is lost, sum 9 (reasonings.top_up=200)" in rare
    part = section(page, "part-2")
    assert "<h3>Recall of urgent, %" in part and part.index("Recall of urgent") < part.index("The same by accuracy")


def test_scales_show_errors_and_agreement_by_axis(full: dict[str, Any], page: str) -> None:
    part = section(page, "ordinal")
    rows = cells(part)
    assert rows[0] == ["arm / mode", "service", "price", "food"]
    test = next(one for one in full["settings"] if one["id"] == "o2")["systems"][LABEL]["test"]
    row = next(row for row in rows if row[0] == LABEL)
    assert row[3] == f"{test['mae']['mean']:.3f} ({test['qwk']['mean']:.2f})"
    assert "By mean absolute error" in section(page, "comparisons")


def test_choices_have_no_classes_and_no_scales() -> None:
    document = made_study.choices()
    # A run without an audit does not know its rows.
    document["settings"][0]["rows"] = dict.fromkeys(("train", "dev", "test"))
    page = report.render_study(document, made_study.predictions(document, 5))
    for part in ("rare", "ordinal"):
        assert f'id="{part}"' not in page
    assert "floors/linear" not in page and "seed-level +" not in page


def test_probes_of_several_settings_stand_side_by_side(full: dict[str, Any], page: str) -> None:
    assert "The answer follows the reasoning." in page and "The reasonings are decoration." in page
    rows = cells(section(page, "trust"))
    assert [row[:3] for row in rows[1:3]] == [
        ["rows=all", REASON, "The answer follows the reasoning."],
        ["replace=bag_class", REASON, "The reasonings are decoration."],
    ]
    inside = section(page, "inside")
    assert inside.index("After the text") < inside.index("After the reasoning")
    for name in ("rows=all · reason_then_label/reason", "replace=bag_class · reason_then_label/reason"):
        assert name in inside[inside.index("After the reasoning") :]
    assert "Right answers for 1,000 computed tokens" in section(page, "latency")
    regions = re.findall(r'role="region" aria-label="([^"]*)"', page)
    assert len(regions) == len(set(regions)), "a reader of landmarks must be able to tell them apart"
    found = study_probes.probed([{**one, "probes": made_study.probes()} for one in full["settings"]])
    assert [len(place.output.rows) for place in found.places] == [6, 6] and found.left_out == 3 * 21 - 12
    assert found.all_trusted is not None and len(found.all_trusted.rows) == 21 and len(found.trusted) == 12
    without = made_study.runs()
    assert "evaluate.probes: [faithfulness]" in report.render_study(without, {})


def test_the_explorer_begins_with_the_pair_and_keeps_to_one_task(full: dict[str, Any], page: str) -> None:
    data = re.search(r'<script type="application/json" id="explorer-data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    held = json.loads(data[1])
    keys = [one["key"] for one in held["head"]["systems"]]
    assert keys[:2] == [f"rows=all · {REASON}", f"rows=all · {LABEL}"] and held["head"]["first"] == [0, 1]
    assert f"rows=64 · {REASON}" in keys and not [key for key in keys if key.startswith("label=")]
    assert len(held["rows"]) == 20 and "before calibration" in section(page, "explorer")


def test_failed_cells_and_unequal_training_are_named(full: dict[str, Any], page: str) -> None:
    assert "data.rows=256, seed 3: CUDA out of memory." in text_of(section(page, "data")).replace(" :", ":")
    assert "Within every setting all arms took the same steps" in page
    uneven = made_study.runs()
    uneven["settings"][1]["systems"][LABEL]["train"]["steps"] = 9
    assert "Not every arm took the same steps over the same rows in: emotion-large." in text_of(
        report.render_study(uneven, {})
    )


def test_runs_side_by_side_are_called_runs() -> None:
    page = report.render_study(made_study.runs(), {})
    said = text_of(page)
    assert "saywhy compare ·" in said and "2 runs" in said and "/runs/emotion-large" in said
    assert "The runs side by side" in said and "run=" not in said
    assert "This is emotion-large, one of 2 runs" in said


def test_hostile_text_stays_text() -> None:
    attacks = ("<script>alert(1)</script>", "</style><b onclick=x>", "x\x00\x1b\ud800y", "{{ 7*7 }}", "a" * 3000)
    document = made_study.full()
    document["name"] = document["command"] = attacks[0] * 20
    document["notes"] = list(attacks)
    document["versions"] = {attacks[1]: attacks[0]}
    for part, attack in zip(document["parts"], attacks, strict=False):
        for row in document["comparisons"]:
            row["part"] = attack if row["part"] == part["name"] else row["part"]
        part["name"] = attack
        part["axes"] = [attack if axis != "data.rows" else axis for axis in part["axes"]]
    document["headline"]["part"] = document["parts"][0]["name"]
    for setting, attack in zip(document["settings"], attacks * 5, strict=False):
        setting["name"] = attack
        setting["failed"] = [{"seed": 1, "why": attack}]
        setting["task"] |= {"name": attack}
        for sample in (setting["reasonings"] or {}).get("samples") or ():
            sample["reasoning"] = attack
    predictions = made_study.predictions(document, 3)
    for rows in predictions.values():
        for row in rows:
            row["text"] = row["reasoning"] = attacks[0]
    page = report.render_study(document, predictions)
    check_sound(page)
    page.encode("utf-8")
    assert page.count("<script") == 2 and "alert(1)</script>" not in page and "{{ 7*7 }}" in page
    assert "a" * 700 not in page and not set("\x00\x1b\ud800") & set(page)


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_write_reads_the_study_and_the_first_seed_of_its_cells(tmp_path: Path) -> None:
    document = made_study.runs()
    document["settings"][1] |= {"seeds": [0, 1], "folders": ["cells/large", "cells/large-1"]}
    document["settings"][0]["folders"] = [str(tmp_path / "elsewhere")]
    answers = made_study.predictions(document, 7)
    save(tmp_path / "cells/large/predictions/reason_then_label-reason-test.parquet",
         answers[("r1", "reason_then_label-reason")])  # fmt: skip
    save(tmp_path / "elsewhere/predictions/label_only-label-test.parquet", answers[("r0", "label_only-label")])
    save(tmp_path / "cells/large-1/predictions/label_only-label-test.parquet", answers[("r1", "label_only-label")])
    store.write_json(tmp_path / "study.json", document)
    found = report.study_predictions(document, tmp_path)
    assert {key: len(rows) for key, rows in found.items()} == {
        ("r1", "reason_then_label-reason"): 7,
        ("r0", "label_only-label"): 7,
    }
    target = report.write_study(tmp_path)
    first = target.read_bytes()
    assert target == tmp_path / "report.html" and b"emotion \xc2\xb7 label_only/label" in first
    assert report.write_study(tmp_path).read_bytes() == first
    check_sound(first.decode())


def test_write_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"study\.json.*saywhy study"):
        report.write_study(tmp_path)
    store.write_json(tmp_path / "study.json", {"name": "x", "kind": "study", "metric": "accuracy", "parts": []})
    with pytest.raises(RequestError, match="lacks settings, comparisons, headline"):
        report.write_study(tmp_path)


def test_a_floor_beside_the_headline_is_said_where_it_was_compared() -> None:
    document = made_study.full()
    pair = (document["settings"][3], REASON), (document["settings"][3], LINEAR)
    document["comparisons"].append(made_study.comparison("sizes", *pair))
    told = study_story.headline(document, study_story.findings(document))
    assert any("over the linear floor" in one for one in told.asides)
