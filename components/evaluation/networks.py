"""Networks to compare, from anywhere: a training run, a Hugging Face folder, a registered model, or a hub's model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.common.model_inputs import REGISTERED, network_folder, settled
from components.common.networks import network_digest
from components.common.step import labelled
from components.evaluation.hub import hub_model
from foundry.errors import UserError
from foundry.settings import digest_of
from foundry.storage import shown_url


@dataclass(frozen=True)
class Network:
    """One network of a comparison."""

    name: str
    """Its label: letters, digits, ``_`` and ``-``."""
    title: str
    """As people read it."""
    source: str
    """Where it came from, exactly: a version or a commit in place of an alias or a branch."""
    model: Any
    """``model(pixels (B, 3, H, W)) -> {"cls", "patches"}``, with ``intermediate_layers``; float32, CPU, eval mode."""
    preprocessing: Any
    """:class:`foundry.images.Preprocessing`."""
    description: Mapping[str, Any]
    """``model_type``, ``architecture``, ``parameters`` (of the image part), ``width`` of ``cls``, ``patch_size``,
    ``input_side``, ``representation`` (what ``cls`` is) and ``digest`` of its files."""


def parse_networks(value: str) -> dict[str, str]:
    """Networks by label: ``NAME=URL;NAME=URL``, or one URL that is called after its last part.

    Raises :class:`UserError` as :func:`components.common.step.labelled` does.
    """
    return labelled(value)


def settled_network(value: str) -> str:
    """``value`` with what may move made fast: the alias of a registered model as its version, a hub's branch as its
    commit (``facebook/dinov2-small@0123...``). Raises :class:`UserError` for what does not exist.
    """
    hub = hub_model(value)
    return str(hub.at_commit()) if hub else settled(value)


def folder_of_network(value: str) -> Path:
    """The local folder of the network ``value``; what a hub has is downloaded first.

    Raises :class:`UserError` where there is no network.
    """
    hub = hub_model(value)
    return hub.at_commit().folder() if hub else network_folder(value)


def digest_of_network(value: str) -> str:
    """What names the network ``value`` in a fingerprint: of a hub's model its name and commit (nothing is downloaded),
    of any other the content of its files."""
    named = settled_network(value)
    hub = hub_model(named)
    return digest_of(["hub", hub.model, hub.revision]) if hub else network_digest(network_folder(named))


def open_network(value: str, name: str = "") -> Network:
    """The network that ``value`` names: a training run, a Hugging Face folder, ``models:/NAME@ALIAS``, or a hub's model
    as ``facebook/dinov2-small`` (``@REVISION`` may follow).

    ``name`` is its label, by default that of :func:`parse_networks`. An existing folder comes before a hub's model of
    the same name. Raises :class:`UserError` where there is none or it cannot be read.
    """
    source = settled_network(value)
    folder = folder_of_network(source)
    model, preprocessing, kind = _load(folder)
    name = name or next(iter(parse_networks(value)))
    return Network(name, _title(source), source, model, preprocessing, _describe(model, preprocessing, kind, folder))


def _load(folder: Path) -> tuple[Any, Any, str]:
    from training.models.foreign import OWN_KINDS, check_weights, kind_of, load_foreign
    from training.models.foreign_preprocessing import read_foreign_preprocessing
    from training.models.interchange import load_export, load_hugging_face

    kind = kind_of(folder)
    if kind not in OWN_KINDS:
        return *load_foreign(folder), kind
    check_weights(folder)
    try:
        return *load_export(folder), kind
    except UserError:
        # published DINOv2 and DINOv3 files may ask for another resize than our own exports do
        return load_hugging_face(folder), read_foreign_preprocessing(folder, kind), kind


_NAMES = {
    "clip": "CLIP",
    "siglip": "SigLIP",
    "siglip2": "SigLIP 2",
    "vit_mae": "MAE",
    "vit": "",
    "convnext": "",
    "convnextv2": "V2",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2",
    "dinov3_vit": "DINOv3",
    "dinov3_convnext": "DINOv3",
}


def _describe(model: Any, preprocessing: Any, kind: str, folder: Path) -> dict[str, Any]:
    from training.models.architectures import ConvNeXtConfig, ViTConfig

    family = _NAMES[kind.removesuffix("_vision_model")]
    config = model.config if hasattr(model, "config") else model.network.config
    if isinstance(config, ViTConfig):
        shape, width, patch = f"ViT {config.depth}x{config.dim}", config.dim, config.patch_size
    elif isinstance(config, ConvNeXtConfig):
        shape, width, patch = "ConvNeXt " + "-".join(map(str, config.dims)), config.dim, config.stride
    elif hasattr(config, "hidden_sizes"):
        shape, width = "ConvNeXt " + "-".join(map(str, config.hidden_sizes)), config.hidden_sizes[-1]
        patch = model.patch_size
    else:
        shape, width = f"ViT {config.num_hidden_layers}x{config.hidden_size}", config.hidden_size
        patch = model.patch_size
    convolutional = shape.startswith("ConvNeXt")
    pooled = "mean of the last map, then the final norm" if convolutional else "CLS token after the final norm"
    return {
        "model_type": kind,
        "architecture": f"{family} {shape}".strip() + ("" if convolutional else f", patch {patch}"),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "width": width,
        "patch_size": patch,
        "input_side": preprocessing.crop,
        "representation": getattr(model, "representation", pooled),
        "digest": network_digest(folder),
    }


def _title(source: str) -> str:
    if hub := hub_model(source):
        return hub.model
    if source.startswith(REGISTERED):
        name, _, version = source.removeprefix(REGISTERED).strip("/").partition("/")
        return f"{name} v{version}"
    return shown_url(source.rstrip("/"))
