"""FOA: a restatement that runs a transformer step by step and drives CMA-ES itself; its state; refusals."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import cma
import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from methods.adapters.foa import FOA, Search, find_transformer
from methods.base import Source, SourceBatch, Unsupported
from methods.nets.weights import Architecture, Classifier


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def timm_vit() -> nn.Module:
    return seeded(
        lambda: timm.models.VisionTransformer(32, 8, embed_dim=24, depth=3, num_heads=2, num_classes=5, reg_tokens=1)
    )


def ours() -> nn.Module:
    return seeded(lambda: Classifier(Architecture(dim=24, depth=3, heads=2), 5))


def torchvision_vit() -> nn.Module:
    return seeded(lambda: torchvision.models.VisionTransformer(32, 8, 3, 2, 24, 48, num_classes=5))


@pytest.fixture
def source() -> Source:
    return Source(lambda number: SourceBatch(noise(16, 3, 32, 32, seed=100 + number) ** 2), 3)


def step_by_step(model: Any, images: Tensor, prompts: Tensor, shift: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Features and logits, before and after the shift, of a timm transformer or of ours.

    The first classifies its class token, ours takes the mean over patches.
    """
    vit = model if hasattr(model, "blocks") else model.encoder
    tokens = vit._pos_embed(vit.patch_embed(images if vit is model else model.normalise(images)))
    own = torch.stack([prompts] * len(images))
    tokens = torch.cat([tokens[:, :1], own, tokens[:, 1:]], dim=1)
    patches = tokens.shape[1] - (images.shape[-1] // 8) ** 2
    features = []
    for place, block in enumerate(vit.blocks):
        tokens = block(tokens)
        follows = vit.norm if place == len(vit.blocks) - 1 else vit.blocks[place + 1].norm1
        normal = follows(tokens)
        features.append(normal[:, 0] if vit is model else normal[:, patches:].mean(1))
    return torch.cat(features, 1), model.head(features[-1]), model.head(features[-1] + shift)


@torch.no_grad()
@pytest.mark.parametrize("number", [0, 1, 3])
@pytest.mark.parametrize("build", [timm_vit, ours])
def test_prompts_go_behind_the_class_token(build: Callable[[], nn.Module], number: int) -> None:
    model = build()
    images, prompts, shift = noise(4, 3, 32, 32), noise(number, 24) * 3, noise(24)
    found = find_transformer(model)(images, prompts if number else None, shift)
    expected = step_by_step(model, images, prompts, shift)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_torchvision_transformers_take_prompts() -> None:
    model: Any = torchvision_vit()
    prompted = find_transformer(model)
    images = noise(4, 3, 32, 32)
    _, logits, shifted = prompted(images, None, None)
    torch.testing.assert_close(logits, model(images))
    assert torch.equal(logits, shifted)
    tokens = model.conv_proj(images).flatten(2).transpose(1, 2)
    tokens = torch.cat([model.class_token.expand(4, -1, -1), tokens], dim=1) + model.encoder.pos_embedding
    prompts = noise(2, 24)
    tokens = torch.cat([tokens[:, :1], prompts.expand(4, -1, -1), tokens[:, 1:]], dim=1)
    expected = []
    for place, layer in enumerate(model.encoder.layers):
        tokens = layer(tokens)
        expected.append((model.encoder.ln if place == 2 else model.encoder.layers[place + 1].ln_1)(tokens)[:, 0])
    features, logits, _ = prompted(images, prompts, None)
    torch.testing.assert_close(features, torch.cat(expected, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, model.heads.head(expected[-1]), rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("build", [timm_vit, ours])
def test_is_the_restatement(build: Callable[[], nn.Module], source: Source, shift: bool) -> None:
    model = build()
    config = FOA.Config(prompts=2, population=5, deviation=0.7, trade_off=0.3, shift=shift, source_images=40)
    adapter = FOA(model, config, torch.Generator().manual_seed(9))
    adapter.prepare(source)

    none = torch.empty(0, 24)
    clean = torch.cat([step_by_step(model, batch.images, none, 0.0)[0] for batch in source])[:40]
    mean, deviation = clean.mean(0), ((clean - clean.mean(0)) ** 2).sum(0).div(39).sqrt()
    draws = torch.Generator().manual_seed(9)
    # Glorot's bound for the linear layer from the 3 x 8 x 8 values of a patch to a token of 24.
    bound = math.sqrt(6 / (3 * 8 * 8 + 24))
    best = (torch.rand(48, generator=draws, dtype=torch.float64) * 2 * bound - bound).float().double().numpy()
    options = {"popsize": 5, "randn": lambda *shape: torch.randn(shape, generator=draws, dtype=torch.float64).numpy()}
    strategy = cma.CMAEvolutionStrategy([0] * 48, 0.7, {**options, "seed": np.nan, "verbose": -9, "CMA_mirrors": 0})
    history = None
    for size in (8, 8, 1, 5):
        images = noise(size, 3, 32, 32, seed=size)
        towards = mean[-24:] - history if shift and history is not None else 0.0
        candidates = [*strategy.ask(), best]
        losses, outputs, means = [], [], []
        for candidate in candidates:
            prompts = torch.tensor(candidate).float().view(2, 24)
            features, logits, shifted = step_by_step(model, images, prompts, towards)
            p = logits.double().softmax(1)
            loss = float(-(p * p.log()).sum())
            gap = float(((features.mean(0) - mean) ** 2).sum())
            if size > 1:
                gap += float(((features.std(0) - deviation) ** 2).sum())
            losses.append(loss + 0.3 * gap * size / 64)
            outputs.append(shifted)
            means.append(features.mean(0)[-24:])
        strategy.tell(candidates, losses)
        now = torch.stack(means).mean(0)
        history = now if history is None else 0.9 * history + 0.1 * now
        best = candidates[int(np.argmin(losses))].astype(np.float32).astype(float)
        torch.testing.assert_close(adapter.predict(images), outputs[int(np.argmin(losses))], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_shifting_alone_is_one_pass_and_the_closed_form(source: Source) -> None:
    model: Any = timm_vit()
    adapter = FOA(model, FOA.Config(prompts=0))
    adapter.prepare(source)
    clean = torch.cat([model.forward_head(model.forward_features(batch.images), pre_logits=True) for batch in source])
    history = None
    for seed in range(3):
        images = noise(4, 3, 32, 32, seed=seed)
        last = model.forward_head(model.forward_features(images), pre_logits=True)
        moved = last if history is None else last + clean.mean(0) - history
        torch.testing.assert_close(adapter.predict(images), model.head(moved), rtol=1e-4, atol=1e-4)
        history = last.mean(0) if history is None else 0.9 * history + 0.1 * last.mean(0)


def small(model: nn.Module, source: Source, seed: int = 0) -> FOA:
    adapter = FOA(model, FOA.Config(prompts=1, population=4), torch.Generator().manual_seed(seed))
    adapter.prepare(source)
    return adapter


def play(adapter: FOA, seeds: range) -> Tensor:
    return torch.stack([adapter.predict(noise(4, 3, 32, 32, seed=seed)) for seed in seeds])


def test_reset_and_resume_go_on_to_the_bit(source: Source) -> None:
    model = timm_vit()
    adapter = small(model, source)
    first = play(adapter, range(8))
    file = io.BytesIO()
    adapter.reset()
    play(adapter, range(3))
    torch.save(adapter.state_dict(), file)
    play(adapter, range(5))
    adapter.reset()
    assert torch.equal(play(adapter, range(8)), first)
    other = small(model, source, seed=5)
    assert not torch.equal(play(other, range(2)), first[:2])
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(play(other, range(3, 8)), first[3:])


def test_uses_no_global_random_numbers_and_leaves_the_model_alone(source: Source) -> None:
    model = timm_vit()
    weights = copy.deepcopy(model.state_dict())
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index,union-attr]  # noqa: NPY002
    adapter = small(model, source)
    play(adapter, range(4))
    after = np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index,union-attr]  # noqa: NPY002
    assert before[0] == after[0]
    assert torch.equal(before[1], after[1])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    assert all(torch.equal(adapter.model.state_dict()[name], value) for name, value in weights.items())


def test_a_long_search_goes_on_where_it_was_saved() -> None:
    first, second = (Search(40, 8, 1.0, torch.Generator().manual_seed(seed)) for seed in (3, 4))
    scale = np.arange(1, 41)

    def step(search: Search, best: np.ndarray) -> np.ndarray:
        candidates = [*search.ask(), best]
        losses = [float(((each - 0.3) ** 2 * scale).sum()) for each in candidates]
        search.tell(candidates, losses)
        return candidates[int(np.argmin(losses))].copy()

    best = np.zeros(40)
    for _ in range(60):
        best = step(first, best)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.draws.set_state(first.draws.get_state())
    other = best.copy()
    for _ in range(150):
        best, other = step(first, best), step(second, other)
    assert np.array_equal(best, other)
    assert np.abs(best - 0.3).max() < 0.2


def test_losses_that_are_not_finite_lose(source: Source) -> None:
    adapter = small(timm_vit(), source)
    broken = torch.full((4, 3, 32, 32), math.nan)
    assert torch.isnan(adapter.predict(broken)).all()


def test_other_models_are_refused(make_net: Callable[[str], nn.Sequential]) -> None:
    with pytest.raises(Unsupported, match="vision transformer"):
        FOA(make_net("gn")).prepare()


def test_needs_source_images() -> None:
    with pytest.raises(ValueError, match="clean images"):
        FOA(timm_vit()).prepare()
    with pytest.raises(ValueError, match="at least two"):
        FOA(timm_vit()).prepare(Source(lambda number: SourceBatch(noise(1, 3, 32, 32)), 1))


@pytest.mark.parametrize(
    "options",
    [
        {"prompts": -1},
        {"prompts": 0, "shift": False},
        {"population": 2},
        {"deviation": 0.0},
        {"trade_off": -1.0},
        {"source_images": 1},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"foa\."):
        FOA.Config(**options)
