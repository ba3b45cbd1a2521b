"""The page of a study in a real browser: three widths, light and dark, sorted, filtered, and without scripts."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import made_study
from saywhy import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of a study of everything, of one with many settings, of two runs, and of everything in short tables."""
    folder = tmp_path_factory.mktemp("pages")
    made = {}
    documents = {"full": made_study.full(), "many": made_study.many(), "runs": made_study.runs()}
    # The checks of axe take minutes for hundreds of rows, and seconds for the same kinds of tables with a few.
    short = made_study.full()
    for one in short["settings"]:
        one["systems"] = {key: one["systems"][key] for key in (made_study.LABEL, made_study.REASON)}
    pairs = [row for row in short["comparisons"] if {row["a"]["system"], row["b"]["system"]} <= set(one["systems"])]
    short["comparisons"] = [row for row in pairs if row["a"]["setting"] == row["b"]["setting"]][::2]
    for name, document in (documents | {"short": short}).items():
        made[name] = folder / f"{name}.html"
        made[name].write_text(report.render_study(document, made_study.predictions(document)), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Inside a container chromium cannot make its sandbox; what it loads here is this repository's own page.
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def visit(browser: Any, files: dict[str, Path]) -> Iterator[Callable[..., Any]]:
    """Open a page; at the end nothing may stand in its console and nothing but it may have been asked for."""
    wrong: list[str] = []
    contexts = []

    def opened(name: str, **options: Any) -> Any:
        context = browser.new_context(reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text))
        address = files[name].as_uri()
        page.on("request", lambda asked: asked.url.partition("#")[0] == address or wrong.append(asked.url))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def violations(page: Any) -> list[Any]:
    sync_playwright = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    found = sync_playwright.Axe().run(page).response["violations"]
    return [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found]


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [("runs", 360, "light"), ("runs", 768, "dark"), ("runs", 1280, "light"), ("short", 360, "dark")],
)
def test_the_page_is_sound_with_everything_open(visit: Callable[..., Any], name: str, width: int, scheme: str) -> None:
    page = visit(name, color_scheme=scheme, viewport={"width": width, "height": 800}, bypass_csp=True)
    page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
    page.locator("#explorer-app").scroll_into_view_if_needed()
    page.wait_for_selector("#x-rows > li")
    assert violations(page) == []


@pytest.mark.parametrize("name", ["full", "many", "runs"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_reaches_over_the_edge(visit: Callable[..., Any], name: str, width: int) -> None:
    page = visit(name, viewport={"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_press_on_a_heading_sorts_the_table_by_it(visit: Callable[..., Any]) -> None:
    page = visit("full", viewport={"width": 1280, "height": 800})
    table = page.locator("#systems table").first
    column = "rows => rows.map((row) => parseFloat(row.cells[2].textContent))"
    before = table.locator("tbody tr").evaluate_all(column)
    table.locator("thead th", has_text="accuracy").locator("button").click()
    values = table.locator("tbody tr").evaluate_all(column)
    assert values == sorted(before, reverse=True) != before
    table.locator("thead th", has_text="accuracy").locator("button").click()
    assert table.locator("tbody tr").evaluate_all(column) == sorted(before)
    every = page.locator("table").count()
    assert page.locator("table:has(thead th button.sort)").count() == every


def test_a_heading_with_minus_signs_and_p_values_sorts_as_numbers(visit: Callable[..., Any]) -> None:
    page = visit("full", viewport={"width": 1280, "height": 800})
    table = page.locator("#comparisons table").first
    for heading, place in (("a − b", 2), ("the same, Holm", 8)):
        table.locator("thead th", has_text=heading).locator("button").click()
        texts = table.locator("tbody tr").evaluate_all(f"rows => rows.map((row) => row.cells[{place}].textContent)")
        values = [float(text.replace("−", "-").replace("<\u00a0", "").replace("+", "")) for text in texts]
        assert values == sorted(values, reverse=True)


def test_the_explorer_shows_what_two_settings_changed(visit: Callable[..., Any]) -> None:
    page = visit("full", viewport={"width": 1280, "height": 900})
    page.locator("#explorer-app").scroll_into_view_if_needed()
    page.wait_for_selector("#x-rows > li")
    assert page.inner_text("#x-count").startswith("60 of 60 rows")
    page.select_option("#x-b", label=f"rows=64 · {made_study.REASON}")
    page.select_option("#x-pair", "a")
    document = made_study.full()
    rows = made_study.predictions(document)
    mine, others = (rows[(one, "reason_then_label-reason")] for one in ("s3", "s0"))
    gained = [one for one, other in zip(mine, others, strict=True) if one["label"] == one["gold"] != other["label"]]
    assert 0 < len(gained) < 60
    assert page.inner_text("#x-count").startswith(f"{len(gained)} of 60 rows")
    first = page.locator("#x-rows > li").first.inner_text()
    assert f"rows=all · {made_study.REASON}" in first and f"rows=64 · {made_study.REASON}" in first


def test_without_scripts_everything_but_the_explorer_can_be_read(visit: Callable[..., Any]) -> None:
    page = visit("full", java_script_enabled=False, viewport={"width": 768, "height": 900})
    assert page.inner_text("h1") == "Saying why helped."
    assert page.locator("#systems tbody tr").first.is_visible()
    assert page.locator(".without-script").is_visible() and not page.locator("#explorer-app").is_visible()
