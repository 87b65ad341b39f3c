"""Masked autoencoding against a slow restatement that masks after the fact, and against closed forms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from methods.nets import vit
from methods.nets.weights import Architecture, Weights, build_encoder
from methods.selfsoup.objectives import mae
from methods.training.loop import reset

SMALL = Architecture(image_size=16, patch_size=4, dim=16, depth=2, heads=2, decoder_dim=12, decoder_heads=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def encoder_of(architecture: Architecture = SMALL) -> nn.Module:
    encoder = build_encoder(architecture)
    reset(encoder, seeded())
    return encoder


def stock_of(encoder: nn.Module) -> Weights:
    return Weights(SMALL, {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()})


@pytest.fixture
def encoder() -> nn.Module:
    return encoder_of()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 3, 16, 16, generator=seeded(3))


@pytest.mark.parametrize(
    ("patches", "ratio", "visible"), [(196, 0.75, 49), (196, 0.9, 20), (100, 0.9, 10), (16, 0.5, 8)]
)
def test_visible_patches(patches: int, ratio: float, visible: int) -> None:
    assert mae.visible_patches(patches, ratio) == visible


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.99, -0.5])
def test_masking_nothing_or_everything_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="mask_ratio"):
        mae.visible_patches(16, ratio)


def test_patches_run_by_rows_then_pixels_then_channels() -> None:
    images = torch.arange(2 * 3 * 8 * 12.0).view(2, 3, 8, 12)
    expected = [
        [
            [float(image[c, 4 * row + p, 4 * column + q]) for p in range(4) for q in range(4) for c in range(3)]
            for row in range(2)
            for column in range(3)
        ]
        for image in images
    ]
    assert mae.patchify(images, 4).tolist() == expected


def test_images_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(ValueError, match="10 x 8"):
        mae.patchify(torch.zeros(1, 3, 10, 8), 4)


def test_random_orders_are_independent_uniform_permutations() -> None:
    order = mae.random_order(2000, 16, seeded())
    assert torch.equal(order.sort(1).values, torch.arange(16).expand(2000, 16))
    assert torch.equal(order, mae.random_order(2000, 16, seeded()))
    assert not torch.equal(order, mae.random_order(2000, 16, seeded(1)))
    assert len(torch.unique(order, dim=0)) == 2000
    visible = torch.bincount(order[:, :4].flatten(), minlength=16)
    assert (visible - 500).abs().max() < 100  # five deviations


def test_encoding_every_patch_is_the_ordinary_encoder(encoder: nn.Module, images: Tensor) -> None:
    every = torch.arange(16).expand(5, 16)
    ours = vit.encode_visible(encoder, mae.patchify(images, 4), every)
    assert torch.allclose(ours, encoder.forward_features(images), atol=1e-5)  # type: ignore[operator]


def test_hidden_pixels_are_never_read(encoder: nn.Module, images: Tensor) -> None:
    order = mae.random_order(5, 16, seeded())
    images.requires_grad_()
    vit.encode_visible(encoder, mae.patchify(images, 4), order[:, :4]).square().sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    reached = mae.patchify(images.grad, 4).abs().amax(2)
    assert (reached.gather(1, order[:, :4]) > 0).all()
    assert (reached.gather(1, order[:, 4:]) == 0).all()


def test_the_class_token_is_always_there(encoder: nn.Module, images: Tensor) -> None:
    ids = torch.zeros(5, 0, dtype=torch.int64)
    alone = vit.encode_visible(encoder, mae.patchify(images, 4), ids)
    assert alone.shape == (5, 1, 16)
    assert torch.allclose(alone[0], alone[4], rtol=0, atol=1e-6)  # rows of a product may be rounded apart


def slow_loss(encoder: nn.Module, decoder: mae.Decoder, images: Tensor, order: Tensor, *, norm_pix: bool) -> Tensor:
    """The paper's algorithm as written: embed all, drop the masked, restore the order with mask tokens."""
    count, patches = order.shape
    visible = 4
    losses = []
    for index in range(count):
        tokens = encoder.patch_embed(images[index : index + 1])[0] + encoder.pos_embed[0, 1:]  # type: ignore[operator, index]
        kept = sorted(order[index, :visible].tolist())
        first = encoder.cls_token[0] + encoder.pos_embed[0, :1]  # type: ignore[index]
        encoded = encoder.norm(encoder.blocks(torch.cat([first, tokens[kept]])[None]))  # type: ignore[operator]
        embedded = decoder.embed(encoded)[0]
        full = decoder.mask_token[0].repeat(patches, 1)
        for place, token in zip(kept, embedded[1:], strict=True):
            full = torch.cat([full[:place], token[None], full[place + 1 :]])
        whole = torch.cat([embedded[:1], full]) + decoder.positions[0]
        prediction = decoder.pred(decoder.norm(decoder.blocks(whole[None])))[0, 1:]
        for place in range(patches):
            if place in kept:
                continue
            row, column = divmod(place, 4)
            patch = images[index, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            target = patch.permute(1, 2, 0).flatten()
            if norm_pix:
                target = (target - target.mean()) / (target.var(unbiased=True) + 1e-6) ** 0.5
            losses.append((prediction[place] - target).square().mean())
    return torch.stack(losses).sum() / (count * (patches - visible))


@pytest.mark.parametrize("norm_pix", [False, True])
def test_loss_equals_the_slow_algorithm(encoder: nn.Module, images: Tensor, norm_pix: bool) -> None:
    objective = mae.Config(0.75, norm_pix).build(stock_of(encoder), seeded(1))
    nn.init.normal_(objective.decoder.mask_token, generator=seeded(2))
    order = mae.random_order(5, 16, seeded(7))
    with torch.no_grad():
        ours = objective.loss(encoder, [images], seeded(7))
        theirs = slow_loss(encoder, objective.decoder, images, order, norm_pix=norm_pix)
    assert torch.allclose(ours, theirs, rtol=1e-5)


def test_targets_are_normalised_patches() -> None:
    patches = 5 + 3 * torch.randn(4, 6, 48, generator=seeded())
    targets = mae.pixel_targets(patches, norm_pix=True)
    assert torch.allclose(targets.mean(2), torch.zeros(4, 6), atol=1e-5)
    assert torch.allclose(targets.var(2, unbiased=True), torch.ones(4, 6), atol=1e-4)
    assert torch.equal(mae.pixel_targets(patches, norm_pix=False), patches)
    assert torch.equal(mae.pixel_targets(torch.full((1, 1, 48), 0.5), norm_pix=True), torch.zeros(1, 1, 48))


def test_closed_forms_of_the_loss() -> None:
    target = torch.randn(3, 4, 12, generator=seeded())
    assert float(mae.reconstruction_loss(target, target)) == 0
    assert float(mae.reconstruction_loss(target + 0.5, target)) == pytest.approx(0.25, rel=1e-5)
    one = target.clone()
    one[0, 0] += 2
    assert float(mae.reconstruction_loss(one, target)) == pytest.approx(4 / 12, rel=1e-5)


def test_every_trained_tensor_gets_a_gradient(encoder: nn.Module, images: Tensor) -> None:
    objective = mae.Config().build(stock_of(encoder), seeded())
    objective.loss(encoder, [images], seeded()).backward()  # type: ignore[no-untyped-call]
    for part in (encoder, objective):
        for name, parameter in part.named_parameters():
            if name == "pos_embed":
                assert parameter.grad is None
            else:
                assert parameter.grad is not None, name
                assert parameter.grad.abs().max() > 0, name


def test_decoder_of_the_stock_is_used_and_a_missing_one_is_drawn(encoder: nn.Module) -> None:
    fresh = mae.Config().build(stock_of(encoder), seeded(1)).decoder
    again = mae.Config().build(stock_of(encoder), seeded(1)).decoder
    other = mae.Config().build(stock_of(encoder), seeded(2)).decoder
    assert torch.equal(fresh.pred.weight, again.pred.weight)
    assert not torch.equal(fresh.pred.weight, other.pred.weight)
    tensors = dict(stock_of(encoder).tensors) | {f"decoder.{k}": v for k, v in fresh.state_dict().items()}
    loaded = mae.Config().build(Weights(SMALL, tensors), seeded(2)).decoder
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in fresh.state_dict().items())


def test_cost_is_one_by_default_and_grows_with_what_is_visible() -> None:
    assert mae.Config().cost == 1
    assert mae.Config(0.9).cost < 1 < mae.Config(0.5).cost < 1.5


def test_masks_follow_the_generator(encoder: nn.Module, images: Tensor) -> None:
    objective = mae.Config().build(stock_of(encoder), seeded())
    one, same, other = (objective.loss(encoder, [images], seeded(seed)).item() for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_loss_is_taken_in_full_precision_under_autocast(encoder: nn.Module, images: Tensor) -> None:
    objective = mae.Config().build(stock_of(encoder), seeded())
    exact = objective.loss(encoder, [images], seeded()).item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective.loss(encoder, [images], seeded())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.02)


def test_the_first_blocks_of_the_decoder_can_be_taken_alone(encoder: nn.Module, images: Tensor) -> None:
    deep = replace(SMALL, decoder_depth=3)
    whole = mae.Config().build(Weights(deep, dict(stock_of(encoder).tensors)), seeded(1)).decoder
    tensors = dict(stock_of(encoder).tensors) | {f"decoder.{k}": v for k, v in whole.state_dict().items()}
    objective = mae.Config(0.75, decoder_depth=1).build(Weights(deep, tensors), seeded(2))
    assert len(objective.decoder.blocks) == 1
    for name, tensor in objective.decoder.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name
    order = mae.random_order(5, 16, seeded(7))
    with torch.no_grad():
        theirs = slow_loss(encoder, objective.decoder, images, order, norm_pix=False)
        assert torch.allclose(objective.loss(encoder, [images], seeded(7)), theirs, rtol=1e-5)
    for wrong, sentence in ((0, "at least 1"), (4, "has 3 blocks")):
        with pytest.raises(ValueError, match=sentence):
            mae.Config(decoder_depth=wrong).depth(deep)


def test_a_prediction_at_a_visible_patch_changes_nothing(encoder: nn.Module, images: Tensor) -> None:
    """Targets of visible patches are never used: other pixels there change the loss only through the encoder."""
    objective = mae.Config().build(stock_of(encoder), seeded())
    order = mae.random_order(5, 16, seeded(7))
    patches = mae.patchify(images, 4)
    kept = torch.zeros(5, 16, dtype=torch.bool).scatter_(1, order[:, :4], True)
    with torch.no_grad():
        tokens = mae.encode_visible(encoder, patches, order[:, :4])
        changed = torch.where(kept[:, :, None], patches + 5, patches)
        predicted = objective.decoder(tokens, order)
        losses = [
            mae.reconstruction_loss(predicted, mae.pixel_targets(mae.pick(each, order[:, 4:]), norm_pix=False))
            for each in (patches, changed, patches + 5)
        ]
    assert losses[0] == losses[1] != losses[2]
