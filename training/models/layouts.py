"""Names and shapes of weights in official files and in Hugging Face files, both ways.

In memory our networks use the official DINOv3 names. Every function here takes and returns plain dictionaries of
tensors without changing its input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from training.models.architectures import Architecture, ConvNeXtConfig, ViTConfig

State = dict[str, Tensor]

_V3_GLOBAL = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "storage_tokens": "embeddings.register_tokens",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.bias",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
}
_V2_GLOBAL = {
    **_V3_GLOBAL,
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_V3_BLOCK = {
    "attn.proj": "attention.o_proj",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.up_proj",
    "mlp.w3": "mlp.down_proj",
}
_V2_BLOCK = {
    **_V3_BLOCK,
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.w3": "mlp.weights_out",
}
_V3_QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
_V2_QKV = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
_CONVNEXT = (
    (r"downsample_layers\.(\d+)\.(\d+)\.", r"stages.\1.downsample_layers.\2."),
    (r"stages\.(\d+)\.(\d+)\.dwconv\.", r"stages.\1.layers.\2.depthwise_conv."),
    (r"stages\.(\d+)\.(\d+)\.norm\.", r"stages.\1.layers.\2.layer_norm."),
    (r"stages\.(\d+)\.(\d+)\.pwconv([12])\.", r"stages.\1.layers.\2.pointwise_conv\3."),
    (r"stages\.(\d+)\.(\d+)\.gamma", r"stages.\1.layers.\2.gamma"),
    (r"norm\.", r"layer_norm."),
)
_NOT_IN_HUGGING_FACE = ("rope_embed.", "local_cls_norm.")


def to_hugging_face(state: Mapping[str, Tensor], config: Architecture) -> State:
    """The weights of one of our networks under the names and shapes of its transformers class's file."""
    if isinstance(config, ConvNeXtConfig):
        return {_convnext_name(name): tensor for name, tensor in state.items()}
    learned = config.position == "learned"
    names, parts, qkv = (_V2_GLOBAL, _V2_BLOCK, _V2_QKV) if learned else (_V3_GLOBAL, _V3_BLOCK, _V3_QKV)
    result: State = {}
    for name, tensor in state.items():
        if name.startswith(_NOT_IN_HUGGING_FACE) or name.endswith("bias_mask"):
            continue
        if name in names:
            result[names[name]] = tensor
            continue
        _, layer, part = name.split(".", 2)
        stem = f"encoder.layer.{layer}." if learned else f"layer.{layer}."
        if part.startswith("attn.qkv."):
            kind = part.rsplit(".", 1)[1]
            for index, (target, part_of_three) in enumerate(zip(qkv, tensor.chunk(3), strict=True)):
                if not (kind == "bias" and index == 1 and not config.key_bias):
                    result[f"{stem}{target}.{kind}"] = part_of_three
        elif learned and part.startswith("mlp.w1."):
            other = state[name.replace("mlp.w1.", "mlp.w2.")]
            result[f"{stem}mlp.weights_in.{part.rsplit('.', 1)[1]}"] = torch.cat((tensor, other))
        elif not (learned and part.startswith("mlp.w2.")):
            result[stem + _renamed(part, parts)] = tensor
    if config.layer_scale is None:
        stem = "encoder.layer" if learned else "layer"
        for number in range(config.depth):
            for scale in (1, 2):
                result[f"{stem}.{number}.layer_scale{scale}.lambda1"] = state["norm.weight"].new_ones(config.dim)
    if "mask_token" not in state:
        result["embeddings.mask_token"] = state["norm.weight"].new_zeros(1, config.dim)
    if not learned:
        result.setdefault("embeddings.register_tokens", state["norm.weight"].new_zeros(1, 0, config.dim))
        result["embeddings.mask_token"] = result["embeddings.mask_token"].view(1, 1, config.dim)
    return result


def from_hugging_face(state: Mapping[str, Tensor], config: Architecture) -> State:
    """The weights of a Hugging Face file under our names. ``config`` is what the file's ``config.json`` describes.

    Accepts both the names on disk and those that transformers 5 has in memory, with or without a wrapper's prefix.
    """
    state = {_bare(name): tensor for name, tensor in state.items()}
    if isinstance(config, ConvNeXtConfig):
        back = {_convnext_name(name): name for name in _convnext_names(config)}
        return {back.get(name, name): tensor for name, tensor in state.items()}
    learned = config.position == "learned"
    names = {theirs: ours for ours, theirs in (_V2_GLOBAL if learned else _V3_GLOBAL).items()}
    gated = config.ffn == "swiglu"
    result: State = {}
    thirds: dict[tuple[str, str], list[Tensor | None]] = {}
    for name, tensor in state.items():
        if name in names:
            if name != "embeddings.register_tokens" or config.registers:
                result[names[name]] = tensor.view(1, -1) if name == "embeddings.mask_token" else tensor
            continue
        match = re.fullmatch(r"(?:encoder\.)?layer\.(\d+)\.(.+)", name)
        if match is None:
            result[name] = tensor
            continue
        layer, part = match.groups()
        attention = re.fullmatch(r"attention\.(?:attention\.)?(?:([qkv])_proj|(query|key|value))\.(weight|bias)", part)
        if attention is not None:
            third = "qkv".index(attention[1] or attention[2][0])
            thirds.setdefault((layer, attention[3]), [None, None, None])[third] = tensor
        elif part.startswith("mlp.weights_in."):
            kind = part.rsplit(".", 1)[1]
            result[f"blocks.{layer}.mlp.w1.{kind}"], result[f"blocks.{layer}.mlp.w2.{kind}"] = tensor.chunk(2)
        else:
            result[f"blocks.{layer}.{_our_block_part(part, gated)}"] = tensor
    for (layer, kind), (query, key, value) in thirds.items():
        if query is None or value is None or (key is None and kind == "weight"):
            continue  # reported as a missing weight by whoever loads this
        key = torch.zeros_like(query) if key is None else key
        result[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat((query, key, value))
    return _with_buffers(result, config)


def to_official(state: Mapping[str, Tensor], config: Architecture) -> State:
    """The weights of one of our networks as the official code of its generation saves them."""
    if isinstance(config, ConvNeXtConfig):
        duplicate = len(config.dims) - 1
        copies = {f"norms.{duplicate}.{kind}": state[f"norm.{kind}"] for kind in ("weight", "bias")}
        return {**state, **copies}
    if config.position == "rope":
        return dict(state)
    result: State = {}
    for name, tensor in state.items():
        if name == "storage_tokens":
            result["register_tokens"] = tensor
        elif ".mlp.w1." in name:
            result[name.replace(".w1.", ".w12.")] = torch.cat((tensor, state[name.replace(".w1.", ".w2.")]))
        elif ".mlp.w2." not in name:
            result[name] = tensor
    return result


def from_official(state: Mapping[str, Tensor], config: Architecture) -> State:
    """The weights of an official file (see :func:`unwrapped`) under our names."""
    if isinstance(config, ConvNeXtConfig):
        return {name: tensor for name, tensor in state.items() if not name.startswith("norms.")}
    result: State = {}
    for name, tensor in state.items():
        if name == "register_tokens":
            result["storage_tokens"] = tensor
        elif ".mlp.w12." in name:
            result[name.replace(".w12.", ".w1.")], result[name.replace(".w12.", ".w2.")] = tensor.chunk(2)
        elif not name.endswith("bias_mask") and not name.startswith("rope_embed."):
            result[name] = tensor
    return _with_buffers(result, config)


def unwrapped(checkpoint: Mapping[str, object]) -> State:
    """The backbone's weights inside an official checkpoint: public file, training checkpoint or teacher file.

    Takes ``teacher`` where there is one, drops heads, and strips what data parallelism, compilation, checkpointing and
    chunked blocks put into the names.
    """
    inner = checkpoint.get("teacher", checkpoint.get("model", checkpoint))
    if not isinstance(inner, Mapping):
        inner = checkpoint
    tensors = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    state: State = {}
    wrapped = any("backbone." in name for name in tensors)
    for name, tensor in tensors.items():
        name = re.sub(r"(^|\.)(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)(?=\.)", r"", name).lstrip(".")
        name = name.removeprefix("module.")
        if wrapped and not name.startswith("backbone."):
            continue
        name = re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", name.removeprefix("backbone."))
        if not name.startswith(("head.", "dino_head.", "ibot_head.")):
            state[name] = tensor
    return state


def describe_official(state: Mapping[str, Tensor]) -> Architecture:
    """The architecture behind an official file's backbone weights, read from their names and shapes.

    Raises KeyError or ValueError where the names are none of the three generations'.
    """
    if "downsample_layers.0.0.weight" in state:
        stages = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("stages."))
        blocks = [
            {name.split(".")[2] for name in state if name.startswith(f"stages.{stage}.")} for stage in range(stages)
        ]
        dims = [state[f"stages.{stage}.0.gamma"].numel() for stage in range(stages)]
        channels = state["downsample_layers.0.0.weight"].shape[1]
        return ConvNeXtConfig(depths=tuple(map(len, blocks)), dims=tuple(dims), in_channels=channels)
    weight = state["patch_embed.proj.weight"]
    dim, channels, patch, _ = weight.shape
    values: dict[str, object] = {
        "dim": dim,
        "depth": 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        "patch_size": patch,
        "in_channels": channels,
        "mask_token": "mask_token" in state,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in state else None,
        "local_cls_norm": "local_cls_norm.weight" in state,
    }
    for name in ("storage_tokens", "register_tokens"):
        if name in state:
            values["registers"] = state[name].shape[1]
    values.setdefault("registers", 0)
    for name, ffn, parts in (("fc1", "mlp", 1), ("w1", "swiglu", 1), ("w12", "swiglu", 2)):
        if f"blocks.0.mlp.{name}.weight" in state:
            values |= {"ffn": ffn, "ffn_hidden": state[f"blocks.0.mlp.{name}.weight"].shape[0] // parts}
    if "pos_embed" in state:
        registers = bool(values["registers"])
        values |= {
            "position": "learned",
            "position_grid": round((state["pos_embed"].shape[1] - 1) ** 0.5),
            "position_offset": 0.0 if registers else 0.1,
            "position_antialias": registers,
            "heads": dim // 64,
            "key_bias": values["qkv_bias"],
            "norm_eps": 1e-6,
        }
    else:
        periods = state["rope_embed.periods"].double()
        quarter = periods.numel()
        # the longest period is base^(1 - 1/F); rounding undoes what bfloat16 does to a stored one
        base = float(round(float(periods[-1]) ** (quarter / max(quarter - 1, 1)))) if quarter > 1 else 100.0
        masked = "blocks.0.attn.qkv.bias_mask" in state
        values |= {"heads": dim // (4 * quarter), "rope_base": base}
        values["key_bias"] = bool(values["qkv_bias"]) and not masked
    return ViTConfig.model_validate(values)


def _with_buffers(state: State, config: ViTConfig) -> State:
    """Adds what files may leave out because the architecture determines it."""
    if config.position == "rope":
        from training.models.rope import rope_periods

        state["rope_embed.periods"] = rope_periods(config)
    if config.qkv_bias and not config.key_bias:
        mask = torch.ones(3 * config.dim)
        mask[config.dim : 2 * config.dim] = 0
        for layer in range(config.depth):
            state[f"blocks.{layer}.attn.qkv.bias_mask"] = mask.clone()
    return state


def _renamed(part: str, parts: Mapping[str, str]) -> str:
    """``part`` (say ``mlp.fc1.weight``) with its module replaced by ``parts``."""
    if part in parts:
        return parts[part]
    stem, kind = part.rsplit(".", 1)
    return f"{parts[stem]}.{kind}"


def _our_block_part(part: str, gated: bool) -> str:
    """Our name of a block's weight from any of the Hugging Face names."""
    aliases = {
        "attention.o_proj": "attn.proj",
        "attention.output.dense": "attn.proj",
        "mlp.gate_proj": "mlp.w1",
        "mlp.up_proj": "mlp.w2" if gated else "mlp.fc1",
        "mlp.down_proj": "mlp.w3" if gated else "mlp.fc2",
        "mlp.weights_out": "mlp.w3",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
    }
    if part in aliases:
        return aliases[part]
    stem, kind = part.rsplit(".", 1)
    return f"{aliases.get(stem, stem)}.{kind}"


def _convnext_name(name: str) -> str:
    for pattern, replacement in _CONVNEXT:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return name


def _convnext_names(config: ConvNeXtConfig) -> list[str]:
    from training.models.build import build_backbone

    return list(build_backbone(config, device="meta").state_dict())


def _bare(name: str) -> str:
    return re.sub(r"^(model|dinov2|dinov2_with_registers|dinov3_vit|dinov3_convnext)\.", "", name)
