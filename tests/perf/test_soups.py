"""What mixing costs: seasoning against autograd through the mixture, and streaming soups against reading the files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.soups import mix
from methods.season import Mixture, neighbour_entropy

pytestmark = pytest.mark.slow


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vit = timm.create_model("vit_small_patch16_224", num_classes=0)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.vit(images)
        return out


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("ingredients")
    start = Small().state_dict()
    paths = []
    for number in range(16):
        generator = torch.Generator().manual_seed(number)
        paths.append(folder / f"{number}.safetensors")
        save_file({n: t + 1e-3 * torch.randn(t.shape, generator=generator) for n, t in start.items()}, paths[-1])
    return paths


def test_seasoning_against_autograd_through_the_mixture(files: list[Path], benchmark: BenchmarkFixture) -> None:
    """ViT-S, 8 ingredients mapped from files, batch 4: one step of each in turn, best of five."""
    torch.set_num_threads(1)
    handles = [safe_open(path, framework="pt") for path in files[:8]]
    ingredients = [{name: handle.get_tensor(name) for name in handle.keys()} for handle in handles]  # noqa: SIM118
    images = torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    ours, theirs = Small().eval(), Small().eval()
    mixture = Mixture(ours, ingredients)
    logits = torch.zeros(1, 8, dtype=torch.float64)

    def exact() -> Tensor:
        shares = logits.softmax(1)
        mixture.write(shares)
        slope = mixture.gradient(neighbour_entropy(ours(images)))
        return shares * (slope - (shares * slope).sum(1, keepdim=True))

    def through() -> Tensor:
        own = torch.zeros(8, requires_grad=True)
        shares = own.softmax(0)
        mixed = {name: sum(shares[i] * own[name] for i, own in enumerate(ingredients)) for name in ingredients[0]}
        loss = neighbour_entropy(torch.func.functional_call(theirs, mixed, (images,)))
        return torch.autograd.grad(loss, own)[0]

    def plain() -> None:
        neighbour_entropy(theirs(images)).backward()  # type: ignore[no-untyped-call]
        theirs.zero_grad(set_to_none=True)

    torch.testing.assert_close(exact()[0].float(), through(), rtol=5e-3, atol=1e-6)
    best = {function.__name__: seconds(function) for function in (exact, through, plain)}
    for _ in range(4):
        for function in (exact, through, plain):
            best[function.__name__] = min(best[function.__name__], seconds(function))
    ratio = best["through"] / best["exact"]
    overhead = best["exact"] / best["plain"] - 1
    benchmark.extra_info.update({"autograd over ours": ratio, "overhead over a plain step": overhead})
    benchmark.pedantic(exact, rounds=1)
    sys.stderr.write(f"\nseasoning step: {ratio:.2f}x faster than autograd, {overhead:.0%} over a plain step\n")
    assert ratio >= 1.6


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


_PEAK = """
import resource, sys
from pathlib import Path
from bench.soups import mix
mix([Path(p) for p in sys.argv[2:]], Path(sys.argv[1]), "uniform", None, (), False)
text = Path("/proc/self/status").read_text()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, [l for l in text.splitlines() if l.startswith("RssAnon")])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads anonymous memory from /proc")
def test_memory_does_not_grow_with_the_ingredients(files: list[Path], tmp_path: Path) -> None:
    """Peak anonymous memory of mixing 2 and 16 ViT-S; mapped pages of the files belong to the page cache."""
    peaks = {}
    for count in (2, 16):
        out = tmp_path / f"{count}.safetensors"
        peaks[count] = peak_anonymous([str(out), *map(str, files[:count])])
    sys.stderr.write(f"\npeak anonymous memory: {peaks} MB\n")
    assert peaks[16] <= 1.1 * peaks[2]


def peak_anonymous(arguments: list[str]) -> float:
    """Megabytes of anonymous memory at its highest, sampled while another process mixes."""
    process = subprocess.Popen([sys.executable, "-c", _PEAK, *arguments], stdout=subprocess.DEVNULL)
    highest = 0
    while process.poll() is None:
        try:
            text = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        found = [line.split()[1] for line in text.splitlines() if line.startswith("RssAnon")]
        highest = max(highest, *map(int, found), 0)
        time.sleep(0.005)
    assert process.wait() == 0
    return highest / 1024


def test_streaming_is_bound_by_reading(files: list[Path], tmp_path: Path, benchmark: BenchmarkFixture) -> None:
    """Seconds of a plain read of 16 files (cold, where the system lets us drop its cache) over those of the soup."""
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
