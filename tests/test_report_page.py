"""The report in a real browser: tables that sort, the explorer, and that it is sound at every width and scheme."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reported import FULL, LABEL, REASON, bare, probes, run
from saywhy import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH"),
]
Visit = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Inside a container chromium cannot make its sandbox; what it loads here is this repository's own page.
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """A report with everything in it, and its predictions."""
    metrics, predictions = run(FULL, n=110)
    metrics["probes"] = probes(metrics)
    metrics["audit"]["splits"]["train"]["classes"] = {"low": 500, "normal": 400, "high": 220, "urgent": 80}
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report.render(metrics, predictions), encoding="utf-8")
    return path, predictions


@pytest.fixture
def visit(browser: Any, made: tuple[Path, Any]) -> Iterator[Visit]:
    """Open a page; at the end nothing may have failed, been said on the console, or been asked of a network."""
    wrong: list[str] = []
    contexts = []

    def opened(path: Path = made[0], at: str = "", **options: Any) -> Any:
        context = browser.new_context(**{"reduced_motion": "reduce", **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text))
        page.on("request", lambda asked: asked.url.startswith(path.as_uri()) or wrong.append(asked.url))
        page.goto(path.as_uri() + at)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def column(table: Any, place: int) -> list[str]:
    return [row.locator("th, td").nth(place).inner_text() for row in table.locator("tbody tr").all()]


def explorer(page: Any) -> Any:
    page.locator("#explorer").scroll_into_view_if_needed()
    page.wait_for_selector("#x-rows li")
    return page.locator("#x-rows > li")


def counted(page: Any) -> int:
    return int(page.inner_text("#x-count").split(" of ")[0].replace(",", ""))


def test_a_table_sorts_by_click_and_by_key_and_goes_back(visit: Visit) -> None:
    page = visit()
    table = page.locator("#results table").first
    names, before = column(table, 0), [float(cell) for cell in column(table, 2)]
    assert before != sorted(before) and before != sorted(before, reverse=True)
    head = table.locator("thead th").nth(2)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(cell) for cell in column(table, 2)] == sorted(before, reverse=True)
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(cell) for cell in column(table, 2)] == sorted(before)
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") is None and column(table, 0) == names
    table.locator("thead th").first.locator("button").click()
    assert column(table, 0) == sorted(names) and table.locator("[aria-sort]").count() == 1


def test_every_table_can_be_sorted(visit: Visit) -> None:
    page = visit()
    assert page.locator("table").count() > 15
    unsorted = page.evaluate(
        "() => [...document.querySelectorAll('table')].filter((one) => !one.querySelector('thead button')).length"
    )
    assert unsorted == 0
    # Under a head of two rows the buttons stand over columns, not over groups of them.
    grouped = page.locator("#classes table").first
    assert grouped.locator("tr.group th[colspan] button").count() == 0
    grouped.evaluate("(one) => one.closest('details').open = true")
    # Precision and its interval stand before the recall.
    grouped.locator("tr.group + tr th").nth(2).locator("button").click()
    recalls = [float(cell) for cell in column(grouped, 4)]
    assert recalls == sorted(recalls, reverse=True)


TABLE = """(cells) => {
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    head.append(Object.assign(document.createElement("th"), { textContent: "x" }));
    const body = table.createTBody();
    for (const text of cells) body.insertRow().insertCell().textContent = text;
    const foot = table.createTFoot().insertRow();
    foot.insertCell().textContent = "all";
    document.body.append(table);
    sortable(table);
    head.querySelector("button").click();
    const rows = [...body.rows].map((row) => row.textContent);
    const last = table.rows[table.rows.length - 1].textContent;
    table.remove();
    return [rows, last];
}"""


@pytest.mark.parametrize(
    ("cells", "order"),
    [
        (["9", "–", "1,204.5", "−3.1", "10"], ["1,204.5", "10", "9", "−3.1", "–"]),
        (["95.7 [94.1, 96.8]", "96.1 [90.0, 99.9]", "–", "9.0 [1.0, 20.0]"], [1, 0, 3, 2]),
        (["94.1 to 96.8", "−8.0 to 3.0", "100.0 to 100.0"], [2, 0, 1]),
        (["< 0.001", "0.001", "0.25"], [2, 1, 0]),
        (["15 min 12 s", "59.0 s", "2 h 05 min"], [2, 0, 1]),
        (["5.0%", "12.5%", "–", "–", "7%"], [1, 4, 0, 2, 3]),
        (["1 a", "1 b", "2 c", "1 d"], [2, 0, 1, 3]),
        (["beta", "–", "Alpha", "class 10", "class 9"], ["Alpha", "beta", "class 9", "class 10", "–"]),
    ],
)
def test_figures_sort_as_figures_and_what_is_undefined_comes_last(
    visit: Visit, cells: list[str], order: list[Any]
) -> None:
    rows, last = visit().evaluate(TABLE, cells)
    assert rows == [cells[one] if isinstance(one, int) else one for one in order]
    assert last == "all"


def test_rows_that_share_a_cell_stay_together(visit: Visit) -> None:
    spans = """() => {
        const table = document.createElement("table");
        table.innerHTML = `<thead><tr><th>a</th><th>b</th></tr></thead><tbody>
            <tr><td rowspan="2">1</td><td>x</td></tr><tr><td>y</td></tr><tr><td>3</td><td>z</td></tr>
            <tr><td rowspan="2">2</td><td>w</td></tr><tr><td>v</td></tr></tbody>`;
        document.body.append(table);
        sortable(table);
        table.querySelector("button").click();
        return [...table.tBodies[0].rows].map((row) => row.lastElementChild.textContent).join("");
    }"""
    assert visit().evaluate(spans) == "zwvxy"


def test_the_explorer_filters_counts_and_turns_its_pages(visit: Visit, made: tuple[Path, Any]) -> None:
    predictions = made[1]
    page = visit()
    assert page.locator("#x-rows li").count() == 0, "rows are drawn when somebody comes near them"
    rows = explorer(page)
    assert (rows.count(), counted(page)) == (20, 110)
    assert page.inner_text("#x-page") == "page 1 of 6" and page.locator("#x-back").is_disabled()
    for _ in range(5):
        page.click("#x-next")
    assert rows.count() == 10 and page.locator("#x-next").is_disabled() and "101 to 110" in page.inner_text("#x-count")
    vote = {row["id"]: row for row in predictions["reason_then_label-vote"]}
    alone = {row["id"]: row for row in predictions["label_only-label"]}
    page.select_option("#x-right", "wrong")
    assert counted(page) == sum(row["label"] != row["gold"] for row in vote.values())
    page.select_option("#x-right", "")
    page.select_option("#x-pair", "a")
    won = [key for key, row in vote.items() if row["label"] == row["gold"] != alone[key]["label"]]
    assert counted(page) == len(won) > 0
    page.select_option("#x-pair", "changed")
    assert counted(page) == sum(row["label"] != alone[key]["label"] for key, row in vote.items())
    page.select_option("#x-gold", label="urgent")
    page.select_option("#x-answer", label="urgent")
    assert page.locator("#x-rows .side").first.locator(".said bdi").inner_text() == "urgent"
    page.click("#x-clear")
    page.fill("#x-search", "TICKET 17:")
    assert counted(page) == rows.count() == 1
    page.fill("#x-search", "no such words")
    assert counted(page) == 0


def test_a_row_shows_what_each_system_said_with_bars(visit: Visit, made: tuple[Path, Any]) -> None:
    page = visit()
    explorer(page)
    page.fill("#x-search", "Ticket 17:")
    sides = page.locator("#x-rows .side")
    assert sides.count() == 2
    page.check("[name=x-show][value='2']")
    assert sides.count() == 3
    row = next(row for row in made[1]["reason_then_label-vote"] if row["text"].startswith("Ticket 17:"))
    first = sides.first
    assert first.locator(".said bdi").inner_text() == row["label"]
    assert first.locator(".why p").inner_text() == row["reasoning"]
    values = [float(one.rstrip("%")) for one in first.locator(".bars .value").all_inner_texts()]
    assert values == sorted(values, reverse=True) and abs(sum(values) - 100) < 0.5
    track = first.locator(".bar").first.bounding_box()["width"]
    for value, fill in zip(values, first.locator(".fill").all(), strict=True):
        assert abs(fill.bounding_box()["width"] / track - value / 100) < 0.02
    assert first.locator(".bars .gold").inner_text().startswith(row["gold"])


def test_a_link_leads_into_the_explorer_and_what_it_shows_has_one(visit: Visit) -> None:
    page = visit()
    link = page.locator("#comparisons a[href^='#explorer']").first
    wanted = int(link.inner_text())
    link.click()
    page.wait_for_selector("#x-rows li")
    assert counted(page) == wanted
    page.fill("#x-search", "ticket 1")
    page.check("[name=x-show][value='3']")
    address, count = page.evaluate("location.hash"), counted(page)
    again = visit(at=address)
    again.wait_for_selector("#x-rows li")
    assert counted(again) == count and again.input_value("#x-search") == "ticket 1"
    assert again.is_checked("[name=x-show][value='3']")
    assert again.evaluate("Math.abs(document.getElementById('explorer').getBoundingClientRect().top)") < 60
    odd = visit(at="#explorer?a=nothing&gold=none&pair=odd&page=99")
    odd.wait_for_selector("#x-rows li")
    assert counted(odd) == 110 and odd.inner_text("#x-page") == "page 6 of 6"


def test_own_choices_are_explored_too(visit: Visit, tmp_path: Path) -> None:
    metrics = bare({LABEL: 0.6, REASON: 0.7}, REASON)
    metrics["task"]["labels"] = []
    row = {"text": "<b>t</b>", "gold": "x", "label": "y", "choices": ["y", "x"], "probabilities": [0.9997, 0.0003],
           "reasoning": None, "forced": False}  # fmt: skip
    path = tmp_path / "choices.html"
    predictions = {"label_only-label": [{**row, "id": "1"}], "reason_then_label-reason": [{**row, "id": "2"}]}
    path.write_text(report.render(metrics, predictions), encoding="utf-8")
    page = visit(path)
    rows = explorer(page)
    assert rows.count() == 2 and "<b>t</b>" in rows.first.inner_text()
    assert "did not answer this row" in rows.first.inner_text()
    assert "<0.1%" in rows.first.locator(".bars .gold").inner_text()


def test_without_scripts_everything_but_the_explorer_is_there(visit: Visit) -> None:
    page = visit(java_script_enabled=False)
    assert page.locator("#explorer-app").is_hidden() and page.locator(".without-script").is_visible()
    assert page.locator("thead button").count() == 0 and page.locator("#trust .verdict").first.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_window(visit: Visit, scheme: str, width: int) -> None:
    page = visit(color_scheme=scheme, viewport={"width": width, "height": 800})
    explorer(page)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.scrollWidth") <= width


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_axe_finds_nothing(visit: Visit, width: int, scheme: str) -> None:
    sync_playwright = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = visit(color_scheme=scheme, viewport={"width": width, "height": 800}, bypass_csp=True)
    explorer(page)
    page.fill("#x-search", "ticket 17")
    # One of each kind is opened: the checks of axe take seconds for every hundred cells.
    for where in ("header figure details", "#trust figure details", "#classes > details"):
        page.locator(where).first.evaluate("(one) => { one.open = true; }")
    found = sync_playwright.Axe().run(page).response["violations"]
    assert [(one["id"], one["impact"], [node["html"][:200] for node in one["nodes"]]) for one in found] == []
