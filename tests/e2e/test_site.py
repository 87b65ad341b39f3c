"""A site of three shifts in a real browser, with gaps and hostile names: screens, schemes, keyboard, contrast."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import re
import shutil
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import leaderboards
from leaderboards import Record, read_bundle
from leaderboards.bundle import Bundle
from leaderboards.heat import SHADES, ink_on, luminance, shades
from leaderboards.matrix import comparisons, matrix
from leaderboards.matrix_page import matrix_page
from leaderboards.site import build_site, make_site

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the site is driven by playwright, which is not installed"
)
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed; apt-get install chromium")

NASTY = "\"><img src=x onerror='window.sprung=1'><script>window.sprung=1</script>{{7*7}}"
SCREENS = [
    *((390, "dark"), (1280, "light")),
    *(pytest.param(*screen, marks=pytest.mark.slow) for screen in ((390, "light"), (1280, "dark"))),
]


def kept(bundle: Bundle, keep: Callable[[Record], bool], **changes: Any) -> Bundle:
    """Some records, changed, each under a key of its own."""
    keys = {r.key: hashlib.sha256(f"{r.key} {changes}".encode()).hexdigest()[:32] for r in bundle.records if keep(r)}
    records = [
        record.model_copy(update=changes | {"key": keys[record.key]}) for record in bundle.records if keep(record)
    ]
    bits, digests = (
        {keys[key]: value for key, value in own.items() if key in keys} for own in (bundle.bits, bundle.digests)
    )
    return replace(bundle, records=tuple(records), bits=bits, digests=digests)


def failed(bundle: Bundle, key: str) -> Bundle:
    """The bundle with a record that failed."""
    broken = {"status": "failed", "metrics": None, "diagnostics": None, "error": "not finite"}
    records = [r.model_copy(update=broken) if r.key == key else r for r in bundle.records]
    return replace(bundle, records=tuple(records))


def renamed(bundle: Bundle, old: str, new: str) -> Bundle:
    records = [r.model_copy(update={"method": new}) if r.method == old else r for r in bundle.records]
    return replace(bundle, records=tuple(records))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    published = read_bundle(Path(leaderboards.__file__).parent / "results" / "digits-c-field.jsonl")
    few = kept(published, lambda record: record.method in ("source", "augmix", "tent", "shot_im", "eata", "tent_pool"))
    nasty = kept(few, lambda record: True, shift=NASTY)
    gap = next(record.key for record in nasty.records if record.method == "tent" and not record.clean)
    bundles = {
        "one.jsonl": few,
        "two.jsonl": kept(few, lambda record: record.method not in ("augmix", "eata"), shift="other-c"),
        "three.jsonl": renamed(failed(nasty, gap), "shot_im", NASTY),
    }
    out = tmp_path_factory.mktemp("site")
    build_site(bundles, out, project="https://example.org/soupbench")
    boards = [entry.board for entry in make_site(bundles).entries]
    made = matrix(boards, by="shift", across=True)
    (out / "alone").mkdir()
    (out / "alone" / "page.html").write_text(matrix_page(made, comparisons(made, blocks="conditions")))
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any, site: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page of the site; at the end nothing was fetched, warned about or run that is not the site's."""
    contexts, wrong = [], []

    def opened(name: str, width: int = 1280, scheme: str = "light", media: str = "screen") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.emulate_media(media=media, color_scheme=scheme)
        page.on("console", lambda message: wrong.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(site.as_uri()) else wrong.append(request.url))
        page.goto((site / name).as_uri())
        return page

    yield opened
    for context in contexts:
        assert all(page.evaluate("window.sprung") is None for page in context.pages)
        context.close()
    assert wrong == []


def board_pages(site: Path) -> list[str]:
    return sorted(path.name for path in site.glob("*.html") if not re.search("index|about|submit|matrix", path.name))


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_every_page_fits_every_screen_and_can_be_read(visit: Any, site: Path, width: int, scheme: str) -> None:
    for path in sorted(site.glob("**/*.html")):
        page = visit(str(path.relative_to(site)), width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), path.name
        assert page.locator(".tracks dt").all_inner_texts() == ["R", "A", "B", "C", "D"]
        faint = [found for found in page.evaluate(CONTRASTS) if found["ratio"] < 4.5]
        assert faint == [], path.name


# The contrast of each text with what is behind it (WCAG 2.2, success criterion 1.4.3), from the styles as computed.
CONTRASTS = """() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data).join("").trim();
    if (!own || !element.checkVisibility() || ["SCRIPT", "STYLE", "OPTION"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const drawn = element.namespaceURI.endsWith("svg");
    const pair = [luminance(parts(drawn ? style.fill : style.color)), luminance(ground(element))].sort((a, b) => a - b);
    found.push({ text: own.slice(0, 30), ratio: (pair[1] + 0.05) / (pair[0] + 0.05) });
  }
  if (found.length < 20) throw new Error("too few texts");
  return found;
}"""


def test_any_colour_of_the_heat_map_has_a_text_that_can_be_read() -> None:
    assert len(set(shades())) == SHADES
    for colour in (*shades(), *(f"#{grey:02x}{grey:02x}{grey:02x}" for grey in range(256))):
        low, high = sorted((luminance(colour), luminance(ink_on(colour))))
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_names_and_accuracies_stay_while_the_rest_scrolls(visit: Any, site: Path) -> None:
    for name in board_pages(site):
        page = visit(name, 390)
        scroll = page.locator("section.board > .scroll")
        assert page.locator("section.board > .hint").is_visible()
        places = """(scroll) => [...scroll.querySelector("tbody tr[data-row]").cells]
          .map((cell) => cell.getBoundingClientRect()).map((box) => [box.left, box.right])"""
        before = scroll.evaluate(places)
        scroll.evaluate("(scroll) => { scroll.scrollLeft = 120; }")
        after = scroll.evaluate(places)
        moved = [b[0] - a[0] for b, a in zip(before, after, strict=True)]
        assert moved == pytest.approx([0, 0, *[120] * (len(before) - 2)], abs=1)
        assert before[0][0] >= 0
        assert before[1][1] < 300  # more than a column is left to scroll
        # What is fixed lies above what scrolls.
        x, y = page.evaluate(
            """() => { const box = document.querySelector("tr[data-row] td.accuracy").getBoundingClientRect();
            scrollTo(0, box.top - 200); return [box.left + 5, 200 + box.height / 2]; }"""
        )
        top = page.evaluate("([x, y]) => document.elementFromPoint(x, y).closest('td').className", [x, y])
        assert "accuracy" in top


def test_a_hint_stands_only_where_something_is_hidden(visit: Any, site: Path) -> None:
    page = visit(board_pages(site)[0], 1280)
    scroll = page.locator("section.board > .scroll")
    assert scroll.evaluate("(s) => s.scrollWidth <= s.clientWidth")
    assert not page.locator("section.board > .hint").is_visible()
    page.set_viewport_size({"width": 500, "height": 900})
    page.locator("section.board > .hint").wait_for(state="visible")


def test_the_keyboard_reaches_and_scrolls_everything(visit: Any, site: Path) -> None:
    for name in ("index.html", board_pages(site)[0], "matrix.html", "alone/page.html"):
        page = visit(name, 390)
        reached = page.evaluate(
            """() => [...document.querySelectorAll("a, button, summary, select, input, .scroll, .drawing")]
              .filter((element) => element.checkVisibility() && element.tabIndex < 0).length"""
        )
        assert reached == 0
        scroll = page.locator("main .scroll").first
        scroll.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("(s) => s.scrollLeft > 0", arg=scroll.element_handle())
        seen = set()
        page.evaluate("document.activeElement.blur()")
        for _ in range(8):
            page.keyboard.press("Tab")
            seen.add(page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
        assert len(seen) == 8


def test_what_a_screen_reader_needs_is_there(visit: Any, site: Path) -> None:
    for path in sorted(site.glob("**/*.html")):
        found = visit(str(path.relative_to(site))).evaluate(
            """() => ({
              unscoped: [...document.querySelectorAll("th")].filter((th) => !th.scope).length,
              unnamed: [...document.querySelectorAll("table")].filter((table) =>
                !(table.caption?.textContent.trim() || table.closest("[aria-labelledby]"))).length,
              dangling: [...document.querySelectorAll("[aria-labelledby], [aria-describedby]")]
                .flatMap((e) => [e.getAttribute("aria-labelledby"), e.getAttribute("aria-describedby")])
                .filter((id) => id && !document.getElementById(id)?.textContent.trim()),
              twice: [...document.querySelectorAll("[id]")].map((e) => e.id)
                .filter((id, i, all) => all.indexOf(id) !== i),
              headings: [...document.querySelectorAll("h1, h2, h3")].map((h) => Number(h.tagName[1])),
              unsorted: [...document.querySelectorAll("table.sortable")]
                .filter((table) => table.querySelectorAll("thead [aria-sort]").length !== 1).length,
            })"""
        )
        headings = found.pop("headings")
        assert headings[0] == 1
        assert headings.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(headings))
        assert found == {"unscoped": 0, "unnamed": 0, "dangling": [], "twice": [], "unsorted": 0}, path.name


def test_a_cell_of_the_matrix_leads_to_its_row(visit: Any, site: Path) -> None:
    page = visit("index.html")
    cells = page.locator(".matrix tbody td a")
    links = cells.evaluate_all("(all) => all.map((a) => [a.getAttribute('href'), a.textContent.trim()])")
    assert len(links) == 6 + 4 + 6
    assert [text for _, text in links].count("incomplete") == 1
    for number, (href, text) in enumerate(links):
        name, _, anchor = href.partition("#")
        page.goto(f"{(site / name).as_uri()}#{anchor}")
        target = page.locator("tr:target")
        assert target.count() == 1, href
        assert target.locator("td.accuracy").inner_text().startswith(text), number
    page.goto((site / "index.html").as_uri())
    assert (
        page.locator(".matrix td.missing").count() == 2 + 3
    )  # two were left out; the one with another name is in no board with its namesake
    assert page.locator(".matrix td.missing").all_inner_texts() == ["not run"] * 5
    assert page.locator(".matrix thead th").count() == 1 + 3 + 3
    assert NASTY in page.locator(".matrix").inner_text()


def test_the_matrix_sorts_within_tracks_and_what_is_missing_comes_last(visit: Any) -> None:
    page = visit("index.html")
    for column in (1, 2, 3):
        for time in range(2):
            header = page.locator(f'.matrix th[data-column="{column}"]')
            header.locator("button").click()
            order = header.get_attribute("aria-sort")
            # The best first, unless the column was sorted so before.
            assert order == ("ascending" if time == (0 if column == 1 else 1) else "descending")
            for track in "RA":
                cells = page.locator(f'.matrix tbody[data-track="{track}"] tr[data-row]')
                texts = [row.locator("td").nth(column - 1).get_attribute("data-value") for row in cells.all()]
                numbers = [float(text) for text in texts if text]
                assert numbers == sorted(numbers, reverse=order == "descending")
                assert texts[: len(numbers)] == [text for text in texts if text]


def test_downloads_say_what_they_are(visit: Any, site: Path) -> None:
    for name in board_pages(site):
        files = visit(name).locator(".downloads .files li")
        kinds = []
        for file in files.all():
            path = site / file.locator("a").get_attribute("href")
            assert file.locator("a").inner_text() == path.name
            kind, _, size = file.locator(".soft").inner_text().rpartition(", ")
            number, unit = size.split()
            assert float(number) * {"B": 1, "kB": 1e3, "MB": 1e6}[unit] == pytest.approx(path.stat().st_size, rel=0.06)
            kinds.append(kind.partition(",")[0])
            if path.suffix == ".svg":
                assert "<text" in path.read_text()
                assert "#010203" not in path.read_text()
        assert {"CSV", "JSON", "Markdown", "LaTeX", "SVG", "JSON lines"} == set(kinds)


def test_a_page_prints_as_tables_and_figures(visit: Any, site: Path) -> None:
    page = visit(board_pages(site)[0], 1000, media="print")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    for hidden in ("nav", "#filters", ".downloads", ".hint"):
        assert not page.locator(hidden).first.is_visible()
    assert page.locator("figure svg text").count() > 10
    assert page.locator("figcaption").count() >= 2
    assert len(page.pdf()) > 10_000


def test_the_pages_lead_to_the_paper_the_project_and_the_way_to_submit(visit: Any, site: Path) -> None:
    for path in sorted(site.glob("*.html")):
        links = visit(path.name).locator("nav a").evaluate_all("(all) => all.map((a) => a.getAttribute('href'))")
        assert {"https://arxiv.org/abs/2602.02890", "https://example.org/soupbench"} <= set(links)
        assert path.name == "submit.html" or "submit.html" in links
        assert all(link.startswith("https://") or (site / link).is_file() for link in links)


def cells_of(page: Any) -> list[dict[str, Any]]:
    """Of each cell of the first matrix its row, column, text and address."""
    return list(
        page.locator("table.matrix").first.evaluate(
            """(table) => [...table.querySelectorAll("tbody tr[data-row]")].flatMap((row) => [...row.cells].slice(1)
              .map((cell, j) => ({ name: row.cells[0].innerText, column: j, text: cell.textContent.trim(),
                value: cell.dataset.value, href: cell.querySelector("a")?.getAttribute("href") ?? null })))"""
        )
    )


def test_means_and_ranks_stand_only_where_a_method_is_complete(visit: Any, site: Path) -> None:
    content = json.loads((site / "matrix-shift.json").read_text())
    page = visit("matrix.html")
    assert page.locator("h2").all_inner_texts() == ["Tracks", "Shifts"]
    told = cells_of(page)
    width = 2 + len(content["columns"])
    assert len(told) == width * len(content["rows"])
    for number, row in enumerate(content["rows"]):
        mean, rank, *cells = told[number * width : (number + 1) * width]
        complete = all(cell["accuracy"] is not None for cell in row["cells"])
        assert (row["mean"] is not None) == (row["mean_rank"] is not None) == complete
        assert mean["text"] == (f"{100 * row['mean']:.1f}" if complete else "–")
        assert rank["text"] == (f"{row['mean_rank']:.2f}" if complete else "–")
        for cell, known in zip(cells, row["cells"], strict=True):
            wanted = {"complete": f"{100 * (known['accuracy'] or 0):.1f}"}.get(known["state"], known["state"])
            assert cell["text"].startswith(wanted)
            assert (cell["href"] is None) == (known["state"] == "not run")
    assert {row["mean"] is None for row in content["rows"]} == {True, False}


@pytest.mark.parametrize("name", [pytest.param("matrix.html", marks=pytest.mark.slow), "alone/page.html"])
def test_a_number_of_means_and_ranks_leads_to_its_row_from_any_folder(browser: Any, site: Path, name: str) -> None:
    # Served below the root of a host, as project pages are; nothing but the site's own files is asked for.
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        context = browser.new_context(java_script_enabled=False)
        page = context.new_page()
        failed: list[str] = []
        page.on("response", lambda answer: failed.append(answer.url) if answer.status >= 400 else None)
        start = f"http://127.0.0.1:{server.server_port}/{site.name}/{name}"
        page.goto(start)
        cells = [cell for cell in cells_of_plain(page) if cell[0]]
        assert len(cells) == 6 + 4 + 6
        for href, text in cells:
            page.goto(urllib.parse.urljoin(start, href))
            target = page.locator("tr:target")
            assert target.count() == 1, href
            assert target.locator("td.accuracy").inner_text().startswith(text)
        page.goto(start)
        for link in page.locator("table.matrix thead a").all():
            address = urllib.parse.urljoin(start, link.get_attribute("href"))
            assert site.name in address
            page.goto(address)
            page.goto(start)
        assert failed == []
        context.close()
        server.shutdown()


def cells_of_plain(page: Any) -> list[tuple[str, str]]:
    """The address and the number of each cell, read without a script."""
    links = page.locator("table.matrix").first.locator("tbody td a").all()
    return [(link.get_attribute("href"), link.inner_text()) for link in links]


def test_the_page_of_a_matrix_filters_and_sorts_its_rows(visit: Any) -> None:
    page = visit("alone/page.html")
    rows = page.locator("table.matrix tbody tr[data-row]")
    names = [row.locator("th").inner_text() for row in rows.all()]
    assert any(name.startswith("tent (A)") for name in names)
    page.locator('[data-filter="method"]').fill("eata")
    left = page.locator("table.matrix tbody tr[data-row]:visible th").all_inner_texts()
    assert left == [name for name in names if "eata" in name]
    page.locator('[data-filter="method"]').fill("")
    header = page.locator("table.matrix th", has_text="mean").first
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    values = [row.locator("td").first.get_attribute("data-value") for row in rows.all()]
    means = [float(value) for value in values if value]
    assert means == sorted(means, reverse=True)
    assert values[: len(means)] == [value for value in values if value]


def test_names_and_means_stand_on_a_phone_before_anything_is_scrolled(visit: Any) -> None:
    for name in ("matrix.html", "alone/page.html"):
        boxes = visit(name, 390).evaluate(
            """() => [...document.querySelector("table.matrix tbody tr[data-row]").cells].slice(0, 3)
              .map((cell) => cell.getBoundingClientRect()).map((box) => [box.left, box.right])"""
        )
        assert all(left >= 0 and right <= 390 for left, right in boxes)
