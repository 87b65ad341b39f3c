"""Objectives, schedule, seasoning and neighbours of Self-Souping, held against antofuller/self_soupervision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from official_streams import release
from official_values import OfficialValues, Values, hold
from torch import Tensor, nn

from methods.nets.masked_autoencoder import Decoder
from methods.nets.weights import Architecture, Weights, build_encoder, reset, sine_cosine_positions
from methods.selfsoup.ingredients import tensors_of
from methods.selfsoup.objectives import mae, mmcr, mocov3
from methods.selfsoup.objectives.base import Config, Objective
from methods.soups.season import Mixture, nearest_neighbour_accuracy, neighbour_entropy
from methods.training.loop import schedule

# The release fixes widths, patches and LayerNorm's epsilon; one block each is enough.
SHAPE = Architecture(
    224, 16, 768, 1, 12, decoder_dim=512, decoder_depth=1, decoder_heads=16, pool="token", layer_norm_eps=1e-5
)
MODELS, SEASONING, UTILS = (f"antofuller/self_soupervision/{name}.py" for name in ("models", "self_seasoning", "utils"))
_rand = torch.rand


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stock(seed: int = 0) -> Weights:
    """A random masked autoencoder whose biases and class token are not zero."""
    generator = torch.Generator().manual_seed(seed)
    encoder, decoder = build_encoder(SHAPE), Decoder(SHAPE)
    for part in (encoder, decoder):
        reset(part, generator)
        for parameter in part.parameters():
            if parameter.requires_grad:
                parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return Weights(SHAPE, tensors_of(encoder, "encoder") | tensors_of(decoder, "decoder"))


def built(config: Config) -> tuple[nn.Module, Objective]:
    """Our encoder and objective."""
    encoder = build_encoder(SHAPE)
    encoder.load_state_dict(stock().part("encoder"))
    return encoder, config.build(stock(), torch.Generator().manual_seed(1))


def views(count: int) -> list[Tensor]:
    return [drawn(number, 3, 3, 224, 224) for number in range(5, 5 + count)]


def summary(loss: Tensor, gradients: Mapping[str, Tensor]) -> Values:
    """The loss, and sixteen numbers of each gradient as shares of its largest, which comes first as a logarithm."""
    rows = []
    for name in sorted(gradients):
        own = gradients[name].flatten()
        places = torch.linspace(0, len(own) - 1, 16).round().long()
        rows.append(torch.cat([own.abs().max().log()[None], own[places] / own.abs().max()]))
    return {"loss": loss.detach().reshape(1), "gradients": torch.stack(rows)}


def gradients_of(**parts: nn.Module) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": p.grad
        for part, module in parts.items()
        for name, p in module.named_parameters()
        if p.requires_grad and p.grad is not None
    }


def ours(config: Config) -> Values:
    encoder, objective = built(config)
    loss = objective.loss(encoder, views(objective.views), torch.Generator().manual_seed(9))
    loss.backward()  # type: ignore[no-untyped-call]
    (head,) = objective.children()
    return summary(loss, gradients_of(encoder=encoder, head=head))


def official_encoder(models: Any, weights: Weights) -> nn.Module:
    encoder: nn.Module = models.ViT(depth=1)
    encoder.load_state_dict(weights.part("encoder"))
    return encoder


def official_mae() -> Values:
    models = release("selfsoup", "models")
    _, objective = built(mae.Config())
    decoder = models.MAEDecoder(decoder_depth=1)
    names = {name: name if name == "mask_token" else f"decoder_{name}" for name in objective.decoder.state_dict()}  # type: ignore[operator, union-attr]
    positions = sine_cosine_positions(SHAPE.decoder_dim, 14)
    own = {names[name]: tensor for name, tensor in objective.decoder.state_dict().items()}  # type: ignore[operator, union-attr]
    decoder.load_state_dict(own | {"decoder_pos_embed": positions})
    model = models.MAE(official_encoder(models, stock()), decoder)
    generator = torch.Generator().manual_seed(9)
    with mock.patch("torch.rand", lambda *shape, device: _rand(*shape, generator=generator, device=device)):
        loss = model(*views(1))
    loss.backward()
    found = gradients_of(encoder=model.encoder, head=model.head)
    back = {f"head.{theirs}": f"head.{mine}" for mine, theirs in names.items()}
    return summary(loss, {back.get(name, name): gradient for name, gradient in found.items()})


def official_pair(config: Config, make: Callable[[Any, nn.Module], Any]) -> Values:
    models = release("selfsoup", "models")
    _, objective = built(config)
    model = make(models, official_encoder(models, stock()))
    model.head.load_state_dict(objective.head.state_dict())  # type: ignore[union-attr, operator]
    loss = model(*views(2))
    loss.backward()
    return summary(loss, gradients_of(encoder=model.encoder, head=model.head))


PAIRS: dict[str, tuple[Config, Callable[[Any, nn.Module], Any]]] = {
    "mocov3-1": (mocov3.Config(temperature=1.0), lambda models, encoder: models.MoCoV3(encoder, 1.0)),
    "mocov3-0.1": (mocov3.Config(temperature=0.1), lambda models, encoder: models.MoCoV3(encoder, 0.1)),
    "mmcr-global": (mmcr.Config(local=False), lambda models, encoder: models.MMCR(encoder, False)),
    "mmcr-local": (mmcr.Config(local=True), lambda models, encoder: models.MMCR(encoder, True)),
}

STEPS, FRACTIONS = (10, 57, 100), (0.1, 0.01)


def official_schedule() -> Values:
    utils = release("selfsoup", "utils")
    found = {}
    for steps in STEPS:
        for fraction in FRACTIONS:
            optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
            plan = utils.make_warmup_cosine(optimiser, epochs=steps, warmup_frac=fraction)
            rates = []
            for _ in range(steps):
                rates.append(optimiser.param_groups[0]["lr"])
                optimiser.step()
                plan.step()
            found[f"{steps}-{fraction}"] = torch.tensor(rates)
    return found


def our_schedule() -> Values:
    return {f"{steps}-{f}": torch.tensor(schedule(steps, f)) for steps in STEPS for f in FRACTIONS}


SEASONED, SHARES = 3, torch.tensor([0.3, -0.2, 0.4])


def official_seasoning() -> Values:
    module = release("selfsoup", "self_seasoning", {"datasets": {"load_dataset": None}})
    utils = release("selfsoup", "utils")
    models = release("selfsoup", "models")
    encoders = [dict(stock(seed).part("encoder")) for seed in range(SEASONED)]
    coefficients = module.MixtureCoefficients(SEASONED, device="cpu")
    coefficients.logits.data.copy_(SHARES)
    mixed = utils.make_weighted_params(encoders, coefficients(), "cpu")
    embeds = module.forward_with_soup(official_encoder(models, stock()).eval(), drawn(4, 6, 3, 224, 224), mixed)[:, 0]
    found = {}
    for neighbours in (3, 16):  # more than there are, too
        entropy = module.knn_inbatch_neighbor_entropy(embeds, k=neighbours, T=0.07)
        (slope,) = torch.autograd.grad(entropy, coefficients.logits, retain_graph=True)
        found |= {f"entropy-{neighbours}": entropy.detach().reshape(1), f"slope-{neighbours}": slope}
    return found


def our_seasoning(temperature: float = 0.07) -> Values:
    encoder = build_encoder(SHAPE).eval()
    mixture = Mixture(encoder, [stock(seed).part("encoder") for seed in range(SEASONED)])
    found = {}
    shares = SHARES.double().softmax(0)[None]
    for neighbours in (3, 16):
        mixture.write(shares)
        entropy = neighbour_entropy(encoder(drawn(4, 6, 3, 224, 224)), neighbours, temperature)
        slope = mixture.gradient(entropy)
        slope = shares * (slope - (shares * slope).sum(1, keepdim=True))
        found |= {f"entropy-{neighbours}": entropy.detach().reshape(1), f"slope-{neighbours}": slope[0].float()}
    return found


def labelled_features() -> tuple[Tensor, Tensor]:
    labels = torch.arange(90) % 6
    return drawn(2, 90, 16) + 1.2 * drawn(3, 6, 16)[labels], labels


def official_neighbours() -> Values:
    """Each image against all others."""
    utils = release("selfsoup", "utils")
    features, labels = labelled_features()
    hits = []
    for left in range(len(labels)):
        rest = torch.arange(len(labels)) != left
        own = slice(left, left + 1)
        hits.append(utils.do_knn_parallel(features[rest], labels[rest], features[own], labels[own]))
    return {"accuracy": torch.tensor(hits).mean().reshape(1)}


def our_neighbours(temperature: float = 0.07) -> Values:
    features, labels = labelled_features()
    return {"accuracy": torch.tensor([nearest_neighbour_accuracy(features, labels, 6, temperature=temperature)])}


VALUES = [
    OfficialValues(
        "selfsoup-mae", MODELS, ("three quarters hidden",), official_mae, lambda: ours(mae.Config()), tolerance=5e-5
    ),
    *(
        OfficialValues(
            f"selfsoup-{name}",
            MODELS,
            (name,),
            lambda config=config, make=make: official_pair(config, make),  # type: ignore[misc]
            lambda config=config: ours(config),  # type: ignore[misc]
            tolerance=1e-4,
        )
        for name, (config, make) in PAIRS.items()
    ),
    OfficialValues("selfsoup-schedule", UTILS, ("warm-up", "cosine"), official_schedule, our_schedule, tolerance=1e-6),
    OfficialValues(
        "selfsoup-seasoning",
        SEASONING,
        ("more neighbours than images",),
        official_seasoning,
        our_seasoning,
        tolerance=2e-6,
    ),
    OfficialValues("selfsoup-neighbours", UTILS, ("votes",), official_neighbours, our_neighbours, tolerance=1e-6),
]


@pytest.mark.parametrize("values", VALUES, ids=lambda values: values.name)
def test_values_are_those_of_the_release(values: OfficialValues) -> None:
    hold(values)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("selfsoup-mae", lambda: ours(mae.Config(norm_pix=True))),
        ("selfsoup-mae", lambda: ours(mae.Config(mask_ratio=0.74))),
        ("selfsoup-mocov3-1", lambda: ours(mocov3.Config(temperature=1.01))),
        ("selfsoup-mocov3-1", lambda: ours(mocov3.Config(temperature=1.0, key_head=True))),
        ("selfsoup-mmcr-local", lambda: ours(mmcr.Config(local=False))),
        ("selfsoup-seasoning", lambda: our_seasoning(0.071)),
        ("selfsoup-neighbours", lambda: our_neighbours(1.0)),
    ],
)
def test_wrong_values_are_told(name: str, wrong: Callable[[], Values]) -> None:
    values = next(values for values in VALUES if values.name == name)
    assert not values.agrees(wrong(), values.stored())


def test_another_epsilon_of_layer_norm_is_told() -> None:
    """The release builds its networks with 1e-5, not with the 1e-6 of the stock."""
    values = VALUES[0]
    with mock.patch(f"{__name__}.SHAPE", replace(SHAPE, layer_norm_eps=1e-3)):
        assert not values.agrees(ours(mae.Config()), values.stored())
