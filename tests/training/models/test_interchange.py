"""Exports against transformers' own classes in both directions, official files, and files that are wrong."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foundry.errors import UserError
from foundry.images.preprocess import Preprocessing
from training.models.build import Backbone, build_backbone, build_head
from training.models.interchange import (
    load_export,
    load_heads,
    load_hugging_face,
    load_official,
    read_hugging_face_config,
    save_export,
)
from training.models.layouts import describe_official, to_hugging_face, to_official

VIT: dict[str, Any] = {"arch": "vit", "dim": 48, "depth": 2, "heads": 3}
SPECS: dict[str, dict[str, Any]] = {
    "mlp": VIT,
    "swiglu": {**VIT, "ffn": "swiglu", "ffn_ratio": 6.0, "norm_eps": 1e-6},
    "7b": {**VIT, "ffn": "swiglu", "qkv_bias": False, "registers": 0, "local_cls_norm": True, "rope_rescale": 2.0},
    "key bias": {**VIT, "key_bias": True, "layer_scale": None, "mask_token": False, "rope_base": 50.0},
    "five channels": {**VIT, "in_channels": 5, "patch_size": 8, "registers": 1},
    "dinov2": {"arch": "dinov2_vits14", "dim": 48, "depth": 2, "heads": 2},
    "dinov2 giant": {"arch": "dinov2_vitg14_reg", "dim": 48, "depth": 2, "heads": 2},
    "dino": {"arch": "dino_vits16", "dim": 48, "depth": 2, "heads": 2},
    "convnext": {"arch": "convnext", "depths": [1, 1, 2, 1], "dims": [8, 16, 32, 32]},
    "convnext, three stages": {"arch": "convnext", "depths": [1, 2, 1], "dims": [8, 16, 32], "in_channels": 4},
}
SIDE = 112


def preprocessing(crop: int = SIDE) -> Preprocessing:
    return Preprocessing(resize=crop, crop=crop)


def randomise(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "gamma" in name or "lambda" in name or ("norm" in name and name.endswith("weight")) else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + centre)


def network(name: str) -> Backbone:
    model = build_backbone(SPECS[name])
    randomise(model)
    return model.eval()


def pixels(model: Backbone, height: int = SIDE, width: int = SIDE) -> Tensor:
    return torch.randn(2, model.config.in_channels, height, width, generator=torch.Generator().manual_seed(1))


def relative(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float(((ours - theirs).norm() / theirs.norm()).detach())


def assert_same_features(model: Backbone, theirs: nn.Module, images: Tensor, tolerance: float = 1e-5) -> None:
    with torch.no_grad():
        features, output = model(images), theirs(images)
    assert relative(features["cls"], output.pooler_output) <= tolerance
    patches = features["patches"].shape[1]
    assert relative(features["patches"], output.last_hidden_state[:, -patches:]) <= tolerance
    registers = features["registers"].shape[1]
    assert output.last_hidden_state.shape[1] == 1 + registers + patches
    if registers:
        assert relative(features["registers"], output.last_hidden_state[:, 1 : 1 + registers]) <= tolerance


@pytest.mark.parametrize("name", SPECS)
def test_transformers_loads_what_we_save(name: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    model = network(name)
    save_export(model, tmp_path, preprocessing())
    theirs, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.get(kind) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert_same_features(model, theirs.eval(), pixels(model))
    rotary = model.config.arch == "convnext" or model.config.position == "rope"
    if rotary:  # learned positions are only exact at the crop's own size, see save_export
        assert_same_features(model, theirs, pixels(model, 64, 128))
    back, read = load_export(tmp_path)
    assert read == preprocessing()
    with torch.no_grad():
        again, before = back(pixels(model)), model(pixels(model))
    assert relative(again["patches"], before["patches"]) <= 1e-6 and relative(again["cls"], before["cls"]) <= 1e-6
    assert not back.training


def hugging_face_models() -> dict[str, nn.Module]:
    import transformers as hf

    size = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    return {
        "mlp": hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**size, intermediate_size=192, num_register_tokens=4)),
        "gated": hf.DINOv3ViTModel(
            hf.DINOv3ViTConfig(
                **size, intermediate_size=96, use_gated_mlp=True, hidden_act="silu", query_bias=False, value_bias=False
            )
        ),
        "convnext": hf.DINOv3ConvNextModel(hf.DINOv3ConvNextConfig(depths=[1, 1, 2, 1], hidden_sizes=[8, 16, 16, 32])),
        "dinov2": hf.Dinov2Model(hf.Dinov2Config(**size, image_size=SIDE, patch_size=14)),
        "dinov2 giant with registers": hf.Dinov2WithRegistersModel(
            hf.Dinov2WithRegistersConfig(**size, image_size=SIDE, patch_size=14, use_swiglu_ffn=True)
        ),
    }


@pytest.mark.parametrize("name", ["mlp", "gated", "convnext", "dinov2", "dinov2 giant with registers"])
def test_we_load_what_transformers_saves(name: str, tmp_path: Path) -> None:
    theirs = hugging_face_models()[name].eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    model = load_hugging_face(tmp_path)
    assert_same_features(model, theirs, pixels(model))
    assert_same_features(model, theirs, pixels(model, 56, 112))


def test_masks_give_transformers_features(tmp_path: Path) -> None:
    from transformers import AutoModel

    model = network("mlp")
    save_export(model, tmp_path, preprocessing())
    theirs = AutoModel.from_pretrained(tmp_path).eval()
    masks = torch.rand(2, 49, generator=torch.Generator().manual_seed(2)) < 0.4
    with torch.no_grad():
        ours = model(pixels(model), masks)
        output = theirs(pixels(model), bool_masked_pos=masks)
    assert relative(ours["patches"], output.last_hidden_state[:, 5:]) <= 1e-5


def test_intermediate_layers_are_transformers_hidden_states(tmp_path: Path) -> None:
    from transformers import AutoModel

    model = network("mlp")
    save_export(model, tmp_path, preprocessing())
    theirs = AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        output = theirs(pixels(model), output_hidden_states=True, output_attentions=True)
        raw = model.intermediate_layers(pixels(model), 2, norm=False)
        attention = model.attention_map(pixels(model), 0)
    assert relative(raw[0]["prenorm"], output.hidden_states[1]) <= 1e-5
    assert relative(attention, output.attentions[0]) <= 1e-5


def test_in_memory_names_of_transformers_are_read_too(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    theirs = hugging_face_models()["dinov2 giant with registers"].eval()
    theirs.save_pretrained(tmp_path)
    expected = load_hugging_face(tmp_path).state_dict()
    in_memory = {f"dinov2_with_registers.{name}": tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    assert any("gate_proj" in name for name in in_memory)
    save_file(in_memory, tmp_path / "model.safetensors")
    state = load_hugging_face(tmp_path).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_shards_of_a_large_model_are_read(tmp_path: Path) -> None:
    model = network("mlp")
    save_export(model, tmp_path, preprocessing())
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(state)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: state[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    back = load_hugging_face(tmp_path)
    assert relative(back(pixels(model))["cls"], model(pixels(model))["cls"]) <= 1e-6


def test_learned_positions_are_saved_for_the_crop(tmp_path: Path) -> None:
    from transformers import AutoModel

    model = network("dinov2")  # 37 x 37 positions
    save_export(model, tmp_path, preprocessing(84))
    theirs = AutoModel.from_pretrained(tmp_path).eval()
    assert theirs.embeddings.position_embeddings.shape[1] == 1 + 36
    assert_same_features(model, theirs, pixels(model, 84, 84))


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        heads = {"dino": build_head(48, 32, 16, 20), "ibot": build_head(48, 32, 16, 10)}
        save_export(network("mlp"), tmp_path / folder, preprocessing(), heads)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["config.json", "heads.safetensors", "model.safetensors", "preprocessor_config.json"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_exports_are_float32_and_change_nothing(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = network("mlp").bfloat16()
    save_export(model, tmp_path, preprocessing())
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}
    assert model.cls_token.dtype == torch.bfloat16


@pytest.mark.parametrize("weight_norm", [False, True])
def test_heads_come_back(tmp_path: Path, weight_norm: bool) -> None:
    heads = {
        "dino": build_head(48, 32, 16, 20, weight_norm=weight_norm, seed=1),
        "ibot": build_head(48, 24, 8, 10, layers=2, weight_norm=weight_norm, seed=2),
    }
    save_export(network("mlp"), tmp_path, preprocessing(), heads)
    back = load_heads(tmp_path)
    assert list(back) == ["dino", "ibot"]
    x = torch.randn(3, 48)
    for name, head in heads.items():
        assert torch.equal(back[name](x), head(x))


OFFICIAL = ["mlp", "swiglu", "7b", "convnext", "dinov2", "dinov2 giant", "dino"]


def official_network(name: str) -> Backbone:
    """Like :func:`network` with heads 64 wide, as every DINO and DINOv2 has (their files do not say)."""
    spec = {**SPECS[name], "dim": 64, "heads": 1} if name.startswith("dino") else SPECS[name]
    model = build_backbone(spec)
    randomise(model)
    return model.eval()


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_files(name: str, tmp_path: Path) -> None:
    model = official_network(name)
    state = to_official(model.state_dict(), model.config)
    torch.save(state, tmp_path / "official.pth")
    back = load_official(tmp_path / "official.pth")
    assert type(back) is type(model)
    if name == "swiglu":  # the file does not tell 1e-6 from DINOv3's usual 1e-5
        back = build_backbone(model.config)
        back.load_state_dict(load_official(tmp_path / "official.pth").state_dict())
        back.eval()
    images = pixels(model)
    with torch.no_grad():
        assert relative(back(images)["patches"], model(images)["patches"]) <= 1e-6
        assert relative(back(images)["cls"], model(images)["cls"]) <= 1e-6
    assert back.state_dict().keys() == model.state_dict().keys()


def wrapped(state: Mapping[str, Tensor], kind: str) -> dict[str, Any]:
    head = {"dino_head.mlp.0.weight": torch.zeros(2, 2), "ibot_head.last_layer.weight": torch.zeros(2, 2)}
    if kind == "teacher":
        return {"teacher": {**{f"backbone.{name}": t for name, t in state.items()}, **head}, "iteration": 5}
    if kind == "first generation":
        student = {f"module.backbone.{name}": t for name, t in state.items()}
        teacher = {f"backbone.{name}": t for name, t in state.items()}
        return {
            "student": student,
            "teacher": {**teacher, "head.mlp.0.weight": torch.zeros(2, 2)},
            "epoch": 3,
            "args": argparse.Namespace(arch="vit_small"),
        }
    if kind == "compiled":
        return {
            name.replace("blocks.1.", "blocks.1._orig_mod._checkpoint_wrapped_module."): t for name, t in state.items()
        }
    assert kind == "chunked"
    return {"teacher": {f"backbone.{name.replace('blocks.', 'blocks.0.')}": t for name, t in state.items()}}


@pytest.mark.parametrize("kind", ["teacher", "first generation", "compiled", "chunked"])
def test_wrapped_official_files(kind: str, tmp_path: Path) -> None:
    model = official_network("dinov2")
    torch.save(wrapped(to_official(model.state_dict(), model.config), kind), tmp_path / "checkpoint.pth")
    back = load_official(tmp_path / "checkpoint.pth")
    images = pixels(model)
    assert torch.equal(back(images)["cls"], model(images)["cls"])


def test_periods_of_bfloat16_name_their_base() -> None:
    model = build_backbone({**VIT, "dim": 64, "heads": 1})
    state = model.state_dict()
    assert state["rope_embed.periods"].bfloat16()[1:4].tolist() == [1.3359375, 1.78125, 2.375]
    described = describe_official({**state, "rope_embed.periods": state["rope_embed.periods"].bfloat16()})
    assert described.model_dump()["rope_base"] == 100.0


def test_official_and_hugging_face_names_differ_as_published() -> None:
    model = build_backbone({"arch": "dinov2_vitg14_reg", "depth": 1}, device="meta")
    official = to_official(model.state_dict(), model.config)
    assert official["blocks.0.mlp.w12.weight"].shape == (8192, 1536)
    assert official["register_tokens"].shape == (1, 4, 1536)
    theirs = to_hugging_face(model.state_dict(), model.config)
    assert theirs["encoder.layer.0.mlp.weights_in.weight"].shape == (8192, 1536)
    assert theirs["encoder.layer.0.attention.attention.key.bias"].shape == (1536,)
    three = build_backbone({"arch": "dinov3_vits16", "depth": 1}, device="meta")
    names = to_hugging_face(three.state_dict(), three.config)
    assert names["embeddings.mask_token"].shape == (1, 1, 384)
    assert "layer.0.attention.k_proj.weight" in names and "layer.0.attention.k_proj.bias" not in names


# What is wrong with files


def exported(folder: Path) -> Path:
    save_export(network("mlp"), folder, preprocessing())
    return folder


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "resnet"}, "model type 'resnet' is none of dinov3_vit"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
        ({"value_bias": False}, "value_bias = False is not supported"),
        ({"num_hidden_layers": 3}, "lacks blocks.2."),
        ({"num_hidden_layers": 1}, "has unknown blocks.1."),
        ({"intermediate_size": 96}, "instead of (96"),
        ({"num_attention_heads": 5}, "dim 48 is not a multiple of heads 5"),
    ],
)
def test_wrong_descriptions(changes: dict, message: str, tmp_path: Path) -> None:
    edit(exported(tmp_path), **changes)
    with pytest.raises(UserError) as caught:
        load_export(tmp_path)
    assert message in str(caught.value) and str(tmp_path) in str(caught.value)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="config.json: no such file"):
        load_export(tmp_path)
    whole = exported(tmp_path / "whole")
    for file, message in (
        ("config.json", "not valid JSON"),
        ("model.safetensors", "not a safetensors file"),
        ("preprocessor_config.json", "not valid JSON"),
    ):
        broken = tmp_path / f"broken {file}"
        shutil.copytree(whole, broken)
        (broken / file).write_bytes((broken / file).read_bytes()[:40])
        with pytest.raises(UserError, match=message):
            load_export(broken)
    (whole / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model.safetensors: no such weight file"):
        load_export(whole)
    with pytest.raises(UserError, match="heads.safetensors: no such weight file"):
        load_heads(whole)


def test_descriptions_without_a_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="somewhere: .*hidden_size"):
        read_hugging_face_config({"model_type": "dinov3_vit"}, "somewhere")


def test_files_that_are_no_official_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such weight file"):
        load_official(tmp_path / "none.pth")
    torch.save({"some": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not an official DINO"):
        load_official(tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match="not a file of plain weights"):
        load_official(tmp_path / "text.pth")


class Hostile:
    """Runs code when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    torch.save({"cls_token": torch.zeros(1), "extra": Hostile(tmp_path / "ran")}, tmp_path / "hostile.pth")
    with pytest.raises(UserError, match="not a file of plain weights"):
        load_official(tmp_path / "hostile.pth")
    assert not (tmp_path / "ran").exists()


def test_networks_that_transformers_cannot_express_are_not_saved(tmp_path: Path) -> None:
    model = build_backbone({**VIT, "position": "learned", "registers": 0})
    with pytest.raises(UserError, match="no transformers class"):
        save_export(model, tmp_path / "export", preprocessing())
    assert not (tmp_path / "export").exists()
