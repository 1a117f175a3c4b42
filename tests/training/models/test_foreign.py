"""Foreign networks against transformers' own outputs, and folders that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from foundry.errors import UserError
from training.models.build import build_backbone
from training.models.foreign import OWN_KINDS, ForeignBackbone, known_kinds, load_foreign
from training.models.interchange import read_hugging_face_config

SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 20,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
DECODER = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
T: Any = transformers
MODELS: dict[str, Callable[[], Any]] = {
    "clip": lambda: T.CLIPModel(T.CLIPConfig(text_config=TEXT, vision_config=SIZE)),
    "clip_vision_model": lambda: T.CLIPVisionModel(T.CLIPVisionConfig(**SIZE)),
    "siglip": lambda: T.SiglipModel(T.SiglipConfig(text_config=TEXT, vision_config=SIZE)),
    "siglip_vision_model": lambda: T.SiglipVisionModel(T.SiglipVisionConfig(**SIZE)),
    "siglip2": lambda: T.Siglip2Model(T.Siglip2Config(text_config=TEXT, vision_config={**SIZE, "num_patches": 16})),
    "siglip2_vision_model": lambda: T.Siglip2VisionModel(T.Siglip2VisionConfig(**SIZE, num_patches=16)),
    "vit_mae": lambda: T.ViTMAEForPreTraining(T.ViTMAEConfig(**SIZE, **DECODER)),
    "vit": lambda: T.ViTForImageClassification(T.ViTConfig(**SIZE)),
    "convnext": lambda: T.ConvNextForImageClassification(T.ConvNextConfig(**STAGES)),
    "convnextv2": lambda: T.ConvNextV2Model(T.ConvNextV2Config(**STAGES)),
}
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 32, "width": 32},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
HEIGHT, WIDTH = 64, 96
"""Another size than trained, and no square; two by three steps of a ConvNeXt."""


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def randomise(model: nn.Module) -> None:
    """Weights that are neither nearly zero nor nearly one, so that no part of the network can be left out unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + centre)


def saved(folder: Path, kind: str, processor: dict[str, Any] | None = None) -> Any:
    model = MODELS[kind]().eval()
    randomise(model)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor or PROCESSOR))
    assert json.loads((folder / "config.json").read_text())["model_type"] == kind
    return model


def pixels(height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def packed(images: Tensor, size: int = 8) -> dict[str, Tensor]:
    """Input of SigLIP 2, patch by patch: its channels last, as transformers' processor lays them out."""
    rows, columns = images.shape[-2] // size, images.shape[-1] // size
    patches = [
        images[:, :, r * size : (r + 1) * size, c * size : (c + 1) * size].permute(0, 2, 3, 1).flatten(1)
        for r in range(rows)
        for c in range(columns)
    ]
    return {
        "pixel_values": torch.stack(patches, 1),
        "pixel_attention_mask": torch.ones(len(images), rows * columns, dtype=torch.int64),
        "spatial_shapes": torch.tensor([[rows, columns]] * len(images)),
    }


def theirs(model: Any, kind: str, images: Tensor, **options: Any) -> tuple[Any, nn.Module]:
    """(output, final norm) of transformers' own model, called as its documentation says."""
    vision = getattr(model, "vision_model", model)
    if kind.startswith("siglip2"):
        return vision(**packed(images), **options), vision.post_layernorm
    if kind.startswith("convnext"):
        base = getattr(model, "convnext", model)
        return base(images, **options), base.layernorm
    if kind.startswith(("clip", "siglip")):
        return vision(images, interpolate_pos_encoding=True, **options), vision.post_layernorm
    base = model.vit
    if kind == "vit_mae":
        base.config.mask_ratio = 0.0
    return base(images, interpolate_pos_encoding=True, **options), base.layernorm


def unshuffled(output: Any, kind: str) -> Tensor:
    """Patches (B, N, D), in row order."""
    state: Tensor = output.last_hidden_state
    if kind.startswith("convnext"):
        return state.flatten(2).transpose(1, 2)
    if kind.startswith("siglip"):
        return state
    if kind == "vit_mae":  # it saw them in an order by chance, which this undoes
        return state[:, 1:].gather(1, output.ids_restore[..., None].expand(-1, -1, state.shape[-1]))
    return state[:, 1:]


def assert_close(ours: Tensor, other: Tensor) -> None:
    assert ours.shape == other.shape and ours.dtype == torch.float32
    assert float((ours - other).norm() / other.norm()) <= 1e-5


def test_every_kind_is_tested() -> None:
    assert set(MODELS) == set(known_kinds())


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_features_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    model = saved(tmp_path, kind)
    ours, preprocessing = load_foreign(tmp_path)
    assert preprocessing.crop == 32 and not ours.training
    step = 32 if kind.startswith("convnext") else 8
    assert ours.patch_size == step and ours.layers == (4 if step == 32 else 3)
    for size in ((32, 32), (HEIGHT, WIDTH)):
        images = pixels(*size)
        features = ours(images)
        output, norm = theirs(model, kind, images)
        patches = unshuffled(output, kind)
        if kind.startswith(("clip", "convnext")):  # transformers norms the pooled feature only
            patches = norm(patches)
        assert features["patches"].shape[1] == size[0] // step * (size[1] // step)
        assert_close(features["patches"], patches)
        pooled = output.last_hidden_state[:, 0] if kind.startswith("vit") else output.pooler_output
        assert_close(features["cls"], pooled)


@torch.no_grad()
def test_the_embedding_of_clip_and_siglip_is_what_is_compared_with_text(tmp_path: Path) -> None:
    images = pixels(32, 32)
    clip = saved(tmp_path / "clip", "clip")
    features = load_foreign(tmp_path / "clip")[0](images)
    assert_close(clip.visual_projection(features["cls"]), clip.get_image_features(images).pooler_output)
    siglip = saved(tmp_path / "siglip", "siglip")
    features = load_foreign(tmp_path / "siglip")[0](images)
    assert_close(features["cls"], siglip.get_image_features(images).pooler_output)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind not in ("vit_mae", "clip", "siglip", "siglip2")])
@torch.no_grad()
def test_intermediate_layers_are_their_hidden_states(tmp_path: Path, kind: str) -> None:
    model = saved(tmp_path, kind)
    ours, _ = load_foreign(tmp_path)
    images = pixels()
    output, norm = theirs(model, kind, images, output_hidden_states=True)
    vision = getattr(model, "vision_model", model)
    found = ours.intermediate_layers(images, 2)
    assert len(found) == 2
    for state, features, last in zip(output.hidden_states[-2:], found, (False, True), strict=True):
        if kind.startswith("convnext"):
            tokens = torch.cat((state.mean((-2, -1))[:, None], state.flatten(2).transpose(1, 2)), 1)
            expected = norm(tokens) if last else tokens
            assert_close(features["cls"], expected[:, 0])
            assert_close(features["patches"], expected[:, 1:])
        elif kind.startswith("siglip"):
            assert_close(features["patches"], norm(state))
            assert_close(features["cls"], vision.head(norm(state)))
        else:
            assert_close(features["cls"], norm(state)[:, 0])
            assert_close(features["patches"], norm(state)[:, 1:])
    whole = ours(images)
    assert_close(found[-1]["cls"], whole["cls"])
    assert_close(found[-1]["patches"], whole["patches"])
    first, last_one = ours.intermediate_layers(images, [0, ours.layers - 1], norm=False)
    if not kind.startswith("convnext"):
        start = 0 if kind.startswith("siglip") else 1
        assert_close(first["patches"], output.hidden_states[1][:, start:])
        assert_close(last_one["patches"], output.hidden_states[-1][:, start:])
    for wrong in (0, 9, [ours.layers]):
        with pytest.raises(ValueError, match="of a network of"):
            ours.intermediate_layers(images, wrong)


@torch.no_grad()
def test_mae_sees_every_patch_in_its_place(tmp_path: Path) -> None:
    model = saved(tmp_path, "vit_mae")
    assert model.config.mask_ratio == 0.75
    ours, _ = load_foreign(tmp_path)
    images = pixels(40, 48)
    features = ours(images)
    assert torch.equal(ours(images)["patches"], features["patches"])  # nothing is left to chance
    for row, column in ((0, 0), (0, 5), (3, 1), (4, 5)):
        changed = images.clone()
        changed[:, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] += 1.0
        difference = (ours(changed)["patches"] - features["patches"]).norm(dim=-1)
        assert difference.argmax(dim=1).tolist() == [row * 6 + column] * 2
    model.vit.config.mask_ratio = 0.0
    hidden = model.vit(images, interpolate_pos_encoding=True, output_hidden_states=True)
    patches = unshuffled(
        type("Raw", (), {"last_hidden_state": hidden.hidden_states[1], "ids_restore": hidden.ids_restore}), "vit_mae"
    )
    assert_close(ours.intermediate_layers(images, [0], norm=False)[0]["patches"], patches)


@torch.no_grad()
def test_siglip2_from_an_image_on(tmp_path: Path) -> None:
    processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    model = saved(tmp_path, "siglip2_vision_model", processor.to_dict())
    ours, preprocessing = load_foreign(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    output = model(**processor(image, return_tensors="pt"))
    features = ours(torch.from_numpy(preprocessing(image))[None])
    assert_close(features["cls"], output.pooler_output)
    assert_close(features["patches"], output.last_hidden_state)


@torch.no_grad()
def test_in_threads(tmp_path: Path) -> None:
    saved(tmp_path, "vit_mae")
    ours, _ = load_foreign(tmp_path)
    images = [torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]

    def run(image: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.cat([features["cls"] for features in ours.intermediate_layers(image, 3)])

    alone = [run(image) for image in images]
    with ThreadPoolExecutor(3) as pool:
        for together, expected in zip(pool.map(run, images), alone, strict=True):
            torch.testing.assert_close(together, expected)


def test_half_precision_files_are_read_as_float32(tmp_path: Path) -> None:
    model = saved(tmp_path, "clip")
    model.half().save_pretrained(tmp_path)
    ours, _ = load_foreign(tmp_path)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}


def test_siglip_without_its_head(tmp_path: Path) -> None:
    model = T.SiglipVisionModel(T.SiglipVisionConfig(**SIZE, vision_use_head=False)).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    ours, _ = load_foreign(tmp_path)
    assert isinstance(ours, ForeignBackbone) and ours.representation.startswith("mean of the patches")
    with torch.no_grad():
        output = model(pixels(32, 32))
        assert_close(ours(pixels(32, 32))["cls"], output.last_hidden_state.mean(1))
        assert_close(ours.intermediate_layers(pixels(32, 32), 1)[0]["cls"], output.last_hidden_state.mean(1))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "clip_vision_model")

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            load_foreign(tmp_path)
        assert "\n" not in str(caught.value)

    edit(tmp_path, quantization_config={"bits": 4})
    refused("quantised")
    edit(tmp_path, quantization_config=None, model_type="siglip_vision")
    refused("'siglip_vision' is not known; nearest known: .*siglip_vision_model")
    edit(tmp_path, model_type="zzz")
    refused("known: clip, .*vit_mae.*dinov2")
    edit(tmp_path, model_type="clip_vision_model", num_hidden_layers=5)
    refused("lacks .*layers.3.* and 29 more")
    edit(tmp_path, num_hidden_layers=3, hidden_size=64)
    refused("transformers cannot read it")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    refused(r"weights in pytorch_model.bin only.*save_pretrained\(NEW_FOLDER\)")
    (tmp_path / "pytorch_model.bin").unlink()
    refused("no weights there")
    (tmp_path / "config.json").write_text("[]")
    refused("names no model_type")
    (tmp_path / "config.json").unlink()
    refused("no such file; expected a folder in the Hugging Face layout")


def test_networks_of_other_channels_and_damaged_weights_are_refused(tmp_path: Path) -> None:
    model = T.ViTModel(T.ViTConfig(**SIZE, num_channels=4))
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    with pytest.raises(UserError, match="takes 4 channels"):
        load_foreign(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="transformers cannot read it"):
        load_foreign(tmp_path)


def test_no_code_of_a_folder_runs(tmp_path: Path) -> None:
    saved(tmp_path, "vit")
    marker = tmp_path / "ran"
    (tmp_path / "mine.py").write_text(f"open({str(marker)!r}, 'w')\nclass Mine: pass\n")
    edit(tmp_path, auto_map={"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"})
    load_foreign(tmp_path)
    assert not marker.exists()


def test_own_kinds_are_those_of_interchange() -> None:
    for kind in OWN_KINDS:
        with pytest.raises(UserError, match=f"^{kind}: '"):  # known, and lacks a size
            read_hugging_face_config({"model_type": kind}, kind)
    for kind in known_kinds():
        with pytest.raises(UserError, match="is none of"):
            read_hugging_face_config({"model_type": kind}, "config.json")


@torch.no_grad()
def test_our_convnext_gives_its_stages() -> None:
    """Against a walk through its modules; the contract is that of the transformer."""
    model: Any = build_backbone(
        {"arch": "convnext", "depths": [1, 2, 1], "dims": [8, 16, 32], "layer_scale": 0.5}
    ).eval()
    images = pixels()
    states, x = [], images
    for halve, blocks in zip(model.downsample_layers, model.stages, strict=True):
        x = halve(x)
        for block in blocks:
            x = block(x)
        states.append(torch.cat((x.mean((-2, -1))[:, None], x.flatten(2).transpose(1, 2)), 1))
    earlier, last = model.intermediate_layers(images, 2)
    assert_close(earlier["cls"], states[1][:, 0])
    assert_close(earlier["patches"], states[1][:, 1:])
    assert_close(last["cls"], model(images)["cls"])
    assert_close(last["patches"], model.norm(states[2])[:, 1:])
    assert_close(last["prenorm"], states[2])
    first, raw = model.intermediate_layers(images, [0, 2], norm=False)
    assert_close(first["patches"], states[0][:, 1:])
    assert_close(raw["cls"], states[2][:, 0])
    with pytest.raises(ValueError, match="of a network of 3 stages"):
        model.intermediate_layers(images, 4)
