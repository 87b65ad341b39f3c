"""What mixing costs: seasoning against autograd through the mixture, and streaming soups against reading the files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from safetensors.torch import save_file

from bench.soups.mix_files import mix

pytestmark = pytest.mark.slow


_SMALL = """
import timm
import torch

def Small():
    torch.manual_seed(0)
    return timm.create_model("vit_small_patch16_224", num_classes=0)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("ingredients")
    torch.manual_seed(0)
    start = timm.create_model("vit_small_patch16_224", num_classes=0).state_dict()
    paths = []
    for number in range(16):
        generator = torch.Generator().manual_seed(number)
        paths.append(folder / f"{number}.safetensors")
        save_file({n: t + 1e-3 * torch.randn(t.shape, generator=generator) for n, t in start.items()}, paths[-1])
    return paths


_STEP = """
import sys, time
import torch
from safetensors import safe_open
from methods.soups.season import Mixture, neighbour_entropy
from tests_small import Small

torch.set_num_threads(1)
handles = [safe_open(path, framework="pt") for path in sys.argv[2:]]
ingredients = [{name: handle.get_tensor(name) for name in handle.keys()} for handle in handles]
images = torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
model = Small().eval()
logits = torch.zeros(1, len(handles), dtype=torch.float64)

def exact():
    shares = logits.softmax(1)
    mixture.write(shares)
    slope = mixture.gradient(neighbour_entropy(model(images)))
    return (shares * (slope - (shares * slope).sum(1, keepdim=True)))[0]

def through():
    own = torch.zeros(len(handles), requires_grad=True)
    shares = own.softmax(0)
    mixed = {name: sum(shares[i] * tensors[name] for i, tensors in enumerate(ingredients)) for name in ingredients[0]}
    loss = neighbour_entropy(torch.func.functional_call(model, mixed, (images,)))
    return torch.autograd.grad(loss, own)[0]

def plain():
    neighbour_entropy(model(images)).backward()
    model.zero_grad(set_to_none=True)
    return torch.zeros(len(handles))

if sys.argv[1] == "exact":
    mixture = Mixture(model, ingredients)
step = globals()[sys.argv[1]]
times = []
for _ in range(5):
    start = time.process_time()
    slope = step()
    times.append(time.process_time() - start)
print(min(times), *slope.tolist())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads anonymous memory from /proc")
def test_seasoning_against_autograd_through_the_mixture(files: list[Path], tmp_path: Path) -> None:
    """ViT-S, 8 ingredients mapped from files, batch 4, each way in a process of its own: best step and peak memory.

    On processors whose step is dominated by the forward and backward pass there is little time to win; what is won
    there is memory: autograd holds another model and the gradients of its tensors.
    """
    (tmp_path / "tests_small.py").write_text(_SMALL)
    found: dict[str, tuple[float, float, list[float]]] = {}
    for way in ("plain", "through", "exact", "plain", "through", "exact"):
        text, peak = peak_anonymous(_STEP, [way, *map(str, files[:8])], tmp_path)
        step, *slope = map(float, text.split())
        before = found.get(way, (step, peak, slope))
        found[way] = (min(step, before[0]), min(peak, before[1]), slope)
    assert found["exact"][2] == pytest.approx(found["through"][2], rel=5e-3, abs=1e-6)
    base = found["plain"][0]
    model = files[0].stat().st_size / 2**20
    extra = {way: found[way][1] - found["plain"][1] for way in ("through", "exact")}
    sys.stderr.write(
        f"\nseasoning step: {found['through'][0] / found['exact'][0]:.2f}x faster than autograd; over a plain step "
        f"{found['exact'][0] / base - 1:.0%} (autograd {found['through'][0] / base - 1:.0%}), memory "
        f"{extra['exact'] / model:+.2f} models (autograd {extra['through'] / model:+.2f})\n"
    )
    assert extra["exact"] <= 0.05 * model
    assert found["exact"][0] <= 1.1 * found["through"][0]


_MIX = """
import sys
from pathlib import Path
from bench.soups.mix_files import mix
mix([Path(p) for p in sys.argv[2:]], Path(sys.argv[1]), "uniform", None, (), False)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads anonymous memory from /proc")
def test_memory_does_not_grow_with_the_ingredients(files: list[Path], tmp_path: Path) -> None:
    """Peak anonymous memory of mixing 2 and 16 ViT-S; mapped pages of the files belong to the page cache."""
    peaks = {}
    for count in (2, 16):
        out = tmp_path / f"{count}.safetensors"
        _, peaks[count] = peak_anonymous(_MIX, [str(out), *map(str, files[:count])], tmp_path)
    sys.stderr.write(f"\npeak anonymous memory: {peaks} MB\n")
    assert peaks[16] <= 1.1 * peaks[2]


def peak_anonymous(code: str, arguments: list[str], folder: Path) -> tuple[str, float]:
    """What a process prints, and its anonymous memory in MB at its highest, sampled while it runs."""
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    highest = 0
    while process.poll() is None:
        text = Path(f"/proc/{process.pid}/status").read_text()
        highest = max([highest, *(int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon"))])
        time.sleep(0.005)
    assert process.returncode == 0
    assert process.stdout is not None
    return process.stdout.read(), highest / 1024


def test_streaming_is_bound_by_reading(files: list[Path], tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    """Seconds of a plain read of 16 files (cold, where the system lets us drop its cache) over those of the soup.

    The soup also hashes the files and writes one of its own.
    """
    torch.set_num_threads(1)

    def drop() -> None:
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def read() -> None:
        for path in files:
            with path.open("rb", buffering=0) as file:
                while file.read(2**22):
                    pass

    def soup() -> None:
        mix(files, tmp_path / "soup.safetensors", "uniform", None, (), False)

    shares = []
    for _ in range(3):
        times = []
        for function in (read, soup):
            drop()
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        shares.append(times[0] / times[1])
    benchmark.extra_info["share of a plain read"] = max(shares)
    benchmark.pedantic(soup, rounds=1)
    sys.stderr.write(f"\nsoup of 16 runs at {max(shares):.0%} of the speed of reading its files\n")
    assert max(shares) >= 0.5
