"""Networks that others trained, as backbones like ours: CLIP, SigLIP, MAE, ViT (DINO, supervised), ConvNeXt.

Read from folders in the Hugging Face layout by transformers, safetensors only: nothing is unpickled and no code of a
folder runs. What our own architectures express (DINOv2, DINOv3) is read by :mod:`training.models.interchange`.

Sources: Radford et al. 2021 (CLIP), Zhai et al. 2023 and Tschannen et al. 2025 (SigLIP, SigLIP 2), He et al. 2022
(MAE), Dosovitskiy et al. 2021 (ViT), Caron et al. 2021 (DINO), Liu et al. 2022 and Woo et al. 2023 (ConvNeXt).
"""

from __future__ import annotations

import difflib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from foundry.errors import UserError
from foundry.images.preprocess import Preprocessing
from training.models.foreign_preprocessing import read_foreign_preprocessing

OWN_KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "dinov3_convnext")
"""Model types that :func:`training.models.interchange.load_export` reads."""


class ForeignFeatures(TypedDict):
    """Features of B images with N patches, D wide."""

    cls: Tensor
    """(B, D) image embedding, as :attr:`ForeignBackbone.representation` says."""
    patches: Tensor
    """(B, N, D) patch features after the final norm, row by row."""


class ForeignBackbone(nn.Module):
    """A network of transformers called like ours: pixels (B, 3, H, W) -> ``{"cls": (B, D), "patches": (B, N, D)}``.

    N is (H / patch_size) * (W / patch_size), in row order; sides that are no multiple lose the rest. Any size is taken:
    learned positions are resampled as transformers does.
    """

    patch_size: int
    """Pixels between two patches."""
    layers: int
    """Blocks, or stages of a convolutional network: how many :meth:`intermediate_layers` can give."""
    representation: str
    """What ``cls`` is, in words."""

    def __init__(self, network: nn.Module, representation: str) -> None:
        super().__init__()
        self.network = network
        self.representation = representation

    @abstractmethod
    def forward(self, pixels: Tensor) -> ForeignFeatures:
        """Features of ``pixels`` (B, 3, H, W)."""

    def intermediate_layers(
        self, pixels: Tensor, layers: int | Sequence[int], *, norm: bool = True
    ) -> list[ForeignFeatures]:
        """Outputs of the last ``layers`` layers, or of those numbered in ``layers`` from 0, in ascending order.

        With ``norm`` the final norm is applied to each that it fits (of a convolutional network the last stage only).
        ``cls`` is made of each layer as of the last one.
        """
        wanted = sorted(set(range(self.layers - layers, self.layers) if isinstance(layers, int) else layers))
        if not wanted or wanted[0] < 0 or wanted[-1] >= self.layers:
            raise ValueError(f"layers {layers} of a network of {self.layers}")
        # number 0 of transformers' hidden states is the input of the first layer
        states = self._run(pixels, output_hidden_states=[layer + 1 for layer in wanted]).hidden_states
        return [self._readout(states[layer + 1], norm=norm) for layer in wanted]

    @abstractmethod
    def _run(self, pixels: Tensor, **options: Any) -> Any: ...

    @abstractmethod
    def _readout(self, state: Tensor, *, norm: bool) -> ForeignFeatures: ...


class ForeignTransformer(ForeignBackbone):
    """With a CLS token: CLIP, ViT (DINO) and MAE.

    MAE sees every patch in its place: the network is loaded with a mask ratio of 0 and given ascending numbers as the
    noise by whose order it would shuffle.
    """

    def __init__(self, network: Any, representation: str) -> None:
        super().__init__(network, representation)
        self.patch_size, self.layers = network.config.patch_size, network.config.num_hidden_layers
        self._kind = network.config.model_type

    def forward(self, pixels: Tensor) -> ForeignFeatures:
        """Features of ``pixels`` (B, 3, H, W)."""
        # CLIP norms its pooled token only; the same norm is applied to its patches
        return self._readout(self._run(pixels).last_hidden_state, norm=self._kind.startswith("clip"))

    def _run(self, pixels: Tensor, **options: Any) -> Any:
        if self._kind == "vit_mae":
            places = (pixels.shape[-2] // self.patch_size) * (pixels.shape[-1] // self.patch_size)
            order = torch.arange(places, dtype=torch.float32, device=pixels.device)
            options["noise"] = order.expand(pixels.shape[0], -1)
        return self.network(pixels, interpolate_pos_encoding=True, **options)

    def _readout(self, state: Tensor, *, norm: bool) -> ForeignFeatures:
        if norm:
            network: Any = self.network
            state = (network.post_layernorm if self._kind.startswith("clip") else network.layernorm)(state)
        return {"cls": state[:, 0], "patches": state[:, 1:]}


class ForeignPooled(ForeignBackbone):
    """Without a CLS token: SigLIP and SigLIP 2, pooled by their attention head (by the mean where there is none)."""

    def __init__(self, network: Any, representation: str) -> None:
        super().__init__(network, representation)
        self.patch_size, self.layers = network.config.patch_size, network.config.num_hidden_layers
        self._packed = network.config.model_type.startswith("siglip2")
        if not network.config.vision_use_head:
            self.representation = "mean of the patches after the final norm (the file has no attention head)"

    def forward(self, pixels: Tensor) -> ForeignFeatures:
        """Features of ``pixels`` (B, 3, H, W)."""
        output = self._run(pixels)
        patches: Tensor = output.last_hidden_state
        pooled: Tensor = patches.mean(dim=1) if output.pooler_output is None else output.pooler_output
        return {"cls": pooled, "patches": patches}

    def _run(self, pixels: Tensor, **options: Any) -> Any:
        if not self._packed:
            return self.network(pixels, interpolate_pos_encoding=True, **options)
        size = self.patch_size
        count, channels, height, width = pixels.shape
        rows, columns = height // size, width // size
        cut = pixels[..., : rows * size, : columns * size].reshape(count, channels, rows, size, columns, size)
        packed = cut.permute(0, 2, 4, 3, 5, 1).reshape(count, rows * columns, -1)  # a patch's channels come last
        return self.network(
            pixel_values=packed,
            pixel_attention_mask=torch.ones(packed.shape[:2], dtype=torch.int64, device=pixels.device),
            spatial_shapes=torch.tensor([[rows, columns]] * count),
            **options,
        )

    def _readout(self, state: Tensor, *, norm: bool) -> ForeignFeatures:
        network: Any = self.network
        patches = network.post_layernorm(state) if norm else state
        return {"cls": network.head(patches) if network.use_head else patches.mean(dim=1), "patches": patches}


class ForeignConvNeXt(ForeignBackbone):
    """ConvNeXt and ConvNeXt V2: ``cls`` is the pooled map, its layers are its stages.

    An earlier stage has its own width and grid, and is given raw: the final norm fits the last width only.
    """

    def __init__(self, network: Any, representation: str) -> None:
        super().__init__(network, representation)
        self.layers = len(network.config.hidden_sizes)
        self.patch_size = network.config.patch_size * 2 ** (self.layers - 1)

    def forward(self, pixels: Tensor) -> ForeignFeatures:
        """Features of ``pixels`` (B, 3, H, W)."""
        return self._normed(self._readout(self._run(pixels).last_hidden_state, norm=False))

    def intermediate_layers(
        self, pixels: Tensor, layers: int | Sequence[int], *, norm: bool = True
    ) -> list[ForeignFeatures]:
        """As of :class:`ForeignBackbone`."""
        found = super().intermediate_layers(pixels, layers, norm=False)
        if norm and (isinstance(layers, int) or self.layers - 1 in layers):
            found[-1] = self._normed(found[-1])
        return found

    def _run(self, pixels: Tensor, **options: Any) -> Any:
        return self.network(pixels, **options)

    def _readout(self, state: Tensor, *, norm: bool) -> ForeignFeatures:
        return {"cls": state.mean(dim=(-2, -1)), "patches": state.flatten(2).transpose(1, 2)}

    def _normed(self, raw: ForeignFeatures) -> ForeignFeatures:
        network: Any = self.network
        return {"cls": network.layernorm(raw["cls"]), "patches": network.layernorm(raw["patches"])}


@dataclass(frozen=True)
class _Kind:
    """How a model type is read."""

    model: str
    """Class of transformers that has the image part and no head."""
    backbone: Callable[[Any, str], ForeignBackbone]
    representation: str
    options: dict[str, Any] = field(default_factory=dict)


_CLIP = _Kind("CLIPVisionModel", ForeignTransformer, "CLS token after the final norm, before the projection to text")
_POOLED = "attention head over the patches after the final norm"
_SIGLIP = _Kind("SiglipVisionModel", ForeignPooled, _POOLED)
_SIGLIP2 = _Kind("Siglip2VisionModel", ForeignPooled, _POOLED)
_TOKEN = "CLS token after the final norm"
_MAP = "mean of the last map, then the final norm"
_KINDS = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip2": _SIGLIP2,
    "siglip2_vision_model": _SIGLIP2,
    "vit_mae": _Kind("ViTMAEModel", ForeignTransformer, _TOKEN, {"mask_ratio": 0.0}),
    "vit": _Kind("ViTModel", ForeignTransformer, _TOKEN, {"add_pooling_layer": False}),
    "convnext": _Kind("ConvNextModel", ForeignConvNeXt, _MAP),
    "convnextv2": _Kind("ConvNextV2Model", ForeignConvNeXt, _MAP),
}


def known_kinds() -> tuple[str, ...]:
    """Every ``model_type`` of a ``config.json`` that :func:`load_foreign` reads."""
    return tuple(_KINDS)


def kind_of(folder: str | Path) -> str:
    """The ``model_type`` in the ``config.json`` of ``folder``, known or not.

    Raises :class:`UserError` where there is no such file or it names none.
    """
    path = Path(folder) / "config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{path}: no such file; expected a folder in the Hugging Face layout") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    kind = document.get("model_type") if isinstance(document, dict) else None
    if not isinstance(kind, str):
        raise UserError(f"{path}: names no model_type; expected the config.json of a network of transformers")
    if document.get("quantization_config"):
        raise UserError(f"{path}: quantised weights are not read; give the network in float32 or half precision")
    return kind


def load_foreign(folder: str | Path) -> tuple[ForeignBackbone, Preprocessing]:
    """The network (float32, CPU, eval mode) and the preprocessing of a Hugging Face folder of a known kind.

    Raises :class:`UserError` for a kind that is not known, for weights that are no safetensors or do not fit, and for
    preprocessing that cannot be done.
    """
    folder = Path(folder)
    name = kind_of(folder)
    if name not in _KINDS:
        known = (*_KINDS, *OWN_KINDS)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"nearest known: {', '.join(near)}" if near else f"known: {', '.join(known)}"
        raise UserError(f"{folder / 'config.json'}: model type {name!r} is not known; {hint}")
    check_weights(folder)
    kind = _KINDS[name]
    preprocessing = read_foreign_preprocessing(folder, name)
    network = _from_transformers(folder, kind)
    if network.config.num_channels != 3:
        raise UserError(f"{folder}: takes {network.config.num_channels} channels; only RGB networks are read")
    return kind.backbone(network, kind.representation).eval(), preprocessing


def check_weights(folder: Path) -> None:
    """Raise :class:`UserError`, with what to do, where ``folder`` has no safetensors."""
    if any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.h5") for path in folder.glob(pattern))
    if pickled:
        raise UserError(
            f"{folder}: has its weights in {pickled[0]} only, which is not opened because a pickle can run code; take "
            "a revision with model.safetensors, or convert it where you trust it: "
            "transformers.AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    raise UserError(f"{folder}: no weights there; expected model.safetensors")


def _from_transformers(folder: Path, kind: _Kind) -> Any:
    import transformers

    with _quiet():
        try:
            network, report = getattr(transformers, kind.model).from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                **kind.options,
            )
        except Exception as error:  # a damaged file or an odd description fails in any way
            reason = (str(error).strip() or "no reason given").split("\n", 1)[0]
            raise UserError(f"{folder}: transformers cannot read it ({type(error).__name__}: {reason})") from None
    missing = sorted(report["missing_keys"])
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"{folder}: its weights do not fit its description: it lacks {', '.join(missing[:3])}{more}")
    return network.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without its table of weights that are not used (text towers, decoders) and its progress bars."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
