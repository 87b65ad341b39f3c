"""`bench doctor --gpu`: the CPU against itself, a device that computes otherwise, and a pretended GPU."""

from __future__ import annotations

import json
import math
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from host_waits import HostWaits
from torch import Tensor
from typer.testing import CliRunner

import bench.runs.device_check as checks
import corruptions
from bench.cli.main import app
from bench.core.errors import UsageError
from bench.core.import_object import load_object
from methods import METHODS
from methods.conformance import Case
from methods.example_models import example_images

SOME = "fog,jpeg,adapter tent,adapter deyo,objective mae,linear probe"


def doctor(*flags: str) -> Any:
    return CliRunner().invoke(app, ["doctor", "--gpu", "--device", "cpu", *flags])


def test_the_cpu_agrees_with_itself_and_the_report_can_be_pasted(tmp_path: Path) -> None:
    done = doctor("--only", SOME, "--out", str(tmp_path / "report.md"))
    assert done.exit_code == 0, done.output
    text = (tmp_path / "report.md").read_text()
    assert text in done.stdout
    rows = [line.split(" | ") for line in text.splitlines() if " | agrees | " in line]
    assert [row[0] for row in rows] == [
        "| corruption fog",
        "| corruption jpeg_compression",
        "| adapter tent",
        "| adapter deyo",
        "| objective mae",
        "| linear probe",
        "| linear probe, streamed",
    ]
    assert all(row[2] == "0" for row in rows)
    assert f"torch: {metadata.version('torch')}" in text
    home = Path(__file__).resolve()
    assert not any(part in text for part in (str(home.parents[3]), str(Path.home()), str(tmp_path)))


def test_rates_and_advice_are_in_the_report() -> None:
    done = doctor("--only", "throughput")
    assert "| training step (mae), fp32 |" in done.stdout
    assert "leave the options as they are" in done.stdout


def test_json_and_a_selection_of_nothing() -> None:
    found = json.loads(doctor("--only", "corruption fog", "--json").stdout)
    assert found["agrees"]
    assert [each["name"] for each in found["comparisons"]] == ["corruption fog"]
    assert isinstance(doctor("--only", "nonsense").exception, UsageError)
    assert isinstance(CliRunner().invoke(app, ["doctor", "--only", "fog"]).exception, UsageError)


def every_second_call_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = corruptions.corrupt, iter(range(100))
    changed = lambda *arguments, **more: real(*arguments, **more) ^ (8 if next(calls) % 2 else 0)  # noqa: E731
    monkeypatch.setattr(corruptions, "corrupt", changed)


@pytest.mark.parametrize("what", ["adapter tent", "objective mmcr", "corruption gaussian_noise"])
def test_a_device_that_computes_otherwise_differs(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, compare = next(each for each in checks._comparisons() if each[0] == what)
    kind = what.partition(" ")[0]
    own = {"adapter": "_answers", "objective": "_loss_and_slope"}.get(kind)
    if own is not None:
        real, calls = getattr(checks, own), iter(range(100))

        def other(*arguments: Any, **more: Any) -> Any:
            found, waits = real(*arguments, **more)
            return (found * 1.01 if next(calls) == 2 else found), waits

        monkeypatch.setattr(checks, own, other)
    else:
        every_second_call_differs(monkeypatch)
    found = checks._run(name, compare, torch.device("cpu"))
    assert found.verdict == "differs"


def test_a_difference_outside_its_tolerance_ends_with_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    every_second_call_differs(monkeypatch)
    assert doctor("--only", "corruption fog").exit_code == 1


def test_errors_and_numbers_that_are_not_finite_are_faults_and_name_no_folder() -> None:
    def broken(device: torch.device) -> Any:
        raise RuntimeError("no file /home/somebody/x.so | <b>here</b>\nsecond line")

    failed = checks._run("one", broken, torch.device("cpu"))
    lost = checks._run("two", lambda _: ("measure", math.nan, 1.0, 3), torch.device("cpu"))
    left = checks._run("three", lambda _: "nothing to compare", torch.device("cpu"))
    report = checks.DeviceReport("gpu <1>", {"torch": "2"}, (failed, lost, left), (), "", 1.0)
    assert not report.agrees
    assert [each.verdict for each in report.comparisons] == ["failed", "differs", "left out"]
    text = checks.to_markdown(report)
    assert "somebody" not in text
    assert "<b>" not in text
    assert "gpu &lt;1>" in text
    rows = [line for line in text.splitlines() if line.startswith(("| one", "| two", "| three"))]
    assert [line.replace("\\|", "").count("|") for line in rows] == [8, 8, 8]
    assert checks.DeviceReport("gpu", {}, (left,), (), "", 1.0).agrees


# Of those that draw, one that draws on the host, one on the device and one on both.
@pytest.mark.parametrize("name", ["tent", "deyo", "rmt", "cotta", "note"])
def test_a_pretended_gpu_draws_what_the_cpu_draws(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On it, host and device have generators of their own, so that plain draws would differ."""
    monkeypatch.setattr(checks, "_counted", lambda work, device: (work(), None))
    adapter = load_object(METHODS[name].path)
    case = Case(adapter, adapter.Config(**adapter.checked_with), "batch_norm")
    stream = example_images(3, 16).double()
    expected, _ = checks._answers(case, stream, torch.device("cpu"))
    with HostWaits():
        found, _ = checks._answers(case, stream, torch.device("cuda"))
    assert found.device.type == "cpu"
    assert torch.allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("name", ["mae", "lejepa"])
def test_objectives_on_a_pretended_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_counted", lambda work, device: (work(), None))
    expected, _ = checks._loss_and_slope(name, torch.device("cpu"))
    with HostWaits():
        found, _ = checks._loss_and_slope(name, torch.device("cuda"))
    assert torch.allclose(found, expected, atol=1e-5)


def test_random_numbers_are_those_of_the_cpu_for_every_kind_of_call() -> None:
    def draw(generator: torch.Generator) -> list[Tensor]:
        shares = torch.full((3, 4), 0.5)
        return [
            torch.rand(3, generator=generator, device=generator.device),
            torch.empty(4).normal_(0, 2, generator=generator),
            torch.bernoulli(shares, generator=generator),
            torch.multinomial(shares, 2, generator=generator),
            torch.nn.init.normal_(torch.empty(3), std=0.1, generator=generator),
            torch.randperm(5, generator=generator),
        ]

    expected = draw(torch.Generator().manual_seed(0))
    with checks.SameDraws(0):
        found = draw(torch.Generator().manual_seed(99))
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
