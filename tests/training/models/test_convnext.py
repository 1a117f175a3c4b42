"""ConvNeXt: the readout, stochastic depth, strides. Parity with transformers is in test_interchange."""

from __future__ import annotations

import pytest
import torch

from training.models.build import build_backbone
from training.models.convnext import ConvNeXt
from training.models.draws import StepDraws

TINY = {"arch": "convnext", "depths": [1, 2], "dims": [8, 16], "layer_scale": 0.5}


def test_readout() -> None:
    model = build_backbone(TINY).eval()
    assert model.config.stride == 8
    features = model(torch.randn(2, 3, 32, 48))
    assert features["patches"].shape == (2, 24, 16)
    assert features["registers"].shape == (2, 0, 16)
    assert features["prenorm"].shape == (2, 25, 16)
    torch.testing.assert_close(features["prenorm"][:, 0], features["prenorm"][:, 1:].mean(dim=1))
    torch.testing.assert_close(features["cls"], model.norm(features["prenorm"][:, 0]))


def test_first_weights() -> None:
    """Fan-in keeps the size of what enters a layer; the published 0.02 lets it fade in a narrow network."""
    spec = {"arch": "convnext", "depths": [1, 1], "dims": [64, 128]}
    for init, expected in (("published", 0.02), ("fan_in", 128**-0.5)):
        model = build_backbone({**spec, "init": init})
        assert float(model.stages[1][0].pwconv1.weight.detach().std()) == pytest.approx(expected, rel=0.05)
    assert float(model.stages[0][0].dwconv.weight.detach().std()) == pytest.approx(1 / 7, rel=0.05)


def test_patches_are_row_by_row() -> None:
    model = build_backbone(TINY).eval()
    image = torch.zeros(1, 3, 64, 128)
    spot = image.clone()
    spot[:, :, 60, 124] = 50.0  # last row and last column of an 8 x 16 grid
    with torch.no_grad():
        change = (model(spot)["patches"] - model(image)["patches"]).abs().sum(-1)[0].unflatten(0, (8, 16))
    assert change[7, 15] > 0
    assert (change[:, :8] == 0).all()  # a convolution's reach ends before the left half


def test_crops_one_after_the_other_and_masks_ignored() -> None:
    model = build_backbone(TINY).eval()
    large, small = torch.randn(4, 3, 32, 32), torch.randn(6, 3, 16, 16)
    masks = torch.ones(4, 16, dtype=torch.bool)
    both = model.forward_crops([large, small], [masks, None])
    assert torch.equal(both[0]["patches"], model(large)["patches"])
    assert torch.equal(both[1]["cls"], model(small)["cls"])


def test_stochastic_depth_and_its_share_per_process() -> None:
    model = build_backbone({**TINY, "drop_path": 0.5}).train()
    assert isinstance(model, ConvNeXt)
    large = torch.randn(8, 3, 32, 32)  # two crops of four images
    draws = StepDraws.for_images(0, 0, range(4), 4, (2,))
    whole = model.forward_crops([large], draws=draws)[0]["prenorm"]
    for images in ([0, 1], [2], [3]):
        rows = [crop * 4 + image for crop in range(2) for image in images]
        part = model.forward_crops([large[rows]], draws=StepDraws.for_images(0, 0, images, 4, (2,)))[0]["prenorm"]
        torch.testing.assert_close(part, whole[rows], rtol=1e-4, atol=1e-5)
    x = torch.randn(8, 16, 4, 4)
    block = model.stages[1][1]
    rows, factor = draws.kept(0.5, 2, "block", 0)
    with torch.no_grad():
        update = block(x, draws) - x
        plain = block.eval()(x) - x
    kept = torch.zeros(8, dtype=torch.bool)
    kept[rows] = True
    assert (int(kept.sum()), factor) == (4, 2.0)
    torch.testing.assert_close(update[kept], 2 * plain[kept], rtol=1e-3, atol=1e-5)
    assert (update[~kept] == 0).all() and plain[~kept].abs().max() > 0


def test_initial_weights() -> None:
    model = build_backbone({"arch": "dinov3_convnext_tiny", "depths": [1, 1, 1, 1]})
    state = model.state_dict()
    assert not any(tensor.isnan().any() for tensor in state.values())
    assert state["stages.3.0.pwconv1.weight"].std() == pytest.approx(0.02, rel=0.01)
    assert (state["stages.0.0.gamma"] == torch.tensor(1e-6)).all()
