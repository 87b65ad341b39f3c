"""Reproduction cards against the releases: published numbers from their tables, settings from their configurations.

`SOUPBENCH_OFFICIAL` names a folder with checkouts, each under its repository's own name.
"""

from __future__ import annotations

import ast
import math
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.settings.reproductions import find_card
from leaderboards.reference import reference_rows

ZOO = "test-time-adaptation/classification"


@cache
def text(path: str) -> str:
    folder = os.environ.get("SOUPBENCH_OFFICIAL")
    file = Path(folder or "") / path
    if folder is None or not file.is_file():
        pytest.skip(f"SOUPBENCH_OFFICIAL names no folder with {path}")
    return file.read_text()


def options(card: str, method: str) -> dict[str, Any]:
    found: dict[str, Any] = find_card(card).run["set"][method]
    return found


def numbers(card: str) -> dict[str, float]:
    return {number.row: number.value for number in find_card(card).published}


def tables(page: str) -> list[list[list[str]]]:
    """The tables of a Markdown text, as rows of cells without marks and links."""
    found: list[list[list[str]]] = [[]]
    for line in page.splitlines():
        if not line.startswith("|"):
            found.append([])
            continue
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line).replace("*", "").replace("&plusmn;", " ± ")
        found[-1].append([cell.strip() for cell in plain.strip().strip("|").split("|")])
    return [table for table in found if table]


def zoo_row(setting: str, data: str, architecture: str) -> dict[str, float]:
    """Errors by method in the zoo's benchmark.md, and under "METHOD±" the spread where it is printed."""
    page = text(f"{ZOO}/benchmark.md")
    part = page[page.index(f"## {setting}\n") :]
    (first, *_) = tables(part[part.index(f"#### {data}") :])
    row = next(row for row in first if row[0] == architecture)
    found = {}
    for name, cell in zip(first[0], row, strict=True):
        value, _, spread = cell.partition("±")
        if name != "Architecture" and value.strip() != "-":
            found[name] = float(value)
            found |= {f"{name}±": float(spread)} if spread else {}
    return found


NAMES = {"source": "Source", "bn": "BN-1", "tent": "TENT", "eata": "EATA", "cotta": "CoTTA", "rotta": "RoTTA"}
NAMES |= {"roid": "ROID"}


@pytest.mark.parametrize(
    ("card", "setting", "data", "architecture"),
    [
        *(
            (f"{method}-cifar10-c{end}", "Continual", "CIFAR10-C", "WRN-28")
            for method, end in (("tent", "-continual"), ("eata", ""), ("cotta", ""), ("rotta", ""), ("roid", ""))
        ),
        ("roid-cifar10-c-mixed", "Mixed domains", "CIFAR10-C", "WRN-28"),
        *((f"{method}-imagenet-c", "Continual", "ImageNet-C", "ResNet-50") for method in ("cotta", "rotta", "roid")),
        ("roid-imagenet-c-vit", "Continual", "ImageNet-C", "ViT-b-16"),
        ("roid-imagenet-c-mixed", "Mixed domains", "ImageNet-C", "ResNet-50"),
        ("roid-imagenet-c-correlated", "Correlated", "ImageNet-C", "ViT-b-16"),
    ],
)
def test_numbers_of_the_zoo(card: str, setting: str, data: str, architecture: str) -> None:
    row = zoo_row(setting, data, architecture)
    for number in find_card(card).published:
        assert number.error == row[NAMES[number.method]]
        spread = row.get(f"{NAMES[number.method]}±")
        if spread is not None:  # three times it, and rounding, to the next tenth
            assert number.tolerance >= 3 * spread + 0.05 - 1e-9
            assert number.tolerance <= 3 * spread + 0.2


def zoo_settings(file: str) -> dict[str, Any]:
    """A configuration of the zoo over the defaults of conf.py, with keys such as OPTIM.LR."""
    found: dict[str, Any] = {}
    for name, value in re.findall(r"^_C\.([A-Z_.0-9]+) = (.+?)(?:\s+#.*)?$", text(f"{ZOO}/conf.py"), re.M):
        if "CfgNode" not in value and "clone" not in value and "[" not in value and "/" not in value:
            found[name] = ast.literal_eval(value)
    for section, values in yaml.safe_load(text(f"{ZOO}/cfgs/{file}.yaml")).items():
        found |= {f"{section}.{key}": value for key, value in values.items()}
    return found


def same(ours: Any, theirs: Any) -> bool:
    return math.isclose(ours, float(theirs), rel_tol=1e-12)


@pytest.mark.parametrize(
    ("card", "method", "file"),
    [
        ("tent-cifar10-c-continual", "tent", "cifar10_c/tent"),
        ("eata-cifar10-c", "eata", "cifar10_c/eata"),
        ("cotta-cifar10-c", "cotta", "cifar10_c/cotta"),
        ("rotta-cifar10-c", "rotta", "cifar10_c/rotta"),
        ("roid-cifar10-c", "roid", "cifar10_c/roid"),
        ("roid-cifar10-c-mixed", "roid", "cifar10_c/roid"),
        ("cotta-imagenet-c", "cotta", "imagenet_c/cotta"),
        ("rotta-imagenet-c", "rotta", "imagenet_c/rotta"),
        ("roid-imagenet-c", "roid", "imagenet_c/roid"),
        ("roid-imagenet-c-vit", "roid", "imagenet_c/roid"),
        ("roid-imagenet-c-mixed", "roid", "imagenet_c/roid"),
        ("roid-imagenet-c-correlated", "roid", "imagenet_c/roid"),
    ],
)
def test_settings_of_the_zoo(card: str, method: str, file: str) -> None:
    theirs, run, ours = zoo_settings(file), find_card(card).run, options(card, method)
    assert run["batch_size"] == theirs["TEST.BATCH_SIZE"]
    assert run["severity"] == theirs["CORRUPTION.SEVERITY"][0]
    assert ours["optimizer"] == theirs["OPTIM.METHOD"].lower()
    if ours["optimizer"] == "sgd":
        assert ours["nesterov"] == theirs["OPTIM.NESTEROV"]
    places = {
        "lr": "OPTIM.LR",
        "momentum": "OPTIM.MOMENTUM" if ours["optimizer"] == "sgd" else "OPTIM.BETA",
        "steps": "OPTIM.STEPS",
        "margin": "EATA.MARGIN_E0",
        "epsilon": "EATA.D_MARGIN",
        "beta": "EATA.FISHER_ALPHA",
        "fisher_images": "SOURCE.NUM_SAMPLES",
        "teacher_momentum": "M_TEACHER.MOMENTUM",
        "restore": "COTTA.RST",
        "threshold": "COTTA.AP",
        "views": "TEST.N_AUGMENTATIONS",
        "capacity": "ROTTA.MEMORY_SIZE",
        "update_every": "ROTTA.UPDATE_FREQUENCY",
        "teacher_share": "ROTTA.NU",
        "statistics_share": "ROTTA.ALPHA",
        "age_weight": "ROTTA.LAMBDA_T",
        "entropy_weight": "ROTTA.LAMBDA_U",
    }
    for option, value in ours.items():
        if option in places:
            assert same(value, theirs[places[option]]), option
    if method == "roid":
        assert same(1 - ours["source_share"], theirs["ROID.MOMENTUM_SRC"])
    assert set(ours) - set(places) <= {"optimizer", "nesterov", "source_share", "symmetric"}
    if method == "cotta":  # both cross-entropies for ImageNet alone
        assert ours["symmetric"] == (theirs["CORRUPTION.DATASET"] == "imagenet_c")
        assert 'softmax_entropy_cifar if "cifar" in self.dataset_name' in text(f"{ZOO}/methods/cotta.py")
    if theirs["MODEL.ARCH"] == "Standard":
        assert run["model"].endswith("/Standard")
    else:
        assert run["model"].endswith("." + theirs["MODEL.WEIGHTS"])


@pytest.mark.parametrize(("card", "place"), [("tent-cifar10-c", 0), ("tent-cifar10-c-augmix", 1)])
def test_tent_s_example(card: str, place: int) -> None:
    table = tables(text("tent/README.md"))[place]
    names = {"source": "source", "bn": "norm", "tent": "tent"}
    for number in find_card(card).published:
        row = next(row for row in table[2:] if row[0].split()[0] == names[number.method])
        assert [number.error, *number.each] == [float(cell) for cell in row[1:]]
    theirs = yaml.safe_load(text("tent/cfgs/tent.yaml"))
    ours, run = options(card, "tent"), find_card(card).run
    assert (ours["optimizer"], ours["steps"]) == (theirs["OPTIM"]["METHOD"].lower(), theirs["OPTIM"]["STEPS"])
    assert same(ours["lr"], theirs["OPTIM"]["LR"])
    assert same(ours["momentum"], theirs["OPTIM"]["BETA"])
    assert run["batch_size"] == theirs["TEST"]["BATCH_SIZE"]
    assert run["model"].endswith(f"/{[theirs['MODEL']['ARCH'], 'Hendrycks2020AugMix_WRN'][place]}")


def argument(script: str, name: str) -> float:
    """The default of an argument of a script; margins are fractions of ln C here, so math.log(1000) counts as 1."""
    for call in ast.walk(ast.parse(text(script))):
        if isinstance(call, ast.Call) and call.args and ast.unparse(call.args[0]) == f"'--{name}'":
            (default,) = (keyword.value for keyword in call.keywords if keyword.arg == "default")
            factors = ast.unparse(default).replace("math.log(1000)", "1").split("*")
            return math.prod(map(float, factors))
    raise AssertionError(f"{script} has no argument {name}")


def test_eata_s_results() -> None:
    table = tables(text("EATA/README.md"))[0]
    rows = {"source": "R-50 (BN)", "tent": "+Tent 🔗", "eta": "+ETA (ours)", "eata": "+EATA (ours)"}
    for card in ("tent-imagenet-c", "eta-imagenet-c", "eata-imagenet-c"):
        for number in find_card(card).published:
            row = next(row for row in table if row[0] == rows[number.method])
            assert list(number.each) == [float(cell) for cell in row[1:16]]
    script = "EATA/main.py"
    assert text(script).count("torch.optim.SGD(params, 0.00025, momentum=0.9)") == 3
    for card, method in (("tent-imagenet-c", "tent"), ("eta-imagenet-c", "eta"), ("eata-imagenet-c", "eata")):
        ours = options(card, method)
        assert (ours["lr"], ours["momentum"], ours["optimizer"]) == (0.00025, 0.9, "sgd")
        assert find_card(card).run["batch_size"] == argument(script, "batch_size")
    ours = options("eata-imagenet-c", "eata")
    theirs = {"margin": "e_margin", "epsilon": "d_margin", "beta": "fisher_alpha", "fisher_images": "fisher_size"}
    assert {key: argument(script, name) for key, name in theirs.items()} == {key: ours[key] for key in theirs}


def test_sar_and_deyo_in_the_mild_setting() -> None:
    """Both take 2.5e-4 for a ResNet-50 with BatchNorm at batch 64."""
    for script in ("SAR/main.py", "DeYO/main.py"):
        assert "(0.00025 / 64) * bs * 2 if bs < 32 else 0.00025" in text(script)
    sar, deyo = options("sar-imagenet-c", "sar"), options("deyo-imagenet-c", "deyo")
    assert sar["lr"] == deyo["lr"] == 0.00025
    assert find_card("sar-imagenet-c").run["batch_size"] == argument("SAR/main.py", "test_batch_size")
    assert sar["margin"] == argument("SAR/main.py", "sar_margin_e0")
    assert f"rho={sar['rho']}" in text("SAR/sam.py")
    assert f"ema < {sar['reset_below']}" in text("SAR/sar.py")
    mild = text("DeYO/exp_deyo.sh").partition("#### Wild")[0]
    theirs = {name: float(value) for name, value in re.findall(r"^(ETHR|EMAR|DTHR)=(.+)$", mild, re.M)}
    assert theirs == {"ETHR": deyo["margin"], "EMAR": deyo["weight_margin"], "DTHR": deyo["plpd"]}
    assert deyo["patches"] == argument("DeYO/config.py", "patch_len")


def test_foa_s_results() -> None:
    table = next(table for table in tables(text("FOA/README.md")) if table[2][0] == "NoAdapt")
    theirs = {row[0]: float(row[1].partition("/")[0]) for row in table[2:]}
    rows = {"source": "NoAdapt", "tent": "Tent", "sar": "SAR", "cotta": "CoTTA"}
    script = text("FOA/main.py")
    for card in ("tent-imagenet-c-vit", "sar-imagenet-c-vit", "cotta-imagenet-c-vit"):
        assert numbers(card) == {name: theirs[rows[name]] for name in numbers(card)}
        assert find_card(card).run["batch_size"] == argument("FOA/main.py", "batch_size")
    assert "torch.optim.SGD(params, 0.001, momentum=0.9)" in script
    assert "SAM(params, base_optimizer, lr=0.001, momentum=0.9)" in script
    cotta, sar = options("cotta-imagenet-c-vit", "cotta"), options("sar-imagenet-c-vit", "sar")
    assert f"torch.optim.SGD(params, lr={cotta['lr']}, momentum=0.9)" in script
    assert options("tent-imagenet-c-vit", "tent")["lr"] == sar["lr"] == 0.001
    assert sar["margin"] == argument("FOA/main.py", "margin_e0")
    assert f"ema < {sar['reset_below']}" in text("FOA/tta_library/sar.py")
    library = text("FOA/tta_library/cotta.py")
    assert f"anchor_prob.mean(0)<{cotta['threshold']}" in library
    assert f"alpha_teacher={cotta['teacher_momentum']}" in library
    assert f"(torch.rand(p.shape)<{cotta['restore']})" in library
    assert f"N = {cotta['views']}" in library
    assert "timm==0.9.10" in text("FOA/README.md")
    assert "mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]" in text("FOA/dataset/selectedRotateImageFolder.py")


def test_the_tables_of_the_zoo_are_published_whole() -> None:
    shifts = {"CIFAR10-C": "cifar10-c", "CIFAR100-C": "cifar100-c", "ImageNet-C": "imagenet-c"}
    shifts |= {"ImageNet-R": "imagenet-r", "ImageNet-Sketch": "imagenet-sketch"}
    models = {"WRN-28": "wrn28-10", "ResNext-29": "resnext29", "ResNet-50": "resnet50", "RN-26 GN": "resnet26-gn"}
    models |= {"Swin-b": "swin-b", "ViT-b-16": "vit-b-16"}
    expected = {}
    for section in text(f"{ZOO}/benchmark.md").split("\n## ")[2:]:
        setting = section.partition("\n")[0].strip()
        protocol = setting.lower().replace(", ", "_").replace(" ", "_")
        for part in section.split("\n#### ")[1:]:
            data = part.split()[0]
            for architecture in [row[0] for row in tables(part)[0][2:] if data in shifts]:
                row = zoo_row(setting, data, architecture)
                named = {name.replace("AdaCont.", "AdaContrast"): row[name] for name in row if "±" not in name}
                place = (shifts[data], models[architecture], protocol)
                expected |= {(*place, method): error for method, error in named.items()}
    found = {
        (row.shift, row.model, row.protocol, row.method): round(100 - 100 * row.accuracy, 4)
        for row in reference_rows()
        if "mariodoebler" in row.url
    }
    assert found == expected
    assert len({key[:3] for key in found}) == 25
