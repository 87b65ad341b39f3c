"""Every command and block of code in the documentation is run in a fresh process, or named here with a reason.

Commands are run on small stand-ins: a run of three methods on a few images, and the results that are shipped. A page
with a command that no rule knows fails.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import quick_processes

HOME = Path(__file__).resolve().parents[2]
PAGES = [HOME / "README.md", HOME / "CONTRIBUTING.md", HOME / "leaderboards" / "results" / "README.md"]
PAGES += sorted((HOME / "docs").glob("**/*.md"))
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.S | re.M)


@dataclass(frozen=True)
class Run:
    """How a command is run: words replaced by stand-ins, words added to make it small."""

    more: str = ""
    standins: tuple[tuple[str, str], ...] = ()
    slow: bool = False


@dataclass(frozen=True)
class Not:
    """Why a command is not run here."""

    why: str


_SMALL = "--limit 10 --jobs 1 --set source.epochs=1"
_FIELD = str(HOME / "leaderboards" / "results" / "digits-c-field.jsonl")
_IMAGENET = Not("needs ImageNet or its corrupted copies")
_NETWORK = Not("downloads weights")
_WORKED = Not("followed word by word in tests/bench/test_docs_pages.py")
_HOURS = Not("trains for hours; its run file is read in tests/bench/test_readme.py")

# The first rule whose pattern is found in a command decides.
RULES: list[tuple[str, Run | Not]] = [
    (r"runs/paper-\S+-small", Not("takes minutes; tests/e2e/test_paper_small.py runs it")),
    (r"runs/paper-", Not("trains for days; tests/bench/planning/test_paper_files.py plans it")),
    (r"transfer-small|transfer-cifar10|transfer-fashion", Not("trains for hours; test_paper_files.py plans it")),
    (
        r"^make |^git clone|^python -m build",
        Not("tests/e2e and continuous integration run the targets of the Makefile"),
    ),
    (r"^(pip|uv) ", Not("installs from the network; tests/leaderboards/test_bare.py runs without what is not listed")),
    (r"scratches|two_rates|night|prior|runs/two|vignette", _WORKED),
    (r"runs/first", Not("followed word by word in tests/bench/test_docs_site.py")),
    (r"^python -m pytest -q tests/methods/official", Not("is a test file of its own")),
    (r"^bench show reproduction", Run()),
    (r"^bench reproduce$", Run()),
    (r"^bench reproduce", Not("needs published data; tests/bench/runs/test_reproduction.py runs it on small copies")),
    (r"^bench published|^bench (leaderboard|compare) .*docs/results/", Run()),
    (r"photographs", Not("needs ImageNet's pictures and the extra lite")),
    (r"imagenet-|laion-c|openclip:|folder:", _IMAGENET),
    (r"--stock timm:|--model (timm|hf|lite|robustbench|torchvision):|--shift S --model", _NETWORK),
    (r"cifar10|photos|mine\.py", Not("needs CIFAR-10 or pictures of the reader's own")),
    (r"^(for|export) |--grid|selfsoup\.ingredients=", Not("part of a script for CIFAR-10")),
    (r"^bench tune", Not("tries options for minutes; tests/bench/runs/test_tuning.py runs it")),
    (r"^bench stock", Not("trains a stock for minutes; tests/bench/training runs it")),
    (r"^bench train", Run("--epochs 1 --limit 40", slow=True)),
    (r"^bench soup", Not("needs checkpoints of the reader's own; tests/bench/soups runs it")),
    (r"^bench new|^bench check (method|shift) FILE", Not("tests/bench/extending runs it")),
    (r"FILE --with-baselines|--init-from R|bench run FILE|mae_probe|shot_pool|prime,selfsoup", _HOURS),
    (r"continued_ssl|selfsoup_clean|supervised_soup \(soup:best\)|selfsoup_single|shot_im_pool\" ?--from R", _HOURS),
    (r"selfsoup \(soup\)\" (shot_im_pool|\"selfsoup_diverse_clean)", _HOURS),
    (r"doctor --gpu", Not("needs a GPU; tests/bench/runs/test_device_check.py runs it on a CPU")),
    (r"^bench run --demo", Not("tests/e2e/test_demo.py runs it")),
    (r"infomax\.py", Not("tests/bench/test_readme.py runs it")),
    (r"^bench run --record KEY", Not("tests/e2e/test_headline.py repeats records")),
    (r"--spread images", Run()),
    (r"--across-stocks", Not("needs records of two stocks; tests/leaderboards/test_nested_designs.py makes some")),
    (r"--design", Not("has names for any two methods; tests/leaderboards/test_design.py runs it")),
    (r"stock1\.safetensors", Not("needs a second stock, which takes minutes to train")),
    (r"--head (knn|probe)", Run("--limit 10 --jobs 1 --corruption fog --set selfsoup.steps=2", slow=True)),
    (
        r"with-baselines --seeds 3|shot_im,selfsoup|--label-draws|continual|runs/digits-c",
        Run("--dry-run --jobs 1", slow=True),
    ),
    (r"^bench run --method tent --shift digits-c", Run(_SMALL, slow=True)),
    (r"^bench (leaderboard --out site/|data (clean|fetch|export))", Run("--help")),
    (r"^bench results R.* --watch|^bench results runs/A --watch", Run("--json")),
    (
        r"^bench publish (push|pull)|--from hf:",
        Not("reads or writes the hub; tests/leaderboards/test_publish.py runs it"),
    ),
    (r"^bench publish known|--known FILE", Not("needs a shift's images; tests/e2e/test_publish.py runs it")),
    (r"^bench publish card", Run()),
    (r"^bench publish bundle (RUN|runs/mine)", Not("tests/leaderboards/test_publish.py bundles a run")),
    (r"^bench publish check|^bench publish settings|NAME\.jsonl", Run()),
    (r"^bench compare \"selfsoup \(soup\)\" \"selfsoup \(mean\)\"", Run()),
    (r"^bench compare", Run()),
    (r"^bench (list|show|cite|doctor|verify|leaderboard|results|data|gallery|compare)", Run()),
]
_STANDINS = {
    "NAME.jsonl": _FIELD,
    "leaderboards/results/NAME.jsonl": _FIELD,
    "digits-c-mine.jsonl": _FIELD,
    "FILE": _FIELD,
    "METHOD...": "tent",
    "R": "runs/A",
    "DIR": "runs/A",
    "/shared/runs/paper": "runs/A",
    "NAME": "fog",
    "--watch": "",
    "(mean)": "(mean)",
}


def blocks(page: Path, language: str) -> list[str]:
    return [textwrap.dedent(text) for _, name, text in _FENCE.findall(page.read_text()) if name == language]


def commands(page: Path) -> Iterator[str]:
    """The lines of shell blocks, and code spans that begin with `bench` and say more than a command's name."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if command := re.sub(r"\s+#.*", "", line).strip():
                yield re.sub(r"\s+", " ", command)
    rest = _FENCE.sub("", page.read_text())
    for span in re.findall(r"`(bench [^`]+)`", rest):
        words = span.split()
        if (
            len(words) > 2
            and "…" not in span
            and not re.fullmatch(r"bench (data|publish|soup|stock|train|new|check) [a-z]+", span)
        ):
            yield re.sub(r"\s+", " ", span)


def rule(command: str) -> Run | Not:
    for pattern, how in RULES:
        if re.search(pattern, command):
            return how
    pytest.fail(f"no rule for `{command}`; run it here, or say why that cannot be")


FOUND = sorted({(str(page.relative_to(HOME)), command) for page in PAGES for command in commands(page)})
RUNS = list(dict.fromkeys(command for _, command in FOUND if any(re.search(p, command) for p, _ in RULES)))


@pytest.mark.parametrize(("page", "command"), FOUND)
def test_every_command_has_a_rule(page: str, command: str) -> None:
    assert isinstance(rule(command), Run | Not)


def test_a_command_that_nobody_knows_fails() -> None:
    with pytest.raises(pytest.fail.Exception, match="no rule for `bench unheard of`"):
        rule("bench unheard of")


def test_every_rule_is_used() -> None:
    used = {next(p for p, _ in RULES if re.search(p, command)) for _, command in FOUND if command in RUNS}
    assert {pattern for pattern, _ in RULES} - used == set()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stand-ins: runs/A and runs/B, and the run files of the project."""
    made = tmp_path_factory.mktemp("reader")
    shutil.copytree(HOME / "runs", made / "runs")
    small = f"{_SMALL} --set selfsoup.epochs=1 --set selfsoup.steps=2 --corruption fog,contrast"
    run(f"run --method source,tent,selfsoup --shift digits-c {small} --out runs/A", made)
    shutil.copytree(made / "runs" / "A", made / "runs" / "B")
    return made


def run(words: str, folder: Path) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(HOME),
        "OMP_NUM_THREADS": "1",
        "SOUPBENCH_CACHE": str(folder / "cache"),
    }
    done = quick_processes.run(["-m", "bench", *shlex.split(words)], cwd=folder, env=environment)
    assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


def needs_a_run(command: str) -> bool:
    return "runs/" in command or not {"R", "DIR"}.isdisjoint(command.split())


def marked(command: str) -> Any:
    """What reads results is quick; what makes a run is slow."""
    how = rule(command)
    assert isinstance(how, Run)
    own = how.slow or needs_a_run(command) or re.search(r"gallery|list|show|doctor", command)
    return pytest.param(command, marks=pytest.mark.slow if own else ())


@pytest.mark.parametrize("command", [marked(command) for command in RUNS if isinstance(rule(command), Run)])
def test_a_command_of_the_documentation_runs(command: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    how = rule(command)
    assert isinstance(how, Run)
    folder = request.getfixturevalue("folder") if needs_a_run(command) else tmp_path
    if folder == tmp_path:
        shutil.copytree(HOME / "runs", folder / "runs")
    named = command.replace("show method NAME", "show method tent")
    words = [_STANDINS.get(word, word) for word in shlex.split(named)[1:]]
    if words[:2] == ["leaderboard", "--from"] and words[2].startswith(("leaderboards/", "docs/")):
        words[2] = str(HOME / words[2])
    words = [re.sub(r"(^|,)(?=docs/results/)", rf"\1{HOME}/", word) for word in words if word]
    run(f"{shlex.join(words)} {how.more}", folder)


@pytest.mark.slow
def test_examples_in_python_run(folder: Path) -> None:
    """Scripts as a reader would save them, without a guard."""
    before = {
        "import corruptions": "import torch\nimages, ids = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), [0, 1]\n",
    }
    examples = {
        start: text for start in before for text in blocks(HOME / "README.md", "python") if text.startswith(start)
    }
    assert examples.keys() == before.keys()
    for number, (start, text) in enumerate(examples.items()):
        script = folder / f"example{number}.py"
        script.write_text(
            before[start]
            + text.replace('out="runs/mine"', 'out="runs/mine", limit=10, options={"source": {"epochs": 1}}')
        )
        environment = {**os.environ, "PYTHONPATH": str(HOME), "SOUPBENCH_CACHE": str(folder / "cache")}
        done = subprocess.run(
            [sys.executable, script.name], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (text, done.stderr)
        assert not re.search(r"^None|nan", done.stdout, re.M), done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_and_toml_are_valid(page: Path) -> None:
    import tomllib

    for text in blocks(page, "python"):
        try:
            compile(text, page.name, "exec")
        except SyntaxError:  # a line of a table in the code
            compile("{" + text + "}", page.name, "exec")
    for text in blocks(page, "toml"):
        tomllib.loads(text)
