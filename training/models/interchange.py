"""Folders in the Hugging Face layout, and official weight files.

An export is ``config.json`` + ``model.safetensors`` + ``preprocessor_config.json`` (+ ``heads.safetensors``), of
which ``transformers.AutoModel.from_pretrained`` makes a model with the same features: ``pooler_output`` is our
``cls``, the last tokens of ``last_hidden_state`` are our ``patches``. transformers itself is not used here. Equal
weights give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foundry.errors import UserError
from foundry.storage import write_atomically
from training.models.architectures import (
    Architecture,
    ConvNeXtConfig,
    ViTConfig,
    check_expressible,
    dinov2_mlp_ratio,
    transformers_class,
)
from training.models.build import Backbone, build_backbone
from training.models.heads import ProjectionHead
from training.models.layouts import (
    State,
    describe_official,
    from_hugging_face,
    from_official,
    to_hugging_face,
    unwrapped,
)

if TYPE_CHECKING:
    from foundry.images.preprocess import Preprocessing

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PREPROCESSOR_FILE = "preprocessor_config.json"
HEADS_FILE = "heads.safetensors"


def save_export(
    model: Backbone,
    folder: str | Path,
    preprocessing: Preprocessing,
    heads: Mapping[str, ProjectionHead] | None = None,
) -> None:
    """Write ``model`` (float32) with its ``preprocessing`` and ``heads`` (by name: ``dino``, ``ibot``) into ``folder``.

    A learned position embedding without registers is resampled to the grid of ``preprocessing.crop``, because
    transformers resamples it differently from the official code. Training-only parts (local norm, jitter) stay
    behind.
    """
    config = check_expressible(model.config)
    state = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in model.state_dict().items()}
    if isinstance(config, ViTConfig) and config.position == "learned" and not config.registers:
        config, state = _at_grid(config, state, preprocessing.crop // config.patch_size)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_safetensors(folder / WEIGHTS_FILE, to_hugging_face(state, config))
    if heads:
        stored = {
            f"{name}_head.{key}": tensor for name, head in heads.items() for key, tensor in head.state_dict().items()
        }
        _write_safetensors(folder / HEADS_FILE, stored)
    _write_json(folder / PREPROCESSOR_FILE, preprocessing.to_config())
    _write_json(folder / CONFIG_FILE, hugging_face_config(config, preprocessing.crop))


def load_export(folder: str | Path) -> tuple[Backbone, Preprocessing]:
    """The model (float32, CPU, eval mode) and the preprocessing of an export or of any such Hugging Face folder.

    Raises :class:`UserError` where a file is missing or unreadable, the class is none of ours, or weights do not fit.
    """
    return load_hugging_face(folder), read_preprocessing(folder)


def load_hugging_face(folder: str | Path) -> Backbone:
    """The model (float32, CPU, eval mode) of a Hugging Face folder; see :func:`load_export`."""
    folder = Path(folder)
    document = _read_json(folder / CONFIG_FILE)
    state = _read_weights(folder)
    config = read_hugging_face_config(document, str(folder / CONFIG_FILE))
    if isinstance(config, ViTConfig) and config.mask_token and not any("mask_token" in name for name in state):
        config = config.model_copy(update={"mask_token": False})
    return _loaded(config, from_hugging_face(state, config), folder)


def read_architecture(folder: str | Path) -> Architecture:
    """The architecture of a Hugging Face folder, from its ``config.json`` alone."""
    return read_hugging_face_config(_read_json(Path(folder) / CONFIG_FILE), str(Path(folder) / CONFIG_FILE))


def read_preprocessing(folder: str | Path) -> Preprocessing:
    """The preprocessing of a Hugging Face folder."""
    from foundry.images.preprocess import Preprocessing

    return Preprocessing.from_config(_read_json(Path(folder) / PREPROCESSOR_FILE))


def load_heads(folder: str | Path) -> dict[str, ProjectionHead]:
    """The projection heads of an export by name (``dino``, ``ibot``), in eval mode.

    Raises :class:`UserError` where the export has none.
    """
    path = Path(folder) / HEADS_FILE
    state = _read_safetensors(path)
    heads = {}
    for name in sorted({key.split("_head.", 1)[0] for key in state}):
        prefix = f"{name}_head."
        heads[name] = _head({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
    return heads


def load_official(path: str | Path) -> Backbone:
    """The model (float32, CPU, eval mode) of an official DINO, DINOv2 or DINOv3 file (``.pth``, ``.safetensors``).

    Read without unpickling code. Raises :class:`UserError` where it cannot be read or is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weight file")
    if path.suffix == ".safetensors":
        checkpoint: Mapping[str, object] = _read_safetensors(path)
    else:
        import argparse

        try:
            with torch.serialization.safe_globals([argparse.Namespace]):  # DINO keeps its command line in checkpoints
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # a damaged or foreign pickle fails in any way
            reason = str(error).split("\n", 1)[0]
            raise UserError(f"{path}: not a file of plain weights ({type(error).__name__}: {reason})") from None
    state = unwrapped(checkpoint) if isinstance(checkpoint, Mapping) else {}
    try:
        config = describe_official(state)
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: not an official DINO, DINOv2 or DINOv3 backbone ({error})") from None
    return _loaded(config, from_official(state, config), path)


def inflate_channels(state: Mapping[str, Tensor], channels: int) -> State:
    """``state`` of a network for RGB images as one for ``channels`` input channels.

    New channels start with the mean of the RGB filters, fewer than three all do; then the first layer is scaled by
    3 / channels, so that its outputs keep their size. Works on official names (ViT and ConvNeXt).
    """
    inflated = dict(state)
    for name in ("patch_embed.proj.weight", "downsample_layers.0.0.weight"):
        if name in inflated:
            filters = inflated[name]
            mean = filters.mean(dim=1, keepdim=True)
            kept = filters if channels >= filters.shape[1] else mean[:, :0]
            added = mean.expand(-1, channels - kept.shape[1], -1, -1)
            inflated[name] = torch.cat((kept, added), dim=1) * (filters.shape[1] / channels)
    return inflated


def hugging_face_config(config: Architecture, image_size: int) -> dict[str, Any]:
    """The ``config.json`` of ``config`` for images of ``image_size`` pixels."""
    name = transformers_class(config)
    document: dict[str, Any] = {
        "architectures": [name],
        "dtype": "float32",
        "hidden_act": "gelu",
        "image_size": image_size,
        "initializer_range": 0.02,
        "layer_norm_eps": config.norm_eps,
        "num_channels": config.in_channels,
    }
    if isinstance(config, ConvNeXtConfig):
        return document | {
            "model_type": "dinov3_convnext",
            "depths": list(config.depths),
            "hidden_sizes": list(config.dims),
            "drop_path_rate": 0.0,
            "layer_scale_init_value": config.layer_scale,
        }
    document |= {
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "patch_size": config.patch_size,
        "layerscale_value": 1.0 if config.layer_scale is None else config.layer_scale,
        "drop_path_rate": 0.0,
    }
    gated = config.ffn == "swiglu"
    if config.position == "learned":
        document |= {
            "model_type": "dinov2_with_registers" if config.registers else "dinov2",
            "image_size": config.position_grid * config.patch_size,
            "mlp_ratio": dinov2_mlp_ratio(config),
            "qkv_bias": config.qkv_bias,
            "use_swiglu_ffn": gated,
        }
        return document | ({"num_register_tokens": config.registers} if config.registers else {"use_mask_token": True})
    return document | {
        "model_type": "dinov3_vit",
        "intermediate_size": config.hidden,
        "hidden_act": "silu" if gated else "gelu",
        "use_gated_mlp": gated,
        "num_register_tokens": config.registers,
        "query_bias": config.qkv_bias,
        "key_bias": config.key_bias,
        "value_bias": config.qkv_bias,
        "proj_bias": True,
        "mlp_bias": True,
        "rope_theta": config.rope_base,
        "pos_embed_shift": config.rope_shift,
        "pos_embed_jitter": config.rope_jitter,
        "pos_embed_rescale": config.rope_rescale,
    }


def read_hugging_face_config(document: Mapping[str, Any], source: str) -> Architecture:
    """The architecture that a ``config.json`` describes; ``source`` is its name in messages.

    Raises :class:`UserError` for a model type or an option that our networks do not have.
    """
    kind = document.get("model_type")
    readers: dict[object, Callable[[Mapping[str, Any]], Architecture]] = {
        "dinov3_vit": _dinov3_vit,
        "dinov3_convnext": _dinov3_convnext,
        "dinov2": _dinov2,
        "dinov2_with_registers": _dinov2,
    }
    if kind not in readers:
        raise UserError(f"{source}: model type {kind!r} is none of {', '.join(map(str, readers))}")
    try:
        return readers[kind](document)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{source}: {error}") from None


def _dinov3_vit(document: Mapping[str, Any]) -> ViTConfig:
    gated = document.get("use_gated_mlp", False)
    bias = document.get("query_bias", True)
    _expect(document, "hidden_act", "silu" if gated else "gelu")
    for key, expected in (("value_bias", bias), ("proj_bias", True), ("mlp_bias", True)):
        _expect(document, key, expected)
    rope = document.get("rope_parameters") or {}
    return ViTConfig(
        dim=document["hidden_size"],
        depth=document["num_hidden_layers"],
        heads=document["num_attention_heads"],
        patch_size=document.get("patch_size", 16),
        in_channels=document.get("num_channels", 3),
        ffn="swiglu" if gated else "mlp",
        ffn_hidden=document["intermediate_size"],
        registers=document.get("num_register_tokens", 0),
        qkv_bias=bias,
        key_bias=document.get("key_bias", False),
        layer_scale=document.get("layerscale_value", 1.0),
        norm_eps=document.get("layer_norm_eps", 1e-5),
        rope_base=document.get("rope_theta", rope.get("rope_theta", 100.0)),
        rope_shift=document.get("pos_embed_shift"),
        rope_jitter=document.get("pos_embed_jitter"),
        rope_rescale=document.get("pos_embed_rescale"),
    )


def _dinov3_convnext(document: Mapping[str, Any]) -> ConvNeXtConfig:
    _expect(document, "hidden_act", "gelu")
    return ConvNeXtConfig(
        depths=tuple(document["depths"]),
        dims=tuple(document["hidden_sizes"]),
        in_channels=document.get("num_channels", 3),
        layer_scale=document.get("layer_scale_init_value", 1e-6),
        norm_eps=document.get("layer_norm_eps", 1e-6),
    )


def _dinov2(document: Mapping[str, Any]) -> ViTConfig:
    _expect(document, "hidden_act", "gelu")
    registers = document.get("num_register_tokens", 4) if document["model_type"] == "dinov2_with_registers" else 0
    bias = document.get("qkv_bias", True)
    return ViTConfig(
        dim=document["hidden_size"],
        depth=document["num_hidden_layers"],
        heads=document["num_attention_heads"],
        patch_size=document["patch_size"],
        in_channels=document.get("num_channels", 3),
        ffn="swiglu" if document.get("use_swiglu_ffn", False) else "mlp",
        ffn_ratio=document.get("mlp_ratio", 4),
        registers=registers,
        qkv_bias=bias,
        key_bias=bias,
        layer_scale=document.get("layerscale_value", 1.0),
        norm_eps=document.get("layer_norm_eps", 1e-6),
        position="learned",
        position_grid=document["image_size"] // document["patch_size"],
        position_antialias=bool(registers),
    )


def _expect(document: Mapping[str, Any], key: str, expected: object) -> None:
    if document.get(key, expected) != expected:
        raise ValueError(f"{key} = {document[key]!r} is not supported here (expected {expected!r})")


def _at_grid(config: ViTConfig, state: State, grid: int) -> tuple[ViTConfig, State]:
    """The network with its position embedding resampled to ``grid`` patches a side."""
    from training.models.positions import LearnedPositions

    resampled = LearnedPositions(config)(state["pos_embed"], (grid, grid))
    return config.model_copy(update={"position_grid": grid}), {**state, "pos_embed": resampled}


def _loaded(config: Architecture, state: State, source: Path) -> Backbone:
    model = build_backbone(config, device="meta")
    expected = model.state_dict()
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    for problem, names in (("lacks", missing), ("has unknown", unknown), ("has", shapes)):
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise UserError(f"{source}: its weights do not fit its description: it {problem} {shown}")
    weights = {name: tensor.detach().to(torch.float32).contiguous() for name, tensor in state.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()


def _head(state: State) -> ProjectionHead:
    linears = sorted({int(key.split(".")[1]) for key in state if key.startswith("mlp.")})
    weight_norm = "last_layer.weight_v" in state
    prototypes, bottleneck = state["last_layer.weight_v" if weight_norm else "last_layer.weight"].shape
    first = state[f"mlp.{linears[0]}.weight"]
    with torch.device("meta"):
        head = ProjectionHead(
            first.shape[1], first.shape[0], bottleneck, prototypes, layers=len(linears), weight_norm=weight_norm
        )
    head.load_state_dict(state, strict=True, assign=True)
    return head.eval()


def _read_weights(folder: Path) -> State:
    """All tensors of ``folder``: one file, or the shards that an index names."""
    index = folder / f"{WEIGHTS_FILE}.index.json"
    if (folder / WEIGHTS_FILE).is_file() or not index.is_file():
        return _read_safetensors(folder / WEIGHTS_FILE)
    state: State = {}
    for name in sorted(set(_read_json(index)["weight_map"].values())):
        state |= _read_safetensors(folder / Path(name).name)
    return state


def _read_safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path}: no such weight file")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from None


def _write_safetensors(path: Path, state: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save

    plain = {name: tensor.detach().to("cpu", torch.float32).clone().contiguous() for name, tensor in state.items()}
    write_atomically(path, save(plain, metadata={"format": "pt"}))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a folder in the Hugging Face layout") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: expected a JSON object")
    return document


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(document, indent=2, sort_keys=True) + "\n")
