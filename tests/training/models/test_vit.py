"""The Vision Transformer: packed crops, stochastic depth, norms, gradients, initialisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from training.models.build import build_backbone
from training.models.draws import StepDraws
from training.models.vit import VisionTransformer

TINY: dict[str, Any] = {"arch": "vit", "dim": 32, "depth": 3, "heads": 2, "patch_size": 8, "registers": 2}


def randomised(spec: Mapping[str, Any], seed: int = 0) -> VisionTransformer:
    """A network whose every parameter matters: LayerScale and biases are not near zero."""
    model = build_backbone(spec)
    assert isinstance(model, VisionTransformer)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            offset = 1.0 if "gamma" in name or ("norm" in name and name.endswith("weight")) else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + offset)
    return model


def crops(images: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Two global crops an image (16 patches), three local ones (4 patches), and masks for the global ones."""
    generator = torch.Generator().manual_seed(1)
    large = torch.randn(2 * images, 3, 32, 32, generator=generator)
    small = torch.randn(3 * images, 3, 16, 16, generator=generator)
    masks = torch.rand(2 * images, 16, generator=generator) < 0.3
    masks[::2] = False
    return large, small, masks


def assert_features_equal(ours: Mapping[str, Any], theirs: Mapping[str, Any], tolerance: float = 2e-6) -> None:
    for key in ("cls", "registers", "patches", "prenorm"):
        difference = (ours[key] - theirs[key]).norm() / theirs[key].norm()
        assert difference < tolerance, key


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ffn": "swiglu", "qkv_bias": False},
        {"position": "learned", "key_bias": True, "position_grid": 4, "position_antialias": True},
        {"position": "learned", "position_grid": 3, "position_offset": 0.1, "registers": 1, "layer_scale": None},
    ],
)
def test_packed_crops_equal_separate_calls(changes: dict) -> None:
    model = randomised({**TINY, **changes}).eval()
    large, small, masks = crops()
    with torch.no_grad():
        packed = model.forward_crops([large, small], [masks, None])
        assert_features_equal(packed[0], model(large, masks))
        assert_features_equal(packed[1], model(small))
    assert packed[0]["cls"].shape == (8, 32)
    assert packed[0]["registers"].shape == (8, model.config.registers, 32)
    assert packed[0]["patches"].shape == (8, 16, 32)
    assert packed[1]["prenorm"].shape == (12, 1 + model.config.registers + 4, 32)


def test_masked_patches_are_not_seen() -> None:
    model = randomised(TINY).eval()
    large, _, masks = crops()
    masks[:] = False
    masks[:, 5] = True  # row 1, column 1: pixels 8..15
    changed = large.clone()
    changed[:, :, 8:16, 8:16] += 10
    with torch.no_grad():
        assert_features_equal(model(changed, masks), model(large, masks), 1e-9)
        assert (model(changed)["cls"] - model(large)["cls"]).abs().max() > 1e-3


def naive_stochastic_depth(model: VisionTransformer, pixels: Tensor, masks: Tensor, draws: StepDraws) -> Tensor:
    """y = x; y[S] += b / m LS(f(x[S])) on unpacked tokens, with the modules called one crop at a time."""
    x = model._tokens([pixels], [masks])[0].unflatten(0, (len(pixels), -1))
    cosine, sine = model.rope_embed(4, 4, model.prefix)

    def turn(t: Tensor) -> Tensor:  # (h, N, d_h)
        half = t.shape[-1] // 2
        rotated = torch.cat((-t[..., half:], t[..., :half]), dim=-1)
        return t * torch.cat((cosine, cosine), dim=-1) + rotated * torch.cat((sine, sine), dim=-1)

    for layer, block in enumerate(model.blocks):
        for branch in ("attention", "ffn"):
            rows, factor = draws.kept(model.config.drop_path, layer, branch, 0)
            y = x.clone()
            for row in rows.tolist():
                if branch == "attention":
                    normed = block.norm1(x[row])
                    q, k, v = block.attn.qkv(normed).unflatten(-1, (3, 2, 16)).permute(1, 2, 0, 3)
                    scores = (turn(q) @ turn(k).transpose(1, 2)) / 4.0
                    update = block.attn.proj((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
                    gamma = block.ls1.gamma
                else:
                    update, gamma = block.mlp(block.norm2(x[row])), block.ls2.gamma
                y[row] = x[row] + factor * gamma * update
            x = y
    return x


def test_stochastic_depth_against_a_naive_version() -> None:
    model = randomised({**TINY, "drop_path": 0.4}).train()
    large, small, masks = crops()
    draws = StepDraws.for_images(3, 9, range(4), 4, (2, 3))
    with torch.no_grad():
        packed = model.forward_crops([large, small], [masks, None], draws=draws)[0]["prenorm"]
        expected = naive_stochastic_depth(model, large, masks, draws)
        without = model.forward_crops([large, small], [masks, None])[0]["prenorm"]
    torch.testing.assert_close(packed, expected, rtol=1e-4, atol=1e-5)
    assert (without - expected).abs().max() > 0.1


def test_processes_together_compute_what_one_does() -> None:
    model = randomised({**TINY, "drop_path": 0.5, "rope_rescale": 2.0, "rope_jitter_scope": "block"}).train()
    large, small, masks = crops(4)
    whole = model.forward_crops([large, small], [masks, None], draws=StepDraws.for_images(0, 1, range(4), 4, (2, 3)))
    for image in range(4):  # as four processes of one image each: some keep nothing at all in some branch
        draws = StepDraws.for_images(0, 1, [image], 4, (2, 3))
        part = model.forward_crops([large[image::4], small[image::4]], [masks[image::4], None], draws=draws)
        for group in (0, 1):
            torch.testing.assert_close(part[group]["prenorm"], whole[group]["prenorm"][image::4], rtol=1e-4, atol=1e-5)
        sum(part[group]["cls"].sum() for group in (0, 1)).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_evaluation_draws_nothing() -> None:
    model = randomised({**TINY, "drop_path": 0.5, "rope_rescale": 2.0}).eval()
    large, _, masks = crops()
    draws = StepDraws.for_images(0, 0, range(4), 4, (2, 3))
    assert torch.equal(model(large, masks, draws=draws)["cls"], model(large, masks)["cls"])


def test_activation_checkpointing_changes_nothing() -> None:
    model = randomised({**TINY, "drop_path": 0.4, "rope_rescale": 2.0, "rope_jitter_scope": "block"}).train()
    large, small, masks = crops()
    draws = StepDraws.for_images(0, 0, range(4), 4, (2, 3))
    gradients = []
    for recompute in ("none", "full", "selective"):
        model.recompute = recompute
        model.zero_grad()
        features = model.forward_crops([large, small], [masks, None], draws=draws)
        (features[0]["patches"].square().sum() + features[1]["cls"].sum()).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(list(model.parameters()))
    for plain, *recomputed in zip(*gradients, strict=True):
        assert all(torch.equal(plain, each) for each in recomputed)


def test_every_parameter_has_a_gradient_whatever_is_given() -> None:
    model = randomised({**TINY, "local_cls_norm": True}).train()
    large, small, masks = crops()
    for given, mask in (([large, small], [masks, None]), ([large], [None]), ([large, small], None)):
        model.zero_grad(set_to_none=True)
        features = model.forward_crops(given, mask)
        sum(feature["cls"].sum() for feature in features).backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_local_norm_is_for_local_crops_in_training() -> None:
    model = randomised({**TINY, "local_cls_norm": True})
    large, small, _ = crops()
    with torch.no_grad():
        plain = model.eval().forward_crops([large, small])
        trained = model.train().forward_crops([large, small])
        local = model.local_cls_norm(plain[1]["prenorm"][:, :3])
    assert_features_equal(trained[0], plain[0], 1e-6)
    torch.testing.assert_close(trained[1]["cls"], local[:, 0])
    torch.testing.assert_close(trained[1]["registers"], local[:, 1:])
    torch.testing.assert_close(trained[1]["patches"], plain[1]["patches"])
    assert (trained[1]["cls"] - plain[1]["cls"]).abs().max() > 0.1


def test_the_keys_bias_is_masked() -> None:
    model = randomised(TINY).eval()
    mask = model.blocks[0].attn.qkv.bias_mask
    assert mask.sum() == 2 * 32 and (mask[32:64] == 0).all()
    large, _, _ = crops()
    before = model(large)["cls"]
    with torch.no_grad():
        model.blocks[0].attn.qkv.bias[32:64] += 5
    assert torch.equal(model(large)["cls"], before)
    with torch.no_grad():
        model.blocks[0].attn.qkv.bias[64:] += 5
    assert not torch.equal(model(large)["cls"], before)


def test_a_bias_of_the_keys_does_not_change_the_features() -> None:
    masked = randomised({**TINY, "position": "learned", "position_grid": 4}).eval()
    free = randomised({**TINY, "position": "learned", "position_grid": 4, "key_bias": True}).eval()
    free.load_state_dict({name: t for name, t in masked.state_dict().items() if "bias_mask" not in name})
    large, _, _ = crops()
    assert_features_equal(free(large), masked(large), 1e-5)


def test_sides_that_are_no_multiple_of_the_patch_lose_the_rest() -> None:
    model = randomised(TINY).eval()
    large, _, _ = crops()
    padded = torch.nn.functional.pad(large, (0, 7, 0, 3), value=9.0)
    assert_features_equal(model(padded), model(large), 1e-9)


def test_patches_are_row_by_row() -> None:
    model = randomised({**TINY, "depth": 1}).eval()
    with torch.no_grad():
        model.blocks[0].ls1.gamma.zero_()
        model.blocks[0].ls2.gamma.zero_()
        image = torch.zeros(1, 3, 16, 32)
        image[:, :, 8:16, 24:32] = 1.0  # row 1, column 3 of a 2 x 4 grid
        patches = model(image)["patches"][0]
    others = [number for number in range(8) if number != 7]
    assert (patches[others] - patches[0]).abs().max() < 1e-6
    assert (patches[7] - patches[0]).abs().max() > 0.1


def test_intermediate_layers() -> None:
    model = randomised(TINY).eval()
    large, _, _ = crops()
    full = model(large)
    last = model.intermediate_layers(large, 2)
    chosen = model.intermediate_layers(large, [1, 2])
    assert len(last) == 2
    assert_features_equal(last[-1], full, 1e-9)
    for ours, theirs in zip(last, chosen, strict=True):
        assert torch.equal(ours["cls"], theirs["cls"])
    raw = model.intermediate_layers(large, [0], norm=False)[0]
    assert torch.equal(torch.cat((raw["cls"][:, None], raw["registers"], raw["patches"]), dim=1), raw["prenorm"])
    torch.testing.assert_close(model.norm(raw["cls"]), model.intermediate_layers(large, [0])[0]["cls"])
    with pytest.raises(ValueError, match="3 blocks"):
        model.intermediate_layers(large, [3])


def test_attention_map_is_what_the_block_uses() -> None:
    model = randomised(TINY).eval()
    large, _, _ = crops()
    attention = model.attention_map(large)
    assert attention.shape == (8, 2, 19, 19)
    torch.testing.assert_close(attention.sum(-1), torch.ones(8, 2, 19))
    tokens = model.intermediate_layers(large, [1], norm=False)[0]["prenorm"]
    block = model.blocks[2]
    v = block.attn.qkv(block.norm1(tokens)).unflatten(-1, (3, 2, 16))[:, :, 2].transpose(1, 2)
    tokens = tokens + block.ls1.gamma * block.attn.proj((attention @ v).transpose(1, 2).flatten(2))
    tokens = tokens + block.ls2.gamma * block.mlp(block.norm2(tokens))
    torch.testing.assert_close(model.norm(tokens)[:, 0], model(large)["cls"], rtol=1e-4, atol=1e-5)


def test_under_autocast_the_residual_stream_stays_float32() -> None:
    model = randomised(TINY).train()
    large, small, masks = crops()
    draws = StepDraws.for_images(0, 0, range(4), 4, (2, 3))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = model.forward_crops([large, small], [masks, None], draws=draws)
    with torch.no_grad():
        full = model.forward_crops([large, small], [masks, None], draws=draws)
    assert low[0]["prenorm"].dtype == torch.float32
    assert_features_equal(low[0], full[0], 0.05)


def test_masks_need_a_mask_token() -> None:
    model = build_backbone({**TINY, "mask_token": False})
    large, _, masks = crops()
    with pytest.raises(ValueError, match="mask_token"):
        model(large, masks)


@pytest.mark.parametrize("name", ["dinov3_vits16", "dinov2_vits14_reg", "dino_vits16"])
def test_initial_weights(name: str) -> None:
    model = build_backbone({"arch": name, "depth": 2, "local_cls_norm": True}, seed=3)
    assert isinstance(model, VisionTransformer)
    state = model.state_dict()
    assert not any(tensor.isnan().any() for tensor in state.values())
    patch = model.config.patch_size
    bound = (1 / (3 * patch**2)) ** 0.5
    assert state["patch_embed.proj.weight"].abs().max() <= bound
    assert state["patch_embed.proj.weight"].std() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert state["blocks.1.mlp.fc1.weight"].std() == pytest.approx(0.02, rel=0.01)
    assert state["blocks.1.attn.qkv.bias"].abs().max() == 0
    assert (state["norm.weight"] == 1).all() and (state["local_cls_norm.bias"] == 0).all()
    assert state["cls_token"].std() == pytest.approx(1e-6 if name.startswith("dinov2") else 0.02, rel=0.15)
    if name.startswith("dino_"):
        assert not any("ls1" in key for key in state)
    else:
        assert (state["blocks.0.ls1.gamma"] == torch.tensor(1e-5)).all()
        assert (state["mask_token"] == 0).all()
    if "pos_embed" in state:
        assert state["pos_embed"].std() == pytest.approx(0.02, rel=0.02)


def test_seeds_decide_the_weights_and_nothing_else_does() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = build_backbone(TINY, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    second, other = build_backbone(TINY, seed=5).state_dict(), build_backbone(TINY, seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["blocks.0.mlp.fc1.weight"], other["blocks.0.mlp.fc1.weight"])


def test_the_network_exports_with_a_free_batch() -> None:
    model = randomised(TINY).eval()
    large, _, _ = crops()
    free = torch.export.export(model, (large[:2],), dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}})
    assert_features_equal(free.module()(large), model(large))
