"""The page of boards in a real browser: sort, filter, drill down, keyboard, no network, no errors."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.runs.run import run
from bench.settings.run_spec import RunSpec
from leaderboards.boards import Board, Cell
from leaderboards.page import to_page

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the page is driven by playwright, which is not installed"
)
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed; apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> list[Board]:
    """Two boards of a small run, which differ in their protocol."""
    home = tmp_path_factory.mktemp("runs")
    spec = {
        "method": "source,tent,t3a,lame",
        "shift": "digits-c",
        "corruption": "fog,contrast",
        "severity": "3,5",
        "limit": 40,
        "options": {"source": {"epochs": 4}},
        "seeds": 2,
        "jobs": 1,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUPBENCH_CACHE", str(home / "cache"))
        return [
            run(RunSpec.model_validate(spec | {"protocol": protocol, "out": home / protocol})).board()
            for protocol in ("reset_each_shift", "continual")
        ]


@pytest.fixture
def page(browser: Any, tmp_path: Path, boards: list[Board]) -> Iterator[Any]:
    file = tmp_path / "page.html"
    file.write_text(to_page(boards, title="Boards <of> a test", links=[("index.html", "all")]), encoding="utf-8")
    context = browser.new_context()
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on(
        "request", lambda request: wrong.append(request.url) if not request.url.startswith(file.as_uri()) else None
    )
    opened.goto(file.as_uri())
    yield opened
    assert wrong == []
    context.close()


def names(page: Any, board: int = 0) -> list[str]:
    rows = page.locator(f'section[data-board="{board}"] tbody tr[data-row]:visible th button')
    return rows.all_inner_texts()


def header(page: Any, title: str, board: int = 0) -> Any:
    return page.locator(f'section[data-board="{board}"] thead th button', has_text=title).first


def test_what_it_says_it_shows(page: Any, boards: list[Board]) -> None:
    assert page.title() == "Boards <of> a test"
    assert page.locator("section.board").count() == len(boards)
    assert sorted(names(page)) == sorted(row.name for row in boards[0].rows)
    assert page.locator("#count").inner_text() == f"{sum(len(board.rows) for board in boards)} rows"
    assert page.locator("nav a").get_attribute("href") == "index.html"
    assert page.locator(".tracks dd").count() == 5


def in_track(page: Any, title: str, track: str = "A", board: int = 0) -> list[float]:
    """The values of a column in the rows of one track, from top to bottom."""
    place = page.locator(f'section[data-board="{board}"] thead th').all_inner_texts().index(title)
    rows = page.locator(f'section[data-board="{board}"] tbody[data-track="{track}"] tr[data-row]')
    return [float(row.locator("td, th").nth(place).get_attribute("data-value")) for row in rows.all()]


def told(page: Any, title: str) -> str:
    return str(header(page, title).locator("xpath=..").get_attribute("aria-sort"))


def test_a_column_sorts_both_ways_and_tells_so(page: Any) -> None:
    assert told(page, "accuracy") == "descending"
    for title in ("ECE", "accuracy"):
        orders = []
        for _ in range(2):
            header(page, title).click()
            values = in_track(page, title)
            assert len(set(values)) == 3
            assert values == sorted(values, reverse=told(page, title) == "descending")
            orders.append(told(page, title))
        assert sorted(orders) == ["ascending", "descending"]
    assert told(page, "ECE") == "None"
    header(page, "method").click()
    assert names(page) == ["source", "lame", "t3a", "tent"]
    header(page, "method").click()
    assert names(page) == ["source", "tent", "t3a", "lame"]


def test_an_open_row_moves_with_its_method(page: Any) -> None:
    page.locator("tbody button.open", has_text="t3a").first.click()
    page.locator("tr.detail").wait_for()
    for _ in range(2):
        header(page, "method").click()
        before = page.locator("tr.detail").evaluate(
            "row => row.previousElementSibling.querySelector('button').textContent"
        )
        assert before == "t3a"


def test_the_keyboard_sorts_and_opens(page: Any) -> None:
    header(page, "clean").focus()
    page.keyboard.press("Enter")
    values = in_track(page, "clean")
    assert values == sorted(values, reverse=told(page, "clean") == "descending")
    opener = page.locator("tbody button.open").first
    opener.focus()
    page.keyboard.press("Space")
    page.locator("tr.detail").wait_for()
    assert opener.get_attribute("aria-expanded") == "true"
    page.keyboard.press("Space")
    assert page.locator("tr.detail").count() == 0


def test_filters_leave_what_they_name(page: Any, boards: list[Board]) -> None:
    page.locator('[data-filter="method"]').fill("ten")
    assert names(page) == [row.name for row in boards[0].rows if "ten" in row.name]
    page.locator('[data-filter="method"]').fill("")
    page.locator('[data-filter="track"]').select_option("R")
    assert set(names(page)) == {row.name for row in boards[0].rows if row.track == "R"}
    page.locator('[data-filter="track"]').select_option("")
    page.locator('[data-filter="protocol"]').select_option(boards[1].protocol)
    assert not page.locator('section[data-board="0"]').is_visible()
    assert page.locator('section[data-board="1"]').is_visible()


def test_a_method_opens_to_its_conditions_and_their_records(page: Any, boards: list[Board]) -> None:
    row = boards[0].rows[0]
    page.locator("tbody button.open", has_text=row.name).first.click()
    detail = page.locator("tr.detail")
    detail.wait_for()
    shown = detail.inner_text()
    for corruption in boards[0].corruptions:
        assert corruption in shown
    cell = next(cell for cell in row.cells if cell.corruption is not None)
    assert f"{100 * (cell.accuracy or 0):.1f}" in shown
    links = detail.locator("a").evaluate_all("found => found.map(a => a.getAttribute('href'))")
    assert {f"records/{key}.json" for cell in row.cells for key in cell.keys} == set(links)


def test_latex_is_copied_or_selected(page: Any) -> None:
    page.locator("button.copy").first.click()
    page.locator(".said", has_text="op").first.wait_for()
    assert "\\toprule" in page.locator(".latex pre").first.text_content()


@pytest.mark.parametrize(
    ("width", "scheme", "media"), [(1200, "dark", "screen"), (380, "light", "screen"), (1000, "light", "print")]
)
def test_it_fits_every_screen(page: Any, width: int, scheme: Any, media: Any) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme, media=media)
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0
    ground, ink = page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    assert ground != ink
    assert page.locator("section.board table").first.is_visible()


def test_without_scripts_the_numbers_are_still_there(browser: Any, tmp_path: Path, boards: list[Board]) -> None:
    file = tmp_path / "page.html"
    file.write_text(to_page(boards), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(file.as_uri())
    assert boards[0].rows[0].name in opened.inner_text("table")
    assert not opened.locator("#filters").is_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_their_ground(page: Any, scheme: Any) -> None:
    # At least 4.5 to 1, as WCAG 2.2 requires for small text (success criterion 1.4.3).
    page.emulate_media(color_scheme=scheme)
    colours = page.evaluate(
        """() => {
          const style = getComputedStyle(document.documentElement);
          const names = ["ink", "soft", "link", "ground", "raised"];
          return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
        }"""
    )

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for ground in ("ground", "raised"):
        for text in ("ink", "soft", "link"):
            low, high = sorted((luminance(colours[text]), luminance(colours[ground])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


def test_names_that_are_code_are_never_run(browser: Any, tmp_path: Path, boards: list[Board]) -> None:
    nasty = "\"><img src=x onerror='window.sprung=1'><script>window.sprung=1</script>{{7*7}}</script>"
    rows = [
        dataclasses.replace(row, method=nasty, cells=tuple(dataclasses.replace(c, corruption=nasty) for c in row.cells))
        for row in boards[0].rows
    ]
    board = dataclasses.replace(boards[0], rows=tuple(rows), shift=nasty, model=nasty, protocol=nasty)
    file = tmp_path / "page.html"
    file.write_text(to_page([board], title=nasty, links=[("a.html", nasty)], with_figures=False), encoding="utf-8")
    opened = browser.new_context().new_page()
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(message.text))
    opened.goto(file.as_uri())
    opened.locator("button.open").first.click()
    opened.locator("tr.detail").wait_for()
    assert opened.title() == nasty
    assert nasty in opened.locator("tr.detail").inner_text()
    assert opened.evaluate("window.sprung") is None
    assert opened.locator("img").count() == 0
    assert wrong == []
    opened.context.close()


def large(board: Board) -> Board:
    """A board of 200 methods on 15 corruptions at 5 severities, built from a small one."""
    rng = np.random.default_rng(0)
    corruptions = [f"corruption{number:02}" for number in range(15)]
    rows = []
    for number in range(200):
        like = board.rows[number % len(board.rows)]
        values = rng.random((15, 5))
        cells = [
            Cell(name, level + 1, float(values[i, level]), 0.1, (rng.bytes(16).hex(),))
            for i, name in enumerate(corruptions)
            for level in range(5)
        ]
        by_corruption = dict(zip(corruptions, values.mean(axis=1).tolist(), strict=True))
        means = {
            "accuracy": float(values.mean()),
            "per_corruption": by_corruption,
            "clean_accuracy": float(rng.random()),
        }
        rows.append(dataclasses.replace(like, method=f"method{number:03}", part=None, cells=tuple(cells), **means))
    return dataclasses.replace(board, rows=tuple(rows), corruptions=tuple(corruptions), severities=(1, 2, 3, 4, 5))


@pytest.mark.slow
def test_a_large_page_answers_at_once(browser: Any, tmp_path: Path, boards: list[Board]) -> None:
    file = tmp_path / "page.html"
    file.write_text(to_page([large(boards[0])]), encoding="utf-8")
    assert file.stat().st_size < 5e6
    opened = browser.new_context().new_page()
    opened.goto(file.as_uri())
    assert len(names(opened)) == 200
    # From the action to the next frame, by the page's clock; the bound is what people notice.
    seconds = opened.evaluate(
        """async () => {
          const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
          const timed = async (act) => {
            const start = performance.now();
            await act();
            await frame();
            return (performance.now() - start) / 1000;
          };
          const header = document.querySelectorAll("thead th button")[3];
          const search = document.querySelector("[data-filter=method]");
          const type = (text) => { search.value = text; search.dispatchEvent(new Event("input", { bubbles: true })); };
          const detail = async () => {
            document.querySelector("button.open").click();
            while (!document.querySelector("tr.detail")) await frame();
          };
          return {
            sort: await timed(() => header.click()),
            again: await timed(() => header.click()),
            filter: await timed(() => type("method1")),
            clear: await timed(() => type("")),
            detail: await timed(detail),
          };
        }"""
    )
    assert opened.locator("tr.detail tbody tr").count() == 15
    assert max(seconds.values()) < 1, seconds
    opened.context.close()
