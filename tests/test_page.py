"""The page at / in a real browser, against a server of the test's own that keeps to the API's contract."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import serving
from fake_api import EMOTIONS, Fake, model, served

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH"),
]


@pytest.fixture
def fake() -> Iterator[Fake]:
    with served() as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Inside a container chromium cannot make its sandbox; what it loads here is this repository's own page.
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def visit(browser: Any, fake: Fake) -> Iterator[Callable[..., Any]]:
    """Open the page; at the end no script may have failed and no policy may have been broken."""
    wrong: list[str] = []
    contexts = []

    def opened(**options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: "Content Security" in said.text and wrong.append(said.text))
        page.on("request", lambda asked: asked.url.startswith((fake.url, "blob:", "data:")) or wrong.append(asked.url))
        page.goto(fake.url)
        if not fake.key:
            page.wait_for_selector(".mode")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def look(page: Any, view: str) -> None:
    page.check(f"[name=view][value={view}]", force=True)


def ask(page: Any, *texts: str) -> None:
    """Type the texts and classify them; give back before the answer is there."""
    look(page, "two" if len(texts) > 1 else "one")
    for name, text in zip(("first", "second"), texts, strict=False):
        page.fill(f"#{name}", text)
    page.keyboard.press("Control+Enter")


def answered(page: Any) -> Any:
    """Wait until the answers are complete; give their cards."""
    page.wait_for_selector("#ask[aria-busy=false]")
    page.wait_for_selector(".answer .cost:not(:empty)")
    return page.locator(".answer")


def drop(page: Any, content: str | bytes, name: str = "letters.csv") -> None:
    look(page, "file")
    data = content.encode() if isinstance(content, str) else content
    page.set_input_files("#picked", {"name": name, "mimeType": "text/csv", "buffer": data})
    page.wait_for_selector(":is(#ready, #trouble):not([hidden])")


def start(page: Any) -> None:
    page.click("#file .main")


def downloaded(page: Any) -> bytes:
    page.wait_for_selector("#saved:not([hidden])")
    with page.expect_download() as waiting:
        page.click("#download")
    return Path(waiting.value.path()).read_bytes()


def table(content: bytes, delimiter: str = ",") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=delimiter, strict=True))


def test_a_text_gets_its_label_bars_and_reasoning(visit: Callable[..., Any], fake: Fake) -> None:
    page = visit(reduced_motion="reduce")
    assert page.title() == "emotion – saywhy"
    assert page.inner_text("h1") == "Which emotion does the writer express?"
    ask(page, "i feel so alone tonight")
    card = answered(page)
    result = fake.answer("i feel so alone tonight", "reason")
    assert fake.asked == [
        {
            "texts": ["i feel so alone tonight"],
            "mode": "reason",
            "reasoning": True,
            "probabilities": True,
            "stream": True,
        }
    ]
    assert card.locator(".name").inner_text() == "sadness"
    assert card.locator(".meaning").inner_text() == EMOTIONS["sadness"]
    assert card.locator("blockquote").inner_text() == result["reasoning"]
    assert "before its label" in card.locator("figcaption").inner_text()
    bars = card.locator(".bars li")
    shown = {bar.locator("bdi").inner_text(): bar.locator(".value").inner_text() for bar in bars.all()}
    assert shown == {name: f"{share:.1%}" for name, share in result["probabilities"].items()}
    assert next(iter(shown)) == "sadness"
    widths = [bar.locator(".fill").bounding_box()["width"] for bar in bars.all()]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 10 * widths[-1]
    assert page.inner_text("#status").startswith("sadness, ")
    assert "not a proof of why" in page.inner_text("aside")


def test_the_reasoning_appears_as_it_is_written_and_can_be_cancelled(visit: Callable[..., Any], fake: Fake) -> None:
    fake.held["i am alone"] = threading.Event()
    page = visit()
    ask(page, "i am alone")
    page.wait_for_selector(".writing blockquote:has-text('The')")
    assert page.inner_text(".answer .name") == "…"
    page.keyboard.press("Escape")
    page.wait_for_selector("#ask[aria-busy=false]")
    assert page.locator(".answer").count() == 0
    assert page.inner_text("#status") == "Cancelled."
    assert page.input_value("#first") == "i am alone"


def test_a_late_answer_never_replaces_a_newer_one(visit: Callable[..., Any], fake: Fake) -> None:
    fake.held["i am alone"] = threading.Event()
    page = visit()
    stopped: list[str] = []
    page.on("requestfailed", lambda request: stopped.append(request.post_data))
    ask(page, "i am alone")
    page.wait_for_selector(".writing")
    ask(page, "birds sing")
    page.wait_for_selector(".answer .name:text('joy')")
    fake.held["i am alone"].set()
    page.wait_for_timeout(300)
    assert ["alone" in body for body in stopped] == [True]
    assert answered(page).count() == 1
    assert page.inner_text(".answer .name") == "joy"
    assert "sing" in page.inner_text("blockquote")
    page.fill("#first", "something else")
    assert "has changed" in page.inner_text("#note")


def test_two_texts_are_compared_side_by_side(visit: Callable[..., Any], fake: Fake) -> None:
    page = visit(viewport={"width": 1280, "height": 900})
    ask(page, "i am alone", "birds sing")
    first, second = answered(page).all()
    assert fake.asked[-1]["texts"] == ["i am alone", "birds sing"]
    assert [card.locator(".name").inner_text() for card in (first, second)] == ["sadness", "joy"]
    assert page.inner_text("#verdict").startswith("The first is sadness")
    assert first.bounding_box()["y"] == second.bounding_box()["y"]
    assert first.bounding_box()["x"] + first.bounding_box()["width"] < second.bounding_box()["x"]
    names = [card.locator(".bars bdi").all_inner_texts() for card in (first, second)]
    assert names[0] == names[1]
    ask(page, "i am alone, and alone", "i am alone")
    page.wait_for_selector("#verdict:has-text('Both are sadness')")


def test_the_cost_of_a_mode_is_shown_before_and_after_asking_in_it(visit: Callable[..., Any], fake: Fake) -> None:
    page = visit()
    cards = {card.locator(".name").inner_text(): card for card in page.locator(".mode").all()}
    figures = {mode: card.locator("dd").all_inner_texts() for mode, card in cards.items()}
    assert figures == {
        "label": ["17", "212", "67.1%"],
        "reason": ["58 ×3.4", "32", "70.2%"],
        "vote": ["223 ×13", "–", "–"],
    }
    assert cards["reason"].locator("input").is_checked()
    assert cards["reason"].locator(".pick").is_visible()
    ask(page, "i am alone")
    answered(page)
    page.focus("[name=mode][value=reason]")
    page.keyboard.press("ArrowUp")
    assert "asks in mode label" in page.inner_text("#note")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".mode:has([value=label]) .here:has-text('17 tokens')")
    assert fake.asked[-1]["mode"] == "label"
    assert page.locator("figure.why").is_hidden()
    assert "58 tokens" in cards["reason"].locator(".here").inner_text()
    ask(page, "birds sing")
    page.wait_for_selector(".answer .name:text('joy')")
    answered(page)
    assert cards["reason"].locator(".here").is_hidden()


def test_seventy_seven_labels_are_folded_and_sorted(visit: Callable[..., Any], fake: Fake) -> None:
    labels = [f"intent_number_{i}_with_a_long_name_that_must_wrap" for i in range(77)]
    fake.told = model(labels=labels, descriptions={})
    page = visit(viewport={"width": 360, "height": 740})
    ask(page, "where is my card")
    bars = answered(page).locator(".bars li")
    assert (bars.count(), bars.filter(visible=True).count()) == (77, 8)
    page.click(".answer .more")
    assert bars.filter(visible=True).count() == 77
    assert page.get_attribute(".answer .more", "aria-expanded") == "true"
    values = [float(value.lstrip("<").rstrip("%")) for value in bars.locator(".value").all_inner_texts()]
    assert values == sorted(values, reverse=True)


def test_a_scale_keeps_its_order_and_has_an_expected_rating(visit: Callable[..., Any], fake: Fake) -> None:
    fake.told = model(labels=["bad", "fair", "good"], descriptions={}, ordinal=True)
    fake.changes = {"expected": 2.4167, "abstained": True, "forced": True}
    page = visit()
    ask(page, "well")
    card = answered(page)
    assert card.locator(".bars bdi").all_inner_texts() == ["bad", "fair", "good"]
    assert card.locator(".remark").inner_text().split("\n") == [
        "Not sure enough: the model abstains. This is the label it would have given.",
        "Expected rating 2.42, on a scale from 1 (bad) to 3 (good).",
        "The reasoning ran into its limit and was cut there.",
    ]


HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>"\'&amp;</textarea>'


def test_hostile_and_right_to_left_text_stay_text(visit: Callable[..., Any], fake: Fake) -> None:
    fake.told = model(
        task=HOSTILE,
        instruction=HOSTILE,
        labels=[HOSTILE, "שלום"],
        descriptions={HOSTILE: HOSTILE},
        recommended="reason",
    )
    fake.reasonings = {HOSTILE: HOSTILE, "مرحبا": "مرحبا <b>"}
    fake.changes = {"label": HOSTILE, "probability": 0.5}
    page = visit()
    ask(page, HOSTILE)
    card = answered(page)
    assert card.locator("blockquote").inner_text() == HOSTILE
    assert card.locator(".name").inner_text() == HOSTILE
    assert page.inner_text("h1") == HOSTILE
    assert page.locator("main img, main script").count() == 0
    assert page.title() == f"{HOSTILE} – saywhy"
    drop(page, "text\n" + '"' + HOSTILE.replace('"', '""') + '"\nمرحبا\n', name=f"{HOSTILE}.csv")
    start(page)
    rows = table(downloaded(page))
    assert [row["text"] for row in rows] == [HOSTILE, "مرحبا"]
    assert rows[0]["reasoning"] == HOSTILE
    assert page.locator("main img, main script").count() == 0
    look(page, "one")
    ask(page, "مرحبا")
    page.wait_for_selector("blockquote:has-text('مرحبا')")
    written = ("#first", "blockquote", "#sample li:last-child", "#preview li:last-child .text")
    for place in written:
        assert page.eval_on_selector(place, "node => getComputedStyle(node).direction") == "rtl", place


LETTERS = 'id,body,note\r\n1,"alone, ""so"" alone\nindeed",007\r\n2,birds sing,=1+1\r\n3,late again,NA\r\n'


def test_a_csv_comes_back_classified_with_all_its_columns(visit: Callable[..., Any], fake: Fake) -> None:
    page = visit()
    drop(page, LETTERS)
    assert page.input_value("#column") == "1"
    assert page.locator("#sample li").count() == 3
    page.keyboard.press("Control+Enter")
    rows = table(downloaded(page))
    asked = [text for body in fake.asked for text in body["texts"]]
    assert asked == ['alone, "so" alone\nindeed', "birds sing", "late again"]
    assert {(body["mode"], body["stream"]) for body in fake.asked} == {("reason", False)}
    given = list(csv.DictReader(io.StringIO(LETTERS, newline="")))
    assert [{name: row[name] for name in given[0]} for row in rows] == given
    for row, text in zip(rows, asked, strict=True):
        result = fake.answer(text, "reason")
        assert row["label"] == result["label"]
        assert float(row["probability"]) == result["probability"]
        assert json.loads(row["probabilities"]) == result["probabilities"]
        assert row["reasoning"] == result["reasoning"]
        assert (row["tokens"], row["forced"], row["abstained"]) == ("58", "false", "false")
    assert "expected" not in rows[0]
    assert page.get_attribute("#download", "download") == "letters-classified.csv"
    assert page.inner_text("#progress-text") == "3 of 3 rows"
    assert page.locator("#preview li").count() == 3


def test_a_file_can_be_dropped_anywhere(visit: Callable[..., Any]) -> None:
    page = visit()
    made = "const held = new DataTransfer(); held.items.add(new File(['text\\nalone\\n'], 'a.csv')); return held;"
    held = page.evaluate_handle(f"() => {{ {made} }}")
    page.dispatch_event("header", "dragover", {"dataTransfer": held})
    page.wait_for_selector(".dragging")
    page.dispatch_event("header", "drop", {"dataTransfer": held})
    page.wait_for_selector("#file-name:text('a.csv: 1 row, 1 column')")
    assert page.locator(".dragging").count() == 0
    start(page)
    assert table(downloaded(page))[0]["label"] == "sadness"


def test_semicolons_a_byte_order_mark_and_taken_names_are_kept(visit: Callable[..., Any]) -> None:
    page = visit()
    drop(page, '\ufeffcomment;label;n\n"a;b alone";x;1,5\n\nsing;y;2\n')
    start(page)
    content = downloaded(page)
    assert content.startswith("\ufeffcomment;label;n;predicted_label;predicted_probability".encode())
    rows = table(content, ";")
    assert [(row["comment"], row["label"], row["n"]) for row in rows] == [("a;b alone", "x", "1,5"), ("sing", "y", "2")]
    assert [row["predicted_label"] for row in rows] == ["sadness", "joy"]


def test_formulas_are_guarded(visit: Callable[..., Any], fake: Fake) -> None:
    """What the model wrote always; what was in the file only where it is asked for."""
    fake.reasonings = {"alone": '=HYPERLINK("x")', "=2+2": "\t@x"}
    page = visit()
    drop(page, "text\nalone\n=2+2\n")
    start(page)
    rows = table(downloaded(page))
    assert [(row["text"], row["reasoning"]) for row in rows] == [("alone", '\'=HYPERLINK("x")'), ("=2+2", "'\t@x")]
    page.check("#guard")
    assert [row["text"] for row in table(downloaded(page))] == ["alone", "'=2+2"]


def test_where_no_column_is_obvious_the_person_chooses(visit: Callable[..., Any], fake: Fake) -> None:
    page = visit()
    drop(page, "a,b\nx,alone\n")
    assert page.eval_on_selector("#column", "node => node === document.activeElement")
    start(page)
    assert "Choose the column" in page.inner_text("#trouble")
    assert fake.asked == []
    page.select_option("#column", label="b")
    start(page)
    assert table(downloaded(page))[0]["label"] == "sadness"
    assert page.locator("#trouble").is_hidden()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"text\n\xff\xfe", "not UTF-8"),
        (b'text\n"alone\n', "Line 2 opens a quote"),
        (b'text\n"a"b\n', "Line 2 has text behind a closing quote"),
        (b'a,text\n"x\ny",z\n1,2,3\n', "Line 4 has 3 cells where the header has 2"),
        (b"a,text\r\n1,2\r\n\r\n3\r\n", "Line 4 has 1 cell where the header has 2"),
        (b"text\n", "no row behind the header"),
        (b"", "no row behind the header"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_words(visit: Callable[..., Any], content: bytes, said: str) -> None:
    page = visit()
    drop(page, content)
    page.wait_for_selector("#trouble:not([hidden])")
    assert said in page.inner_text("#trouble")
    assert page.locator("#ready").is_hidden()


def test_a_long_file_shows_progress_is_cancelled_and_gone_on_with(visit: Callable[..., Any], fake: Fake) -> None:
    fake.pace = 0.02
    page = visit()
    texts = [f"text {i} alone" for i in range(150)]
    drop(page, "text\n" + "\n".join(texts))
    start(page)
    page.wait_for_selector("#preview li:nth-child(8)")
    page.wait_for_selector("#progress-text:has-text('rows/s')")
    assert page.locator("#saved").is_hidden()
    page.keyboard.press("Escape")
    page.wait_for_selector("#saved:not([hidden])")
    done = len(table(downloaded(page)))
    assert 8 <= done < 150
    assert page.inner_text("#progress-text") == f"{done} of 150 rows, stopped"
    assert page.inner_text("#start") == f"Go on with row {done + 1}"
    page.check("[name=mode][value=label]", force=True)
    assert page.inner_text("#start") == "Classify 150 rows"
    page.check("[name=mode][value=reason]", force=True)
    fake.pace = 0
    before = len(fake.asked)
    start(page)
    page.wait_for_selector("#progress-text:text('150 of 150 rows')")
    assert [row["text"] for row in table(downloaded(page))] == texts
    assert [text for body in fake.asked[before:] for text in body["texts"]] == texts[done:]


def test_a_busy_server_is_waited_for(visit: Callable[..., Any], fake: Fake) -> None:
    busy = (429, {"Retry-After": "1"}, "The queue is full.", None)
    fake.refusals = [busy]
    page = visit()
    ask(page, "i am alone")
    page.wait_for_selector("#note:has-text('busy')")
    answered(page)
    assert page.locator("#note").is_hidden()
    drop(page, "text\nalone\n")
    fake.refusals = [busy]
    start(page)
    page.wait_for_selector("#progress-text:has-text('busy')")
    assert table(downloaded(page))[0]["label"] == "sadness"
    for earlier, later in ((0, 1), (2, 3)):
        assert fake.answered_at[later] - fake.answered_at[earlier] >= 0.99
    fake.refusals = [(429, {"Retry-After": "60"}, "The queue is full.", None)]
    start(page)
    page.wait_for_selector("#progress-text:has-text('asking again in 60 seconds')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#file[aria-busy=false]")


def test_one_refused_row_does_not_stop_a_file(visit: Callable[..., Any], fake: Fake) -> None:
    fake.longest, fake.most_texts = 50, 3
    page = visit()
    texts = [*(f"alone {i}" for i in range(9)), "x" * 60, "", "birds sing"]
    out = io.StringIO()
    csv.writer(out).writerows([["text", "n"], *([text, i] for i, text in enumerate(texts))])
    drop(page, out.getvalue())
    start(page)
    rows = table(downloaded(page))
    assert [row["text"] for row in rows] == texts
    assert [row["error"] for row in rows[9:]] == ["The text is longer than 50 characters.", "The text is empty.", ""]
    assert [row["label"] for row in rows[8:]] == ["sadness", "", "", "joy"]
    # What was too much for the first batch and its halves is not tried again.
    assert [len(body["texts"]) for body in fake.asked if len(body["texts"]) > 3] == [8, 4, 4]


def test_a_file_of_refused_rows_is_given_up(visit: Callable[..., Any], fake: Fake) -> None:
    fake.longest = 3
    page = visit()
    drop(page, "text\n" + "too long\n" * 500)
    start(page)
    page.wait_for_selector("#trouble:has-text('Every row so far is refused')")
    assert len(fake.asked) < 100


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (413, "Shorten the text"),
        (422, "Field: texts[0]."),
        (500, "The server's own output says more"),
        (503, "starting or stopping"),
        (504, "Choose a mode that computes fewer tokens"),
    ],
)
def test_an_error_is_said_in_words_with_the_fix(visit: Callable[..., Any], fake: Fake, status: int, words: str) -> None:
    fake.refusals = [(status, {}, "Something <b>was</b> wrong.", "texts[0]")]
    page = visit()
    ask(page, "i am alone")
    page.wait_for_selector("#trouble:not([hidden])")
    assert page.inner_text("#trouble b") == "Something <b>was</b> wrong."
    assert words in page.inner_text("#trouble")
    page.click("#trouble button")
    assert answered(page).locator(".name").inner_text() == "sadness"
    assert page.locator("#trouble").is_hidden()


def test_a_server_that_is_gone_and_an_empty_text_are_said(visit: Callable[..., Any], fake: Fake) -> None:
    page = visit()
    ask(page, " \n")
    assert "no text yet" in page.inner_text("#trouble")
    page.route("**/v1/classify", lambda route: route.abort())
    ask(page, "alone")
    page.wait_for_selector("#trouble:has-text('The server does not answer.')")
    assert "saywhy serve" in page.inner_text("#trouble")
    page.unroute("**/v1/classify")
    cut = 'event: reasoning\ndata: {"index": 0, "text": "The"}\n\n'
    page.route("**/v1/classify", lambda route: route.fulfill(body=cut, content_type="text/event-stream"))
    ask(page, "alone")
    page.wait_for_selector("#trouble:has-text('broke off')")
    failed = 'event: error\ndata: {"error": {"message": "Too late.", "type": "timeout_error", "param": null}}\n\n'
    page.unroute("**/v1/classify")
    page.route("**/v1/classify", lambda route: route.fulfill(body=failed, content_type="text/event-stream"))
    ask(page, "alone")
    page.wait_for_selector("#trouble:has-text('Too late.')")
    assert "Choose a mode" in page.inner_text("#trouble")


def test_the_key_is_asked_for_and_kept_in_memory_only(visit: Callable[..., Any], fake: Fake) -> None:
    fake.key = "open sesame"
    page = visit()
    page.wait_for_selector("dialog[open]")
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#key-title:text('That key was not accepted')")
    page.fill("#key", fake.key)
    page.keyboard.press("Enter")
    page.wait_for_selector(".mode")
    assert page.locator("dialog").is_hidden()
    ask(page, "i am alone")
    assert answered(page).locator(".name").inner_text() == "sadness"
    kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
    assert "sesame" not in page.evaluate(kept)
    assert page.input_value("#key") == ""
    page.reload()
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#trouble:has-text('API key')")


def test_everything_is_reached_by_keyboard(visit: Callable[..., Any]) -> None:
    page = visit()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert page.locator("#second").is_visible()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Tab")
    page.keyboard.type("i am alone")
    page.keyboard.press("Tab")
    focused = "(({tagName, textContent}) => `${tagName} ${textContent}`)(document.activeElement)"
    assert page.evaluate(focused).startswith("BUTTON Classify")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    answered(page)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.value") == "reason"
    assert "Ctrl ↵" in page.inner_text(".keys")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_window(
    visit: Callable[..., Any], fake: Fake, scheme: str, width: int
) -> None:
    sync_playwright = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = visit(
        color_scheme=scheme, viewport={"width": width, "height": 740}, bypass_csp=True, reduced_motion="reduce"
    )

    def sound(where: str) -> None:
        found = sync_playwright.Axe().run(page).response["violations"]
        assert [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found] == [], where
        assert page.evaluate("document.documentElement.scrollWidth") <= width, where

    sound("empty")
    ask(page, "i am alone " + "W" * 200)
    answered(page)
    sound("one")
    ask(page, "i am alone", "birds sing")
    page.wait_for_selector("#verdict:not([hidden])")
    sound("two")
    fake.refusals = [(422, {}, "The text is too long.", "texts[0]")]
    ask(page, "late")
    page.wait_for_selector("#trouble:not([hidden])")
    sound("error")
    drop(page, LETTERS)
    sound("file")
    start(page)
    page.wait_for_selector("#saved:not([hidden])")
    sound("classified")
    page.evaluate("document.getElementById('key-dialog').showModal()")
    sound("key")


def test_motion_stops_where_it_is_not_wanted(visit: Callable[..., Any], fake: Fake) -> None:
    fake.held["i am alone"] = threading.Event()
    for wanted, blinking in (("no-preference", "blink"), ("reduce", "none")):
        page = visit(reduced_motion=wanted)
        ask(page, "i am alone")
        page.wait_for_selector(".writing")
        style = "node => getComputedStyle(node, '::after').animationName"
        assert page.eval_on_selector("blockquote", style) == blinking


FORMATS = "import('/formats.js').then((formats) => %s)"


def test_what_python_writes_as_csv_is_read_back(visit: Callable[..., Any]) -> None:
    page = visit()

    def kept(rows: list[list[str]], delimiter: str, ending: str) -> None:
        out = io.StringIO(newline="")
        # Python before 3.13 puts quotes only around the characters of its own line end.
        quoting = csv.QUOTE_MINIMAL if ending == "\r\n" else csv.QUOTE_ALL
        csv.writer(out, delimiter=delimiter, lineterminator=ending, quoting=quoting).writerows([["a", "b"], *rows])
        read = page.evaluate(f"(text) => {FORMATS % 'formats.parseCsv(text)'}", out.getvalue())
        assert [read["columns"], *read["rows"]] == [["a", "b"], *rows]
        assert read["delimiter"] == delimiter
        written = page.evaluate(f"([rows, mark]) => {FORMATS % 'formats.writeCsv(rows, mark)'}", [rows, delimiter])
        assert list(csv.reader(io.StringIO(written, newline=""), delimiter=delimiter, strict=True)) == rows

    cells = st.text(st.sampled_from(list("ab\",;\t\r\n'=é\u2028")), max_size=6)
    rows = st.lists(st.lists(cells, min_size=2, max_size=2), min_size=1, max_size=4)
    given(rows, st.sampled_from(",;\t"), st.sampled_from(["\n", "\r\n", "\r"]))(settings(max_examples=80)(kept))()


def test_an_event_stream_is_read_however_it_is_cut(visit: Callable[..., Any]) -> None:
    page = visit()
    stream = (
        ': hello\n\nevent: a\r\ndata: 1\r\n\r\ndata:2\ndata: 3\n\nevent: empty\n\nevent: ü\ndata: {"x": "a: b"}\n\nrest'
    )
    read = """(pieces) => import('/formats.js').then(({parseEvents}) => pieces.reduce(({events, rest}, piece) => {
        const read = parseEvents(rest + piece);
        return {events: [...events, ...read.events], rest: read.rest};
    }, {events: [], rest: ''}))"""
    for cut in range(1, len(stream)):
        found = page.evaluate(read, [stream[:cut], stream[cut:]])
        assert found["rest"] == "rest"
        assert [(one["event"], one["data"]) for one in found["events"]] == [
            ("a", "1"),
            ("message", "2\n3"),
            ("ü", '{"x": "a: b"}'),
        ]


@pytest.mark.parametrize(
    ("call", "value"),
    [
        ("retryAfter('3')", 3),
        ("retryAfter('0')", 0.1),
        ("retryAfter(null)", None),
        ("retryAfter('soon')", None),
        ("retryAfter('Thu, 01 Jan 1970 00:00:30 GMT', 10000)", 20),
        ("percent(1)", "100.0%"),
        ("percent(0)", "0.0%"),
        ("percent(0.99999)", ">99.9%"),
        ("percent(0.0001)", "<0.1%"),
        ("scaleWords(['-2', '0', '4.5'])", "on a scale from -2 to 4.5"),
        ("scaleWords(['3', '1', '2'])", "on a scale from 1 (3) to 3 (2)"),
        ("textColumn(['id', 'Text ', 'x'])", 1),
        ("textColumn(['text', 'body'])", None),
        ("textColumn(['whatever'])", 0),
    ],
)
def test_small_words_and_figures(visit: Callable[..., Any], call: str, value: Any) -> None:
    assert visit().evaluate(FORMATS % f"formats.{call}") == value


def test_the_server_itself_gives_the_page_and_what_it_asks_for(browser: Any) -> None:
    """The policy, the names of events and the form of answers are those of the app, not of this file's server."""
    wrong: list[str] = []
    engine = serving.Fake()
    with serving.served(engine) as url:
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: "Content Security" in said.text and wrong.append(said.text))
        page.goto(url)
        page.wait_for_selector(".mode")
        ask(page, "late again")
        card = answered(page).inner_text()
        drop(page, "text\r\nthanks\r\nfails\r\n")
        start(page)
        rows = table(downloaded(page))
        context.close()
    found, other = (serving.answer(text, "reason") for text in ("late again", "thanks"))
    assert found.label in card and found.reasoning in card
    assert engine.asked[0] == (["late again"], "reason", True)
    assert [row["text"] for row in rows] == ["thanks", "fails"] and rows[0]["label"] == other.label
    assert wrong == []
