"""``preprocessor_config.json`` in all forms, against transformers' own processors on Pillow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from foundry.errors import UserError
from foundry.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, MAX_RESIZED_PIXELS, Preprocessing
from training.models.foreign_preprocessing import ForeignPreprocessing, read_foreign_preprocessing

COLOURS = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}


def written(folder: Path, document: dict[str, Any]) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(document))
    return folder


def image(height: int, width: int) -> np.ndarray:
    """Smooth shapes with noise, so that filters differ visibly."""
    rng = np.random.default_rng(height * width)
    y, x = np.mgrid[:height, :width]
    waves = 128 + 80 * np.sin(x / 5)[..., None] * np.cos(y / 7)[..., None]
    return np.clip(waves + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)


FORMS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "clip": (CLIPImageProcessorPil, {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}, "clip"),
    "clip, old": (
        CLIPImageProcessorPil,
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, "resample": 3},
        "clip",
    ),
    "clip, bilinear": (CLIPImageProcessorPil, {"size": 32, "crop_size": 24, "resample": 2}, "clip_vision_model"),
    "clip, nothing cropped": (
        CLIPImageProcessorPil,
        {"size": {"height": 32, "width": 32}, "do_center_crop": False},
        "clip",
    ),
    "vit, old": (
        ViTImageProcessorPil,
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "resample": 2},
        "vit_mae",
    ),
    "vit, named by its kind alone": (ViTImageProcessorPil, {"size": 32}, "vit"),
    "vit, Lanczos": (ViTImageProcessorPil, {"size": {"height": 32, "width": 32}, "resample": 1}, "vit"),
    "siglip": (
        SiglipImageProcessorPil,
        {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}},
        "",
    ),
    "convnext": (ConvNextImageProcessorPil, {"size": {"shortest_edge": 28}, "crop_pct": 0.875}, "convnextv2"),
    "convnext, old and bilinear": (
        ConvNextImageProcessorPil,
        {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 32, "crop_pct": 0.95, "resample": 2},
        "convnext",
    ),
    "convnext, large": (ConvNextImageProcessorPil, {"size": {"shortest_edge": 384}}, "convnext"),
    "bit": (
        BitImageProcessorPil,
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 36}, "crop_size": 32},
        "dinov2",
    ),
    "deit": (
        DeiTImageProcessorPil,
        {"image_processor_type": "DeiTImageProcessorFast", "size": 36, "crop_size": {"height": 32, "width": 32}},
        "",
    ),
    "not normalised": (ViTImageProcessorPil, {"size": 32, "do_normalize": False}, "vit"),
    "not rescaled": (
        ViTImageProcessorPil,
        {"size": 32, "do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0] * 3},
        "vit",
    ),
    "rescaled otherwise": (
        ViTImageProcessorPil,
        {"size": 32, "rescale_factor": 1 / 127.5, "image_mean": [1] * 3},
        "vit",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(61, 87), (40, 30)])
def test_pixels_are_those_of_transformers(tmp_path: Path, form: str, shape: tuple[int, int]) -> None:
    processor, document, kind = FORMS[form]
    folder = written(tmp_path, {**COLOURS, **document})
    ours = read_foreign_preprocessing(folder, kind)
    expected = processor.from_pretrained(folder)(image(*shape), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(ours(image(*shape)), expected, rtol=1e-5, atol=2e-5)


def test_what_our_own_preprocessing_can_say_is_one(tmp_path: Path) -> None:
    for own in (Preprocessing(), Preprocessing(resize=40, crop=32, mean=(0.1, 0.2, 0.3))):
        assert read_foreign_preprocessing(written(tmp_path, own.to_config())) == own


def test_a_written_form_is_read_as_the_same(tmp_path: Path) -> None:
    for own in (
        ForeignPreprocessing(32, 32, whole=True, resample=2),
        ForeignPreprocessing(36, 32, whole=True),
        ForeignPreprocessing(36, 32, resample=2),
    ):
        assert read_foreign_preprocessing(written(tmp_path, own.to_config())) == own


def test_naflex_is_a_square_of_as_many_patches(tmp_path: Path) -> None:
    document = {**COLOURS, "image_processor_type": "Siglip2ImageProcessor", "max_num_patches": 256, "patch_size": 16}
    found = read_foreign_preprocessing(written(tmp_path, document))
    assert isinstance(found, ForeignPreprocessing)
    assert (found.resize, found.crop, found.whole, found.resample) == (256, 256, True, 2)


def test_a_strip_is_not_resized_whole() -> None:
    """A strip of 1 to 4000 would become 2**19 pixels long; its middle is a flat colour here."""
    strip = np.zeros((4, 16000, 3), np.uint8)
    strip[:, 7000:9000] = 200
    ours = ForeignPreprocessing(128, 128, resample=2)
    assert 128 * 128 * 4000 > MAX_RESIZED_PIXELS
    assert (ours.crop_pixels(strip) == 200).all()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown processor": ({"image_processor_type": "DonutImageProcessor", "size": 32}, "'DonutImageProcessor' is not"),
    "no resize": ({"size": 32, "do_resize": False}, "do_resize = false"),
    "padding": ({"size": 32, "do_pad": True}, "do_pad = true"),
    "no size": ({}, "size = None"),
    "oblong": ({"size": {"height": 32, "width": 16}}, "of a square"),
    "longest edge": ({"size": {"longest_edge": 32}}, "expected shortest_edge"),
    "uncropped": ({"size": {"shortest_edge": 32}}, "differ in shape"),
    "oblong crop": ({"size": 32, "do_center_crop": True, "crop_size": {"height": 8, "width": 4}}, "of a square"),
    "crop larger": ({"size": 32, "do_center_crop": True, "crop_size": 40}, "larger than resize"),
    "no crop size": ({"size": 32, "do_center_crop": True}, "crop_size = None"),
    "fraction": ({"size": 32.5}, "not a whole number"),
    "filter": ({"size": 32, "resample": 9}, "resample = 9"),
    "mean": ({"size": 32, "image_mean": [0.5]}, "image_mean = .*three numbers"),
    "std": ({"size": 32, "image_std": [0, 1, 1]}, "std above zero"),
    "factor": ({"size": 32, "rescale_factor": 0}, "rescale_factor = 0"),
    "crop share": ({"image_processor_type": "ConvNextImageProcessor", "size": 32, "crop_pct": 2}, "crop_pct = 2"),
    "patches": ({"image_processor_type": "Siglip2ImageProcessor", "max_num_patches": 200}, "square number"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_done_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    document, message = BAD[case]
    with pytest.raises(UserError, match=f"preprocessor_config.json: .*{message}") as caught:
        read_foreign_preprocessing(written(tmp_path, {**COLOURS, **document}), "vit")
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_foreign_preprocessing(tmp_path)
    for text, message in (("{", "not valid JSON"), ("[]", "a JSON object")):
        (tmp_path / "preprocessor_config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            read_foreign_preprocessing(tmp_path)
