"""TTT-MAE apart from its release (tests/methods/official): episodes, what is trained, costs, refusals, the probe."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.evaluation.pass_counter import Passes
from methods.adapters.tent import Tent
from methods.adapters.ttt_mae import TttMae, TttMaeOnline
from methods.base import Labelled, Unsupported
from methods.example_models import example_images, example_model
from methods.nets.weights import AutoencoderClassifier, Classifier, Weights, ready
from methods.recipes.mae_probe import MaeProbe, with_decoder
from methods.training.finetune import probe

QUICK = {"lr": 0.02, "steps": 2, "views": 4}


def adapter(kind: type[TttMae] = TttMae, **options: Any) -> TttMae:
    made = kind(example_model("mae_probe"), kind.Config(**(QUICK | options)), torch.Generator().manual_seed(2))
    made.prepare()
    return made


def test_images_do_not_know_of_one_another_but_by_the_generator() -> None:
    images = example_images(1, 6)[0]
    together = adapter().predict(images)
    episodes = adapter()
    alone = torch.cat([episodes.predict(image[None]) for image in images])
    assert torch.equal(together, alone)
    draws = torch.Generator().set_state(episodes.generator.get_state())
    episodes.reset()
    episodes.generator.set_state(draws.get_state())
    last = episodes.predict(images[:1])
    again = adapter()
    again.generator.set_state(draws.get_state())
    assert torch.equal(again.predict(images[:1]), last)
    assert all(parameter.grad is None for parameter in again.parameters)


def test_the_online_version_differs_from_the_second_image_on() -> None:
    images = example_images(1, 3)[0]
    episodic, online = adapter().predict(images), adapter(TttMaeOnline).predict(images)
    assert torch.equal(episodic[0], online[0])
    assert not torch.allclose(episodic[1:], online[1:], atol=1e-4)


def test_encoder_and_mask_token_are_trained_and_no_more() -> None:
    online = adapter(TttMaeOnline)
    before = {name: value.clone() for name, value in online.model.state_dict().items()}
    decoder = {name: value.clone() for name, value in online.reconstruction.decoder.state_dict().items()}
    online.predict(example_images(1, 2)[0])
    after = online.model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        name for name in before if name.startswith("encoder.") and name != "encoder.pos_embed"
    }
    after = online.reconstruction.decoder.state_dict()
    assert [name for name in decoder if not torch.equal(decoder[name], after[name])] == ["mask_token"]


def test_passes_are_counted() -> None:
    made, passes = adapter(), Passes()
    passes.watch([value for value in vars(made).values() if isinstance(value, torch.nn.Module)])
    made.predict(example_images(1, 3)[0])
    assert (passes.forwards, passes.backwards) == (3 * (2 * 4 + 1), 3 * 2 * 4)


def test_without_a_decoder_or_a_hidden_patch_it_is_refused() -> None:
    with pytest.raises(Unsupported, match="no decoder of a masked autoencoder; use the recipe mae_probe"):
        TttMae(example_model("layer_norm")).prepare()
    with pytest.raises(ValueError, match="leaves 16 of 16 patches visible"):
        adapter(mask_ratio=0.01)
    wrong: dict[str, Any]
    for wrong in ({"lr": -1.0}, {"momentum": 1.0}, {"steps": 0}, {"views": 0}, {"mask_ratio": 1.0}):
        with pytest.raises(ValueError, match=f"ttt_mae.{next(iter(wrong))} must be"):
            TttMae.Config(**wrong)


def test_the_probe_keeps_the_decoder_where_other_methods_do_not_meet_it() -> None:
    example = example_model("mae_probe")
    assert isinstance(example, AutoencoderClassifier)
    stock = Weights(
        example.architecture, {name: t for name, t in example.weights().tensors.items() if not name.startswith("head.")}
    )
    pixels = (example_images(1, 12)[0] * 255).round().to(torch.uint8)
    source = Labelled(pixels, "source", torch.arange(12) % 3, 3)
    job = MaeProbe(MaeProbe.Config(probe_l2=0.5)).plan(stock, source, None)[""]
    head, start = job.inputs
    assert start is stock
    assert not isinstance(head, Weights)
    fitted = probe([stock], source, head.config, torch.Generator())
    weights = with_decoder([fitted, stock])
    model = ready(weights)
    assert isinstance(model, AutoencoderClassifier)
    assert model.weights().digest == weights.digest
    assert torch.equal(weights.tensors["head.weight"], fitted.tensors["head.weight"])
    assert head.config.l2 == 0.5
    plain = Classifier.of(fitted).eval()
    images = example_images(1, 4)[0]
    assert torch.equal(model(images), plain(images))
    assert dict(model.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    answers = []
    for each in (model, plain):
        tent = Tent(each)
        tent.prepare()
        answers.append(torch.stack([tent.predict(images) for _ in range(2)]))
    assert torch.equal(*answers)

    encoder = Weights(stock.architecture, {f"encoder.{name}": t for name, t in stock.part("encoder").items()})
    with pytest.raises(Unsupported, match=r"no decoder, which .*; give a masked"):
        MaeProbe().plan(encoder, source, None)
    with pytest.raises(ValueError, match=r"mae_probe\.probe_l2 must be a finite number above 0"):
        MaeProbe.Config(probe_l2=0.0)
