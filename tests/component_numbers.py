"""What each component gives on a small fixed input, as a few numbers, and the files that hold them beside versions.

`python tests/component_numbers.py` (`make components`) writes the lock file and tests/golden/components.json anew. It
refuses where the numbers of a component changed and its version did not.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    # As in the tests: the kernels that every processor of the last ten years has, on one thread.
    os.environ["ATEN_CPU_CAPABILITY"] = "avx2"
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.core.components import all_components, component_of, identity, write_lock
from bench.core.conditions import CLEAN, Condition
from bench.core.import_object import load_object
from bench.data.decode import Preprocessing
from bench.evaluation.protocols import parse_protocol, plan_stream
from bench.shifts import load_shift
from bench.shifts.shift import labelled_source, limit_ids, split_ids
from bench.training.job_cache import all_jobs, draw_key, types_of
from corruptions import corrupt, profile_for
from methods import METHODS, PLAIN
from methods.base import Job, Labelled, Unlabelled
from methods.conformance import Case, play
from methods.example_models import example_images, example_model, examples_for
from methods.identity import declared
from methods.losses import entropy, marginal_entropy
from methods.nets.small_resnets import SmallResNet
from methods.nets.timm_encoders import TimmArchitecture
from methods.nets.weights import Architecture, Classifier, Weights
from methods.selfsoup.mixing_options import CONNECTIVITY
from methods.selfsoup.pretraining import Pretraining, pretrain
from methods.training.supervised import Supervised, train_classifier
from methods.views.ssl_views import Views

FILE = Path(__file__).resolve().parent / "golden" / "components.json"
TOLERANCE = 1e-3
# Components whose numbers come of a training, which amplifies rounding.
TRAININGS = ("method:", "methods.")

Numbers = list[float]


def numbers_of(name: str) -> Numbers:
    """What a component gives on its fixed input."""
    kind, _, rest = name.partition(":")
    match kind:
        case "corruption":
            return _of_corruption(rest)
        case "method":
            row = PLAIN if rest == PLAIN.name else METHODS[rest]
            return _of_adapter(row.path) if row.kind == "adapter" else _of_plans()[0][rest]
        case "harness":
            return _of_harness()
        case "decoder":
            return _of_decoder()
        case "library":
            return _of_library()
    found = {**_of_plans()[1], **_of_things()}
    return found[name] if name in found else _of_dear_plans()[name]


def quick_names() -> set[str]:
    """Functions and classes of options whose numbers need no dear training."""
    return {*_of_things(), *_of_plans()[1]}


def _summary(values: Tensor) -> Numbers:
    """Mean, deviation and a few values of a tensor."""
    flat = values.detach().double().flatten()
    picked = flat[torch.linspace(0, len(flat) - 1, 6).long()]
    return [float(flat.mean()), float(flat.std(correction=0)), *picked.tolist()]


def _picture(side: int) -> Tensor:
    """Two smooth colour pictures with edges, uint8 [2, 3, side, side], the same wherever they are made."""
    y, x = np.mgrid[0:side, 0:side] / side
    channels = [128 + 90 * np.sin(7 * x + 3 * k * y + k) + 37 * ((x + y + k / 3) % 0.5 > 0.25) for k in range(6)]
    return torch.from_numpy(np.clip(np.round(channels), 0, 255).astype(np.uint8).reshape(2, 3, side, side))


def _of_corruption(name: str) -> Numbers:
    found: Numbers = []
    for side in (32, 64):
        for severity in (1, 2.5, 5):
            made = corrupt(_picture(side), name, severity, ids=[3, 8], profile=profile_for(side, side)).float() / 255
            found += torch.nn.functional.adaptive_avg_pool2d(made, 2).flatten().tolist()
    return found


def _of_adapter(path: str) -> Numbers:
    cls = load_object(path)
    config = cls.Config(**cls.checked_with) if hasattr(cls, "checked_with") else cls.Config()
    found: Numbers = []
    for model in examples_for(getattr(cls, "needs", None)):
        if len(found) >= 16:
            break
        if cls.supports(example_model(model), config, _source(cls, model))[0]:
            case = Case(cls, config, model)
            found += _summary(play(case.build(), case.stream).softmax(1))
    return found


def _source(cls: Any, model: str) -> Any:
    from methods.conformance import source_for as source_of

    return source_of(cls, next(example_model(model).parameters()))


_TINY = Architecture(image_size=16, patch_size=4, dim=16, depth=2, heads=2, decoder_dim=16, decoder_heads=2)


@cache
def _stock() -> Weights:
    generator = torch.Generator().manual_seed(5)
    images = Unlabelled(example_pictures(40), "stock images")
    return pretrain((), images, Pretraining(_TINY, steps=4, batch_size=16, lr=1e-3), generator)


_RESNET = TimmArchitecture("resnet10t", 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 16)


@cache
def _network() -> Weights:
    network = _RESNET.initial(torch.Generator().manual_seed(5))
    return Weights(_RESNET, {f"encoder.{name}": tensor for name, tensor in network.state_dict().items()})


def example_pictures(count: int) -> Tensor:
    """Pictures uint8 [count, 3, 16, 16] that differ."""
    rows = torch.arange(count).view(-1, 1, 1, 1)
    y, x = torch.arange(16).view(1, 1, -1, 1), torch.arange(16).view(1, 1, 1, -1)
    channel = torch.arange(3).view(1, -1, 1, 1)
    return ((x * (1 + rows % 5) * 9 + y * (1 + rows % 3) * 7 + channel * 40 + rows * 13) % 256).to(torch.uint8)


def _source_images() -> Labelled:
    return Labelled(example_pictures(40), "source", torch.arange(40) % 4, 4)


_SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 8}
_SOUP: dict[str, Any] = {**_SHORT, "steps": 2, "batch": 8}
_CHOOSING = ("greedy", "best", "learned:epochs=2:batch_size=4", "ensemble", "fisher")
_MIXES = ("uniform", "wise", "model_stock", "task_arithmetic", "ties", *_CHOOSING, "shares:2:1")


Plans = Iterator[tuple[str | None, dict[str, Job]]]


def _pool() -> Unlabelled:
    return Unlabelled(example_pictures(64)[24:], "pool")


def _plans() -> Plans:
    """Plans that run every job function, with the names of recipes; None for no method's own."""
    for name, row in METHODS.items():
        if row.kind != "recipe":
            continue
        cls = load_object(row.path)
        known = {field.name for field in fields(cls.Config)}
        config = cls.Config(**{key: value for key, value in _SOUP.items() if key in known})
        stock = _network() if name == "adabn_pool" else _stock()  # which needs BatchNorm
        yield name, cls(config).plan(stock, _source_images(), None if cls.pool == "none" else _pool())
    tuned = {"mixes": _MIXES, "holdout": 0.25, "ingredients": ("mae", "mmcr")}
    seasoned = ("seasoned:epochs=2:batch_size=8", "supervised_seasoned:draws=5")
    encoders = {"mixes": seasoned, "order": "soup_then_tune", "holdout": 0.25}
    for options in (tuned, encoders, {"order": "no_tune"}, {"order": "tune_first"}, {"lockstep": True}):
        yield None, _soup(_stock(), **options)
    source = load_object(METHODS["source"].path)
    yield None, source(source.Config(**_SHORT, head="knn")).plan(_stock(), _source_images(), None)


def _dear_plans() -> Plans:
    """Plans of large heads and networks, for the options that no other plan has."""
    yield None, _soup(_stock(), ingredients=tuple(f"{name}_official" for name in ("mmcr", "lejepa", "mocov3")))
    yield None, _soup(_network(), ingredients=("stock", "mmcr"), order="soup_then_tune")


def _soup(stock: Weights, **options: Any) -> dict[str, Job]:
    soup = load_object(METHODS["selfsoup"].path)
    parts: dict[str, Job] = soup(soup.Config(**_SOUP, **options)).plan(stock, _source_images(), _pool())
    return parts


def _made(plans: Plans) -> tuple[dict[str, Numbers], dict[str, Numbers]]:
    """Numbers of recipes by their names, and of declared functions and classes of options by their own."""
    recipes: dict[str, Numbers] = {}
    declared_things: dict[str, Numbers] = {}
    results: dict[int, Weights] = {}
    for recipe, parts in plans:
        # A report on connectivity gets its images from a run.
        for job in all_jobs([job for name, job in parts.items() if name != CONNECTIVITY or job.data is not None]):
            generator = torch.Generator().manual_seed(int(draw_key(job, 0)[:15], 16))
            inputs = [part if isinstance(part, Weights) else results[id(part)] for part in job.inputs]
            results[id(job)] = made = job.function(inputs, job.data, job.config, generator)
            for thing in (job.function, *types_of(job.config)):
                found = declared(thing)
                if found is not None:
                    declared_things.setdefault(found.name, _of_weights(made))
        if recipe is not None:
            recipes[recipe] = _of_weights(results[id(next(iter(parts.values())))])
        _kept.append(parts)  # so that no job is freed and its number given to another
    return recipes, declared_things


_kept: list[Any] = []


def _of_weights(weights: Weights) -> Numbers:
    names = sorted(name for name, tensor in weights.tensors.items() if tensor.is_floating_point())
    chosen = [names[round(place)] for place in np.linspace(0, len(names) - 1, 4)]
    return [number for name in dict.fromkeys(chosen) for number in _summary(weights.tensors[name])]


@cache
def _of_plans() -> tuple[dict[str, Numbers], dict[str, Numbers]]:
    return _made(_plans())


@cache
def _of_dear_plans() -> dict[str, Numbers]:
    return _made(_dear_plans())[1]


@cache
def _of_things() -> dict[str, Numbers]:
    """Numbers of what is made without the plan of a recipe."""
    things: dict[str, Numbers] = {}
    scratch = Supervised(SmallResNet(depth=8, image_size=16), epochs=2, batch_size=16)
    trained = train_classifier((), _source_images(), scratch, torch.Generator().manual_seed(5))
    more = {pretrain: _stock(), Pretraining: _stock(), Supervised: trained, train_classifier: trained}
    things[_name(TimmArchitecture)] = _of_weights(_network())
    small = SmallResNet(depth=8, image_size=16).initial(torch.Generator().manual_seed(5))
    things[_name(SmallResNet)] = _summary(small.eval()(example_pictures(4).float() / 255))
    things[_name(Architecture)] = _of_weights(_stock())
    things[_name(Views)] = _summary(Views()(example_pictures(4), torch.Generator().manual_seed(3)))
    return things | {_name(thing): _of_weights(weights) for thing, weights in more.items()}


def _name(thing: Any) -> str:
    found = declared(thing)
    assert found is not None
    return found.name


def _of_harness() -> Numbers:
    shift = load_shift("digits-c")
    adapt, scored = split_ids(shift.ids("test"), "disjoint")
    conditions = (CLEAN, Condition("fog", 3), Condition("contrast", 3))
    some = limit_ids(scored, 30)
    found = [float(adapt.sum()), float(some.sum()), float(labelled_source(shift, 2, 1).images.sum())]
    texts = ("reset_each_shift", "episodic", "continual", "mixed_domains", "correlated:delta=0.3")
    for text in (*texts, "mixed_domains_correlated", "label_shifts", "ccc_uncalibrated:images=20"):
        for segment in plan_stream(parse_protocol(text), conditions, some, shift.labels(some), 1):
            place = np.arange(1, len(segment.ids) + 1)
            found.append(float((segment.ids * place + 7 * segment.which * place).sum() % 1_000_003))
    model = Classifier(_TINY, 4).eval()
    model.load_state_dict(
        {name: torch.linspace(-1, 1, t.numel()).view(t.shape) for name, t in model.state_dict().items()}
    )
    return found + _summary(model(example_images(1, 8)[0][:, :, :16, :16]))


def _of_decoder() -> Numbers:
    buffer = io.BytesIO()
    Image.fromarray(_picture(64)[0].permute(1, 2, 0).numpy()).save(buffer, "PNG")
    image = Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")
    ways = [
        Preprocessing(size, resize, how) for size in (32, 56) for resize in (56, 64) for how in ("bilinear", "bicubic")
    ]
    return [number for way in ways for number in _summary(torch.from_numpy(way(image, "picture")).float() / 255)]


def _of_library() -> Numbers:
    logits = torch.linspace(-3, 3, 40).view(8, 5).sin() * 4
    losses = [*_summary(entropy(logits)), *_summary(marginal_entropy(logits[None]))]
    return [
        *losses,
        *_of_adapter("methods.adapters.tent:Tent"),
        *_of_adapter("methods.adapters.bn:BatchNormStatistics"),
    ]


def golden() -> dict[str, tuple[int, Numbers]]:
    """The version and the numbers of each component, as they were when its version was declared."""
    found = json.loads(FILE.read_text())["components"] if FILE.is_file() else {}
    return {name: (version, numbers) for name, (version, numbers) in found.items()}


def made_with() -> tuple[str, str]:
    """The release of torch and the rounding that the numbers were made with; trainings give others elsewhere."""
    found = json.loads(FILE.read_text())
    return str(found["torch"]), str(found.get("rounding", ""))


def _torch() -> str:
    return torch.__version__.partition("+")[0]


def comparable() -> bool:
    """Whether trainings give the same numbers here as where the file was made, by rounding and release of torch."""
    return (_torch(), _rounding()) == made_with()


def _rounding() -> str:
    """A digest of how this processor rounds in the operations of a training: convolution, products, sums, roots."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        images = example_pictures(8).float().div(255).requires_grad_()
        kernel = torch.linspace(-1, 1, 16 * 3 * 9).sin().view(16, 3, 3, 3)
        maps = torch.nn.functional.conv2d(images, kernel, stride=2).flatten(2)
        scores = (maps @ maps.transpose(1, 2)).div(7).softmax(-1) @ maps
        normal = torch.nn.functional.layer_norm(scores, scores.shape[-1:])
        normal.logsumexp(-1).std().backward()  # type: ignore[no-untyped-call]
        assert images.grad is not None
        return sha256(images.grad.numpy().tobytes() + normal.detach().numpy().tobytes()).hexdigest()[:16]
    finally:
        torch.set_num_threads(threads)


def differ(one: Numbers, other: Numbers) -> bool:
    """Whether two lists of numbers are those of different code, and not of another processor."""
    return len(one) != len(other) or not np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE / 2)


def main() -> int:
    """Write both files; 1 where a version must be raised first."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    before = golden()
    now = {name: (component_of(name).version, numbers_of(name)) for name in all_components()}
    anew = set() if comparable() else {name for name in now if name.startswith(TRAININGS)}
    unknown = [name for name in anew if name in before and identity(name) != str(now[name][0])]
    if unknown:
        sys.stderr.write(
            f"the code of {', '.join(unknown)} changed, and this processor or torch rounds otherwise than that "
            "of the stored numbers; run `make components` on the code as committed first, then on the changed one\n"
        )
        return 1
    wrong = [
        name
        for name, (version, numbers) in now.items()
        if name not in anew and name in before and before[name][0] == version and differ(before[name][1], numbers)
    ]
    for name in wrong:
        sys.stderr.write(f"{name} gives other numbers than its version {now[name][0]} did; raise its version\n")
    if wrong:
        return 1
    changed = write_lock()
    kept = {
        name: before[name] if name not in anew and before.get(name, (0,))[0] == entry[0] else entry
        for name, entry in now.items()
    }
    lines = ",\n".join(
        f"{json.dumps(name)}: {json.dumps([version, [float(f'{number:.7g}') for number in numbers]])}"
        for name, (version, numbers) in sorted(kept.items())
    )
    FILE.write_text(f'{{"torch": "{_torch()}", "rounding": "{_rounding()}", "components": {{\n{lines}\n}}}}\n')
    sys.stdout.write(f"{len(now)} components, {len(changed)} of them with other code than before\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
