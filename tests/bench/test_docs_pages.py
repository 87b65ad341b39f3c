"""The pages in docs/: their files and commands work in order, their output is what is printed, their links resolve."""

from __future__ import annotations

import ast
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import quick_processes
from typer.testing import CliRunner

from bench.cli.main import app
from bench.core.errors import UsageError
from bench.settings.methods import parse_method
from bench.settings.run_spec import make_spec

HOME = Path(__file__).resolve().parents[2]
DOCS = HOME / "docs"
WORKED = ["add-an-adapter", "add-a-recipe", "add-a-shift", "add-a-corruption"]
PAGES = [*sorted(DOCS.glob("*.md")), *(HOME / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
_QUICK = ("--limit", "10", "--jobs", "1", "--set", "source.epochs=1")


def text_of(page: str) -> str:
    return (DOCS / f"{page}.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language that start at the margin, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def write_files(text: str, folder: Path) -> list[Path]:
    """Write each block that begins with `# file: NAME` to that file."""
    written = []
    for language in ("python", "toml"):
        for block in blocks(text, language):
            first, _, content = block.partition("\n")
            if first.startswith("# file: "):
                written.append(folder / first.removeprefix("# file: "))
                written[-1].write_text(content)
    return written


def commands(text: str) -> Iterator[list[str]]:
    for block in blocks(text, "sh"):
        for line in block.splitlines():
            yield shlex.split(line, comments=True)


def normal(line: str) -> str:
    """A line of output without its numbers, rules and widths, which differ between machines."""
    return " ".join(re.sub(r"-?\d+(\.\d+)?(e-?\d+)?|–", "#", line).split())


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the pages find the classifier that another page trained."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("page", WORKED)
def test_files_and_commands_of_a_page_are_sound(
    page: str, tmp_path: Path, shared_cache: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quick part: files are valid, every `bench run` names methods and settings that exist and runs small."""
    text = text_of(page)
    monkeypatch.setenv("SOUPBENCH_CACHE", str(shared_cache))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    files = write_files(text, tmp_path)
    assert any(file.suffix == ".py" for file in files)
    for file in files:
        if file.suffix == ".py":
            compile(file.read_text(), file.name, "exec")
    ran = 0
    for words in commands(text):
        if words[:2] != ["bench", "run"] or ran:
            assert words[0] == "bench" or words[:3] == ["python", "-m", "pytest"]
            continue
        result = CliRunner().invoke(app, [*words[1:], *_QUICK])
        assert result.exit_code == 0, (result.output, result.exception)
        ran += 1
    assert ran == 1


@pytest.mark.slow
@pytest.mark.parametrize("page", WORKED)
def test_a_page_can_be_followed_literally(page: str, tmp_path: Path) -> None:
    text = text_of(page)
    folder = tmp_path / "work"
    folder.mkdir()
    write_files(text, folder)
    environment = {**os.environ, "PYTHONPATH": str(HOME), "COLUMNS": "110", "OMP_NUM_THREADS": "1"}
    printed = ""
    for words in commands(text):
        program = [*(["-m", "bench"] if words[0] == "bench" else []), *words[1:]]
        done = quick_processes.run(program, cwd=folder, env=environment)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        printed += done.stdout + done.stderr
    lines = {normal(line) for line in printed.splitlines()}
    shown = [line for block in blocks(text, "text") for line in block.splitlines() if line.strip() not in ("", "…")]
    assert shown
    missing = [line for line in shown if normal(line) not in lines]
    assert not missing, (missing, sorted(lines))


@pytest.mark.parametrize("page", ["architecture", "identity", *WORKED])
def test_files_and_names_on_a_page_exist(page: str) -> None:
    """`path/to/file.py:Name.method` and `path/to/folder`, in code spans."""
    found = re.findall(r"`((?:bench|methods|corruptions|leaderboards|tests)/[\w/.-]+?)(?::([\w.]+))?`", text_of(page))
    later = {"methods/adapters/prior.py", "methods/recipes/two_rates.py", "bench/shifts/night.py"}
    later |= {"tests/methods/adapters/test_prior.py"}
    assert found
    for path, name in found:
        place = HOME / path
        assert place.exists() or path in later, path
        assert not name or name in names_in(place), f"{path}:{name}"


@cache
def names_in(file: Path) -> frozenset[str]:
    """Functions, classes, methods and assigned names of a file; methods as Class.method."""
    names: set[str] = set()

    def collect(body: list[ast.stmt], before: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(before + node.name)
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{before}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            names.update(before + target.id for target in targets if isinstance(target, ast.Name))

    collect(ast.parse(file.read_text()).body, "")
    return frozenset(names)


def anchor_of(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", place.read_text(), re.M)
            assert anchor in map(anchor_of, headings), f"{page.name} links to {target}"


def test_the_life_of_a_run_starts_with_a_command_that_exists() -> None:
    line = re.search(r"^`bench run (--method \S+ --shift \S+)`, hop by hop", text_of("architecture"), re.M)
    assert line is not None
    _, method, _, shift = line[1].split()
    assert make_spec({"method": method, "shift": shift}).severity == (5.0,)
    assert parse_method(method).recipe.name == "source"
    with pytest.raises(UsageError):
        parse_method(f"{method}-")


def test_the_layers_are_those_that_are_checked() -> None:
    """The picture of the rooms against the contracts of import-linter."""
    contracts = tomllib.loads((HOME / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    picture = blocks(text_of("architecture"), "text")[0].splitlines()
    columns = {
        "bench": [line[:48] for line in picture if "│" not in line],
        "methods": [line[48:] for line in picture],
    }
    for package, lines in columns.items():
        layers = next(c["layers"] for c in contracts if c.get("containers") == [package])
        drawn = [re.findall(r"\w+", line) for line in lines if line.startswith("  ") and line.strip()]
        wanted = [sorted(re.findall(r"\w+", layer)) for layer in layers]
        assert [sorted(words) for words in drawn[: len(layers)]] == wanted
