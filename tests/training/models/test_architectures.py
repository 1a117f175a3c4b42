"""Named networks against published sizes, and the errors of wrong descriptions. Everything on the meta device."""

from __future__ import annotations

import subprocess
import sys

import pytest

from foundry.errors import UserError
from training.models.architectures import NAMED, ViTConfig, architecture, check_expressible, transformers_class
from training.models.build import build_backbone
from training.models.layouts import to_hugging_face, to_official

# name: parameters, tensors of the official file, parameters of the Hugging Face file (None: not published)
PUBLISHED = {
    "dino_vitt16": (5_524_416, 150, None),
    "dino_vits16": (21_665_664, 150, None),
    "dino_vits8": (21_670_272, 150, None),
    "dino_vitb16": (85_798_656, 150, None),
    "dino_vitb8": (85_807_872, 150, None),
    "dinov2_vits14": (22_056_576, 175, 22_056_576),
    "dinov2_vitb14": (86_580_480, 175, 86_580_480),
    "dinov2_vitl14": (304_368_640, 343, 304_368_640),
    "dinov2_vitg14": (1_136_480_768, 567, 1_136_480_768),
    "dinov2_vits14_reg": (22_058_112, 176, 22_058_112),
    "dinov2_vitb14_reg": (86_583_552, 176, 86_583_552),
    "dinov2_vitl14_reg": (304_372_736, 344, 304_372_736),
    "dinov2_vitg14_reg": (1_136_486_912, 568, 1_136_486_912),
    "dinov3_vits16": (21_601_152, 188, 21_596_544),
    "dinov3_vits16plus": (28_697_472, 212, 28_692_864),
    "dinov3_vitb16": (85_669_632, 188, 85_660_416),
    "dinov3_vitl16": (303_154_176, 368, 303_129_600),
    "dinov3_vitl16_sat": (303_156_224, 370, 303_129_600),
    "dinov3_vitl16plus": (403_915_776, 416, None),
    "dinov3_vith16plus": (840_633_600, 552, 840_592_640),
    "dinov3_vit7b16": (6_716_043_264, 610, 6_716_035_072),
    "dinov3_vit7b16_sat": (6_716_043_264, 610, 6_716_035_072),
    "dinov3_convnext_tiny": (27_820_128, None, 27_820_128),
    "dinov3_convnext_small": (49_454_688, None, 49_454_688),
    "dinov3_convnext_base": (87_566_464, None, 87_566_464),
    "dinov3_convnext_large": (196_230_336, None, 196_230_336),
}
HUGGING_FACE_TENSORS = {
    "dinov2_vits14": 223,
    "dinov2_vits14_reg": 224,
    "dinov3_vits16": 211,
    "dinov3_vits16plus": 235,
    "dinov3_vitb16": 211,
    "dinov3_convnext_tiny": 180,
}


def test_every_named_network_is_checked_here() -> None:
    extra = {"dino_vitt8"}  # the tiny network at patch 8 was never published
    assert set(NAMED) - extra == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    parameters, tensors, in_hugging_face = PUBLISHED[name]
    model = build_backbone({"arch": name}, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    state = model.state_dict()
    if tensors is not None:
        assert len(to_official(state, model.config)) == tensors
    exported = to_hugging_face(state, model.config)
    if in_hugging_face is not None:
        assert sum(tensor.numel() for tensor in exported.values()) == in_hugging_face
    if name in HUGGING_FACE_TENSORS:
        assert len(exported) == HUGGING_FACE_TENSORS[name]


@pytest.mark.parametrize(
    ("dim", "ratio", "align", "hidden"),
    [
        (384, 6, 8, 1536),
        (1024, 6, 8, 4096),
        (1280, 6, 8, 5120),
        (4096, 3, 64, 8192),
        (1024, 4, 8, 2736),
        (1536, 4, 8, 4096),
    ],
)
def test_swiglu_widths(dim: int, ratio: float, align: int, hidden: int) -> None:
    config = ViTConfig(dim=dim, heads=dim // 64, ffn="swiglu", ffn_ratio=ratio, swiglu_align=align)
    assert config.hidden == hidden


def test_official_vits16_keys_and_shapes() -> None:
    state = build_backbone({"arch": "dinov3_vits16"}, device="meta").state_dict()
    block = {
        "norm1.weight": (384,),
        "norm1.bias": (384,),
        "attn.qkv.weight": (1152, 384),
        "attn.qkv.bias": (1152,),
        "attn.qkv.bias_mask": (1152,),
        "attn.proj.weight": (384, 384),
        "attn.proj.bias": (384,),
        "ls1.gamma": (384,),
        "norm2.weight": (384,),
        "norm2.bias": (384,),
        "mlp.fc1.weight": (1536, 384),
        "mlp.fc1.bias": (1536,),
        "mlp.fc2.weight": (384, 1536),
        "mlp.fc2.bias": (384,),
        "ls2.gamma": (384,),
    }
    expected = {
        "cls_token": (1, 1, 384),
        "storage_tokens": (1, 4, 384),
        "mask_token": (1, 384),
        "patch_embed.proj.weight": (384, 3, 16, 16),
        "patch_embed.proj.bias": (384,),
        "rope_embed.periods": (16,),
        "norm.weight": (384,),
        "norm.bias": (384,),
    } | {f"blocks.{layer}.{name}": shape for layer in range(12) for name, shape in block.items()}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected


def test_drop_path_rates() -> None:
    assert ViTConfig(depth=3, drop_path=0.2).drop_path_rates == (0.2, 0.2, 0.2)
    assert ViTConfig(depth=3, drop_path=0.2, drop_path_uniform=False).drop_path_rates == (0.0, 0.1, 0.2)
    assert architecture({"arch": "convnext", "depths": [1, 2], "dims": [8, 8], "drop_path": 0.4}).drop_path_rates == (
        0.0,
        0.2,
        0.4,
    )


def test_a_named_network_can_be_changed() -> None:
    config = architecture({"arch": "dinov3_vits16", "drop_path": 0.3, "in_channels": 5})
    assert isinstance(config, ViTConfig)
    assert (config.dim, config.drop_path, config.in_channels) == (384, 0.3, 5)
    assert architecture(config) is config


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"arch": "dinov3_vits"}, "did you mean 'dinov3_vits16'"),
        ({}, "unknown architecture 'arch' = None"),
        ({"arch": "vit", "widht": 3}, "unknown setting 'widht'"),
        ({"arch": "vit", "dpeth": 3}, "did you mean 'depth'"),
        ({"arch": "vit", "dim": 100, "heads": 6}, "dim 100 is not a multiple of heads 6"),
        ({"arch": "vit", "dim": 60, "heads": 6}, "divisible by 4"),
        ({"arch": "vit", "drop_path": 1.0}, "drop_path"),
        ({"arch": "vit", "qkv_bias": False, "key_bias": True}, "key_bias needs qkv_bias"),
        ({"arch": "convnext", "depths": [1, 2], "dims": [8]}, "2 depths for 1 dims"),
        ({"arch": "convnext", "depths": [0], "dims": [8]}, "at least one block"),
        ({"arch": "convnext", "heads": 3}, "unknown setting 'heads'"),
    ],
)
def test_wrong_descriptions(spec: dict, message: str) -> None:
    with pytest.raises(UserError, match="students\\[0\\]") as caught:
        architecture(spec, "students[0]")
    assert message in str(caught.value)


@pytest.mark.parametrize("name", NAMED)
def test_named_networks_are_expressible(name: str) -> None:
    assert check_expressible({"arch": name}) == architecture({"arch": name})


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ({"arch": "vit"}, "DINOv3ViTModel"),
        ({"arch": "convnext"}, "DINOv3ConvNextModel"),
        ({"arch": "dinov2_vits14"}, "Dinov2Model"),
        ({"arch": "dinov2_vits14_reg"}, "Dinov2WithRegistersModel"),
        ({"arch": "dino_vits16"}, "Dinov2Model"),
    ],
)
def test_transformers_class(spec: dict, name: str) -> None:
    assert transformers_class(architecture(spec)) == name


@pytest.mark.parametrize(
    "changes",
    [
        {"key_bias": False},
        {"ffn_hidden": 1000},
        {"ffn": "swiglu", "ffn_hidden": 1000},
        {"registers": 4},
        {"position_antialias": True},
    ],
)
def test_inexpressible_networks_are_refused(changes: dict) -> None:
    architecture({"arch": "dinov2_vits14", **changes})
    with pytest.raises(UserError, match="no transformers class expresses"):
        check_expressible({"arch": "dinov2_vits14", **changes})


def test_descriptions_are_checked_without_torch() -> None:
    check = "import training.models.architectures as a; a.check_expressible({'arch': 'vit'})"
    code = f"import sys; {check}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
