"""``preprocessor_config.json`` of networks that others trained, in the forms that are in use.

The rules are those of transformers' image processors on Pillow (families of :data:`_FAMILIES`): what a file leaves out
is the family's default. What gives no square picture of one size, or cannot be said by resize, crop and
normalisation, is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foundry.errors import UserError
from foundry.images.preprocess import MAX_RESIZED_PIXELS, Preprocessing

FILE = "preprocessor_config.json"

_BICUBIC = 3


@dataclass(frozen=True)
class ForeignPreprocessing(Preprocessing):
    """Preprocessing with another resize than ours.

    With ``whole`` the image becomes ``resize`` x ``resize`` pixels whatever its proportions; otherwise its shorter edge
    becomes ``resize``. ``resample`` is Pillow's number of the filter (0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4
    box, 5 Hamming). Crop and normalisation follow as in :class:`Preprocessing`.
    """

    whole: bool = False
    resample: int = _BICUBIC

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.resample, bool) or self.resample not in range(6):
            raise UserError(f"preprocessing: resample = {self.resample!r}: give a number of Pillow's filters, 0 to 5")

    def crop_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (crop, crop, 3) of ``pixels`` uint8 (H, W, 3); memory stays bounded for extreme proportions."""
        from PIL import Image

        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
            raise ValueError(f"expected uint8 pixels of shape (height, width, 3), got {pixels.dtype} {pixels.shape}")
        height, width = pixels.shape[:2]
        shorter = min(height, width)
        sides = (self.resize * height // shorter, self.resize * width // shorter)
        new_height, new_width = (self.resize, self.resize) if self.whole else sides
        top, left = (new_height - self.crop) // 2, (new_width - self.crop) // 2
        image, method = Image.fromarray(np.ascontiguousarray(pixels)), Image.Resampling(self.resample)
        if new_height * new_width <= MAX_RESIZED_PIXELS or self.whole:
            resized = image.resize((new_width, new_height), method)
            return np.array(resized.crop((left, top, left + self.crop, top + self.crop)))
        across, down = width / new_width, height / new_height
        right, bottom = min((left + self.crop) * across, width), min((top + self.crop) * down, height)
        return np.array(image.resize((self.crop, self.crop), method, (left * across, top * down, right, bottom)))

    def to_config(self) -> dict[str, Any]:
        """The mapping of a ``preprocessor_config.json`` that :func:`read_foreign_preprocessing` reads."""
        size = {"height": self.resize, "width": self.resize} if self.whole else {"shortest_edge": self.resize}
        own = {"size": size, "resample": self.resample, "image_processor_type": "CLIPImageProcessor"}
        return {**super().to_config(), **own}


@dataclass(frozen=True)
class _Family:
    """What an image processor of transformers does where its file says nothing."""

    square: bool
    """Whether a ``size`` that is one number means a square (else the shorter edge)."""
    crop: bool
    resample: int


_FAMILIES = {
    "vit": _Family(square=True, crop=False, resample=2),
    "clip": _Family(square=False, crop=True, resample=3),
    "siglip": _Family(square=True, crop=False, resample=3),
    "siglip2": _Family(square=True, crop=False, resample=2),
    "convnext": _Family(square=False, crop=False, resample=3),
    "bit": _Family(square=False, crop=True, resample=3),
    "deit": _Family(square=True, crop=True, resample=3),
    "dinov3vit": _Family(square=True, crop=False, resample=2),
}
_SQUASHED_FROM = 384
"""Size from which a ConvNeXt is shown the whole image, squashed, instead of a crop."""


def read_foreign_preprocessing(folder: str | Path, model_type: str = "") -> Preprocessing:
    """The preprocessing in ``folder``: a :class:`Preprocessing` where that can say it, else a
    :class:`ForeignPreprocessing`.

    ``model_type`` of ``config.json`` decides for files that do not name their processor. Raises :class:`UserError` for
    a file that is missing or asks for what cannot be done. SigLIP 2 with ``max_num_patches`` (NaFlex) shows each image
    in its own proportions; here it is a square of as many patches, to which the image is squashed.
    """
    path = Path(folder) / FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it says how images become the network's input, copy it there") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: expected a JSON object")
    try:
        return _read(document, model_type)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read(document: Mapping[str, Any], model_type: str) -> Preprocessing:
    given = {key: value for key, value in document.items() if value is not None}
    name = _family_name(given, model_type)
    family = _FAMILIES[name]
    if not given.get("do_resize", True):
        raise UserError("do_resize = false: images of different sizes make no batch; name a size")
    for key in ("do_pad", "do_flip_channel_order", "do_thumbnail", "do_align_long_axis"):
        if given.get(key):
            raise UserError(f"{key} = true is not supported")
    cropped = bool(given.get("do_center_crop", family.crop))
    if name == "siglip2" and "size" not in given:
        whole, resize = True, _square_of_patches(given)
    else:
        whole, resize = _size(given, family)
    crop = resize
    if name == "convnext" and not whole:
        if cropped:
            raise UserError("do_center_crop = true beside crop_pct is not supported")
        if resize < _SQUASHED_FROM:
            share = given.get("crop_pct", 224 / 256)
            if not _is_number(share) or not 0 < share <= 1:
                raise UserError(f"crop_pct = {share!r}: expected a number above 0 and up to 1")
            resize = int(resize / share)
        else:
            whole = True
    elif cropped:
        crop = _crop(given)
    elif not whole:
        raise UserError("size names the shortest edge and nothing is cropped: images would differ in shape")
    mean, std = _normalisation(given)
    resample = given.get("resample", family.resample)
    if not whole and resample == _BICUBIC:
        return Preprocessing(resize, crop, mean, std)
    return ForeignPreprocessing(resize, crop, mean, std, whole, resample)


def _family_name(given: Mapping[str, Any], model_type: str) -> str:
    written = given.get("image_processor_type") or given.get("feature_extractor_type")
    if written is None:
        kind = re.sub(r"_vision_model$|v2$", "", model_type)
        return kind if kind in _FAMILIES else "vit"
    name = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", str(written)).lower()
    if name not in _FAMILIES:
        raise UserError(f"image processor {written!r} is not known here; known: those of {', '.join(_FAMILIES)}")
    return name


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole_number(value: object, name: str) -> int:
    if not isinstance(value, int | float) or isinstance(value, bool) or value != int(value):
        raise UserError(f"{name} = {value!r}: not a whole number")
    return int(value)


def _size(given: Mapping[str, Any], family: _Family) -> tuple[bool, int]:
    """(whether the whole image is squashed, pixels of the side or the shorter edge)."""
    size = given.get("size")
    if not isinstance(size, Mapping):
        return family.square, _whole_number(size, "size")
    sides = {key: value for key, value in size.items() if value is not None}
    if set(sides) == {"shortest_edge"}:
        return False, _whole_number(sides["shortest_edge"], "size.shortest_edge")
    if set(sides) == {"height", "width"} and sides["height"] == sides["width"]:
        return True, _whole_number(sides["height"], "size.height")
    raise UserError(f"size = {dict(size)}: expected shortest_edge, or height and width of a square")


def _crop(given: Mapping[str, Any]) -> int:
    crop = given.get("crop_size")
    if isinstance(crop, Mapping):
        if set(crop) != {"height", "width"} or crop["height"] != crop["width"]:
            raise UserError(f"crop_size = {dict(crop)}: expected height and width of a square")
        crop = crop["height"]
    return _whole_number(crop, "crop_size")


def _square_of_patches(given: Mapping[str, Any]) -> int:
    patches = _whole_number(given.get("max_num_patches", 256), "max_num_patches")
    side = math.isqrt(max(patches, 0))
    if side * side != patches or not patches:
        raise UserError(f"max_num_patches = {patches}: expected a square number, as 256")
    return side * _whole_number(given.get("patch_size", 16), "patch_size")


Triple = tuple[float, float, float]


def _normalisation(given: Mapping[str, Any]) -> tuple[Triple, Triple]:
    """Mean and std of value / 255: another ``rescale_factor`` is the same as other means and deviations."""
    factor = given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 1.0
    if not _is_number(factor) or factor <= 0:
        raise UserError(f"rescale_factor = {factor!r}: expected a number above zero")
    usual = math.isclose(factor, 1 / 255, rel_tol=1e-6)
    scale = 1.0 if usual else 1 / (255 * factor)
    if not given.get("do_normalize", True):
        return (0.0,) * 3, (scale,) * 3
    mean, std = (_triple(given, name) for name in ("image_mean", "image_std"))
    return (mean[0] * scale, mean[1] * scale, mean[2] * scale), (std[0] * scale, std[1] * scale, std[2] * scale)


def _triple(given: Mapping[str, Any], name: str) -> Triple:
    values = given.get(name)
    if _is_number(values):
        values = [values] * 3
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(_is_number, values)):
        raise UserError(f"{name} = {values!r}: expected three numbers")
    return float(values[0]), float(values[1]), float(values[2])
