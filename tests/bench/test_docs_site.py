"""The documentation site: generated pages against what the program says, its links, and its looks in a browser."""

from __future__ import annotations

import ast
import email.message
import functools
import http.server
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
import urllib.parse
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import quick_processes

from bench.settings.run_spec import make_spec
from methods import METHODS
from methods.table import TRACKS

HOME = Path(__file__).resolve().parents[2]
DOCS = HOME / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1"}


def generator(name: str) -> Any:
    """A module of docs/site; skips without the packages that it needs."""
    pytest.importorskip("latex2mathml", reason="the site needs latex2mathml; pip install -e '.[docs]'")
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of the site, made in a process that cannot import torch."""
    generator("markup")
    out = tmp_path_factory.mktemp("site") / "docs"
    code = (
        "import sys; sys.modules['torch'] = sys.modules['torchvision'] = None\n"
        f"sys.path.insert(0, {str(DOCS / 'site')!r})\n"
        "import pages; from pathlib import Path\n"
        f"pages.write(Path({str(out)!r}), 'https://github.com/someone/soupbench')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HOME, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out


# What stands in small files beside the generators.


def test_every_method_has_a_formula_and_nothing_else_has() -> None:
    method_pages = generator("method_pages")
    formulas = method_pages.formulas()
    assert formulas.keys() == METHODS.keys()
    for name, entry in formulas.items():
        assert entry.keys() <= {"formula", "where", "as"}, name
        assert ("formula" in entry) != ("as" in entry), name
        assert "as" not in entry or ("formula" in formulas[entry["as"]] and "where" in entry), name


@pytest.mark.parametrize("file", sorted((DOCS / "site").glob("*.py")), ids=lambda file: file.stem)
def test_generators_import_names_that_the_packages_have(file: Path) -> None:
    """Says so also where the packages of the site are missing and its other tests are skipped."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ("bench", "leaderboards", "methods"):
            module = importlib.import_module(str(node.module))
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def test_a_logarithm_stands_apart_from_what_it_is_multiplied_with() -> None:
    markup = generator("markup")
    space = '<mspace width="0.17em"/>'
    for before in ("p", "p_c", "p^c", "p_c^q"):
        assert f"{space}<mi>log</mi>{space}" in markup.formula(rf"{before} \log p")
    assert f"<mo>&#x02212;</mo><mi>log</mi>{space}" in markup.formula(r"x = -\log p")


def test_formulas_become_mathml_and_unknown_signs_are_refused() -> None:
    markup = generator("markup")
    made = markup.formula(r"\mathcal{L} = \frac{1}{n} \sum_i H(p_i)")
    assert re.findall(r"<(math|mfrac|munder)\b", made) == ["math", "mfrac", "munder"]
    assert "\\" not in re.sub(r'alttext="[^"]*"', "", made)
    for wrong in (r"\nosuchsign{x}", r"\big\{ x"):
        with pytest.raises(ValueError, match="which latex2mathml does not know"):
            markup.formula(wrong)


@pytest.mark.parametrize("name", METHODS)
def test_formulas_name_the_options_that_the_method_has(name: str) -> None:
    """A code span in the words of a formula is an option of the method, or another method."""
    method_pages = generator("method_pages")
    entry = method_pages.formulas()[name]
    options = {option["name"] for option in method_pages.facts_of(name)["options"]}
    assert set(re.findall(r"`([^`]+)`", entry.get("where", ""))) <= options | METHODS.keys()


def test_measured_passes_are_of_adapters_and_fit_what_their_docstrings_say() -> None:
    method_pages = generator("method_pages")
    passes = tomllib.loads((DOCS / "site" / "passes.toml").read_text())["passes"]
    assert passes.keys() <= METHODS.keys()
    assert passes["source"] == [1, 0]
    said = {"adacontrast": [5, 1], "rmt": [4, 3], "santa": [3, 2], "actmad": [2, 1], "sar": [2, 2], "rpl": [1, 1]}
    assert {name: passes[name] for name in said} == said
    assert method_pages.costs_in(method_pages.facts_of("rpl")["description"]) == [
        "Costs one forward and one backward pass."
    ]


def test_the_figure_of_tracks_is_the_one_that_its_program_draws() -> None:
    figure = importlib.import_module("track_figure")
    assert figure.FILE.read_text(encoding="utf-8") == figure.svg()
    assert list(figure.BOXES) == list(TRACKS)


def test_a_link_that_leaves_the_site_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = generator("pages")
    (tmp_path / "docs").mkdir()
    page, other = tmp_path / "docs" / "a.md", tmp_path / "docs" / "sub" / "b.md"
    monkeypatch.setattr(site, "HOME", tmp_path)
    monkeypatch.setattr(site, "DOCS", tmp_path / "docs")
    placed = {page: "a.md", other: "sub/b.md", tmp_path / "CONTRIBUTING.md": "contributing.md"}
    page.write_text("[b](sub/b.md#x) [c](../CONTRIBUTING.md) [web](https://x.org)\n```sh\n[no](nowhere)\n```\n")
    assert site.relinked(page, placed) == (
        "[b](sub/b.md#x) [c](contributing.md) [web](https://x.org)\n```sh\n[no](nowhere)\n```\n"
    )
    page.write_text("[gone](../README.md)")
    with pytest.raises(ValueError, match=r"docs/a\.md links to \.\./README\.md, which is no page of the site"):
        site.relinked(page, placed)


# The pages that are generated, against what was written or printed elsewhere.


def test_the_navigation_names_every_page_once(pages: Path) -> None:
    text = (HOME / "mkdocs.yml").read_text()
    named = re.findall(r"[\w./-]+\.md\b", text[text.index("\nnav:") :])
    found = sorted(str(page.relative_to(pages)) for page in pages.rglob("*.md"))
    assert sorted(named) == found


def test_published_accuracies_are_those_that_the_study_reports(pages: Path) -> None:
    """The table of the field in docs/digits-c.md was printed by `bench leaderboard`, from one of the published files.

    The other file gives four methods a fourth seed.
    """
    demonstration = {"source", "tent", "memo", "supervised_soup"}
    rows = re.findall(
        r"^\|\s+\d+ \| (\w+)(?: \(soup\))? +\| [A-Z] +\| +([\d.]+ \[[\d., ]+\]) ",
        (DOCS / "digits-c.md").read_text(),
        re.M,
    )
    assert len(rows) > 25
    for method, accuracy in rows:
        line = (pages / "methods" / f"{method}.md").read_text().replace("\\", "")
        assert (accuracy in line) != (method in demonstration), method
        assert line.endswith(" 4 |\n" if method in demonstration else " 3 |\n") or method == "selfsoup"


def test_runs_of_releases_stand_on_the_pages_of_their_methods(pages: Path) -> None:
    assert "qinenergy/cotta `cifar/cotta.py` (c212a20)" in (pages / "methods" / "cotta.md").read_text()
    assert "No release is compared with" not in (pages / "methods" / "tent.md").read_text()


def test_options_are_explained_on_the_pages_of_their_methods(pages: Path) -> None:
    text = (pages / "methods" / "memo.md").read_text()
    assert "| <code>lr</code> | <code>float</code> | <code>0.00025</code> |" in text
    assert re.search(r"^- <code>views</code>: augmented views of each image; 64, or 32 for CIFAR\.", text, re.M)
    assert "| <code>imagenet-ln</code> | lr = 1e-05 (published), optimizer = adamw (published)" in text


@pytest.mark.parametrize(
    "command", ["run", "leaderboard", "publish check", "data fetch", "soup season", pytest.param("verify", id="verify")]
)
def test_the_reference_has_every_option_that_the_help_prints(command: str, pages: Path) -> None:
    text = (pages / "reference" / "commands.md").read_text()
    section = re.split(r"^##+ ", text.partition(f"## bench {command}\n")[2], flags=re.M)[0]
    printed = quick_processes.run(["-m", "bench", *shlex.split(command), "--help"], cwd=HOME, env=ENVIRONMENT).stdout
    options = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", printed, re.M)) - {"--help"}
    assert options
    assert all(option in section for option in options)


def test_notebooks_have_a_page_with_a_link_to_colab(pages: Path) -> None:
    for file in NOTEBOOKS:
        text = (pages / "notebooks" / f"{file.stem}.md").read_text()
        link = f"https://colab.research.google.com/github/someone/soupbench/blob/main/docs/notebooks/{file.name}"
        assert f"({link})" in text
        assert (pages / "notebooks" / file.name).read_bytes() == file.read_bytes()
        assert "![What the code above draws]" in text


# Notebooks.


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_stored_outputs_are_small_and_say_nothing_of_the_machine(file: Path) -> None:
    text = file.read_text()
    assert len(text) < 200_000
    outputs = [output for cell in json.loads(text)["cells"] for output in cell.get("outputs", ())]
    assert outputs
    assert not re.search(r"/(tmp|home|root|Users)/|Warning", json.dumps(outputs))


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebooks_run_and_print_what_they_show(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nbclient", reason="notebooks are run by nbclient; pip install -e '.[docs]'")
    pytest.importorskip("ipykernel", reason="notebooks are run by ipykernel; pip install -e '.[docs]'")
    for name, value in {**ENVIRONMENT, "SOUPBENCH_CACHE": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    made = importlib.import_module("run_notebooks").executed(file)
    stored = json.loads(file.read_text())
    for ours, theirs in zip(made.cells, stored["cells"], strict=True):
        assert printed(ours) == printed(theirs), ours["source"]


def printed(cell: Any) -> list[str]:
    """The texts that a cell prints, rounded to two places, without objects that are named by their address."""
    texts = ("".join(out.get("text", out.get("data", {}).get("text/plain", ""))) for out in cell.get("outputs", ()))
    return [re.sub(r"(\.\d\d)\d+", r"\1", text) for text in texts if " at 0x" not in text]


def test_the_study_finds_its_data_without_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Colab: the package alone, and the repository behind the address that a release states."""
    (cell,) = (
        text
        for each in json.loads((DOCS / "notebooks" / "study.ipynb").read_text(encoding="utf-8"))["cells"]
        if "read_bundle(" in (text := "".join(each["source"]))
    )
    results = tmp_path / "repository" / "v1.2.0" / "leaderboards" / "results"
    results.mkdir(parents=True)
    shutil.copy(HOME / "leaderboards" / "results" / "digits-c-demo.jsonl", results / "digits-c-field.jsonl")
    said: Any = email.message.Message()
    said["Project-URL"] = "Paper, https://arxiv.org/abs/2602.02890"
    said["Project-URL"] = f"Source, {(tmp_path / 'repository').as_uri()}"
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: said)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2.0")
    (tmp_path / "content").mkdir()
    monkeypatch.chdir(tmp_path / "content")
    for _ in range(2):  # the second time without a download
        names: dict[str, Any] = {}
        exec(cell, names)
        assert names["bundle"].records
        shutil.rmtree(results, ignore_errors=True)


def test_a_release_states_the_address_of_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hatchling", reason="hatchling builds the package; pip install -e '.[dev]'")
    spec = importlib.util.spec_from_file_location("hatch_build", HOME / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("SOUPBENCH_PROJECT", "GITHUB_SERVER_URL", "GITHUB_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)

    def urls() -> dict[str, str]:
        facts: dict[str, Any] = {}
        module.Addresses(str(HOME), {}).update(facts)
        return facts["urls"]

    assert urls() == {"Paper": "https://arxiv.org/abs/2602.02890"}
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.com")
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/soupbench")
    assert urls()["Source"] == "https://github.com/someone/soupbench"
    monkeypatch.setenv("SOUPBENCH_PROJECT", "https://example.org/x")
    assert urls()["Source"] == "https://example.org/x"


# The quickstart, followed word by word.


@pytest.mark.slow
def test_the_quickstart_can_be_followed(tmp_path: Path) -> None:
    text = (DOCS / "quickstart.md").read_text()
    environment = {**ENVIRONMENT, "SOUPBENCH_CACHE": str(tmp_path / "cache")}
    small = ["--limit", "20", "--set", "source.epochs=2", "--corruption", "fog,contrast"]
    ran = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M):
        for words in map(shlex.split, block.splitlines()):
            if words[0] == "pip" or "--demo" in words:
                continue  # tests/e2e/test_demo.py runs the demonstration
            more = small if words[1] == "run" else []
            done = quick_processes.run(["-m", "bench", *words[1:], *more], cwd=tmp_path, env=environment)
            assert done.returncode == 0, (words, done.stderr)
            ran.append(words[1])
    assert ran == ["run", "leaderboard", "compare", "leaderboard", "verify"]
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    script = tmp_path / "script.py"
    script.write_text(
        code.replace(
            "severity=3,", "severity=3, limit=20, corruption='fog,contrast', options={'source': {'epochs': 2}},"
        )
    )
    done = subprocess.run(
        [sys.executable, script.name], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {"source", "tent", "shot_im"} <= set(done.stdout.split())


def test_the_run_file_for_a_cluster_is_one() -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```", (DOCS / "cluster.md").read_text(), re.S | re.M)
    spec = make_spec({"method": "tent", "shift": "digits-c", **tomllib.loads(text)})
    assert (spec.launch, spec.jobs, spec.slurm.partition, spec.slurm.mem) == ("slurm", 16, "gpu", 32)


# The site as it is built.


class Found(HTMLParser):
    """The ids and the links of a page, and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        of = dict(attributes)
        self.ids |= {value for name in ("id", "name") if (value := of.get(name))}
        if tag == "a" and (link := of.get("href")):
            self.links.append(link)
        if tag in ("img", "script") and (source := of.get("src")):
            self.loaded.append(source)
        if tag == "link" and of.get("rel") in ("stylesheet", "icon", "preload") and (link := of.get("href")):
            self.loaded.append(link)


@pytest.fixture(scope="module")
def built(pages: Path) -> Path:
    """The whole site as `make docs` builds it: strictly, with the boards below it."""
    if importlib.util.find_spec("zensical") is None:
        pytest.skip("the site is built by zensical; pip install -e '.[docs]'")
    home = pages.parent
    shutil.copytree(pages, home / "build" / "docs")
    (home / "mkdocs.yml").write_text((HOME / "mkdocs.yml").read_text().replace("paths: [.]", f"paths: [{HOME}]"))
    site = home / "build" / "site"
    for folder, words in (
        (home, ["zensical", "build", "--strict"]),
        (HOME, ["bench", "leaderboard", "--out", str(site / "boards")]),
    ):
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return site


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere_and_nothing_is_loaded_from_elsewhere(built: Path) -> None:
    found = {}
    for page in built.rglob("*.html"):
        found[page] = Found()
        found[page].feed(page.read_text(encoding="utf-8"))
    wrong = []
    for page, parts in found.items():
        for link in [*parts.links, *parts.loaded]:
            url = urllib.parse.urlsplit(link)
            if url.scheme or url.netloc:
                if link in parts.loaded and url.scheme != "data":
                    wrong.append((page.name, "loads", link))
                continue
            place = (page.parent / urllib.parse.unquote(url.path)).resolve() if url.path else page
            place = built / url.path.lstrip("/") if url.path.startswith("/") else place
            place = place / "index.html" if place.is_dir() else place
            fragment = urllib.parse.unquote(url.fragment)
            if not place.exists() or (place in found and fragment and fragment not in found[place].ids):
                wrong.append((page.name, "links to", link))
    assert not [each for each in wrong if each[0] != "404.html"]
    assert len(found) > 90


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the site is driven by playwright")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium is installed; apt-get install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(built: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(built))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: Any) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (390, "light"), (1280, "light"), (1280, "dark")])
def test_pages_fit_every_screen_without_an_error(
    width: int, scheme: str, browser: Any, address: str, built: Path
) -> None:
    names = sorted(str(page.relative_to(built)) for page in built.rglob("*.html") if page.parent.name != "boards")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(120_000)
    wrong: list[object] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda asked: None if asked.url.startswith((address, "data:", "blob:")) else wrong.append(asked.url)
    )
    for name in names[:: 3 if (width, scheme) == (390, "dark") else 16]:
        page.goto(f"{address}/{name}")
        if not page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"):
            wrong.append((name, "is wider than the screen"))
    page.goto(f"{address}/methods/eata.html")
    boxes = page.evaluate("[...document.querySelectorAll('math')].map(each => each.getBoundingClientRect().height)")
    assert len(boxes) > 5
    assert max(boxes) > 40, "fractions are drawn over one another"
    context.close()
    assert wrong == []


@pytest.mark.slow
def test_search_finds_a_method(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{address}/index.html")
    page.get_by_role("button", name="Search").first.click()
    dialog = page.get_by_role("dialog")
    box = (
        dialog.locator("input") if dialog.count() else page.locator("input:not([type=checkbox], [type=radio]):visible")
    )
    box.first.fill("entropy of opinions")
    page.get_by_text(re.compile(r"^[1-9]\d* results?$")).wait_for()
    page.keyboard.press("Enter")
    page.wait_for_url("**/methods/come_*")
    page.close()
