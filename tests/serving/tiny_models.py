"""Small networks with random weights in the layout that training exports, and independent embeddings of them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

SIZE = 96
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_export(folder: Path, architecture: str, seed: int = 0) -> Path:
    """A Hugging Face export (``vit`` or ``convnext``) with weights drawn from ``seed``."""
    import torch
    from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel, DINOv3ViTConfig, DINOv3ViTModel

    torch.manual_seed(seed)
    if architecture == "vit":
        model = DINOv3ViTModel(
            DINOv3ViTConfig(
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=128,
                patch_size=16,
                image_size=SIZE,
                num_register_tokens=4,
            )
        )
    else:
        model = DINOv3ConvNextModel(
            DINOv3ConvNextConfig(hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 2, 1], image_size=SIZE)
        )
    with torch.no_grad():
        for parameter in model.parameters():  # ConvNeXt's initial layer scale would hide most of the network
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    preprocessor = {
        "do_resize": True,
        "size": {"shortest_edge": SIZE},
        "do_center_crop": True,
        "crop_size": {"height": SIZE, "width": SIZE},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "image_processor_type": "DINOv3ViTImageProcessorFast",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def torch_outputs(export: Path, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(embedding (B, D), patch features (B, N, D)) by transformers in float64."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(export).double().eval()
    with torch.no_grad():
        output = model(pixel_values=torch.from_numpy(pixels).double())
    first_patch = 1 + getattr(model.config, "num_register_tokens", 0)
    return output.pooler_output.numpy(), output.last_hidden_state[:, first_patch:].numpy()


def normalised(rgb: np.ndarray) -> np.ndarray:
    """float32 (3, H, W) of uint8 (H, W, 3)."""
    return ((rgb / 255 - MEAN) / STD).transpose(2, 0, 1).astype(np.float32)


def picture(seed: int = 0, width: int = 150, height: int = 120) -> np.ndarray:
    """uint8 (height, width, 3): smooth shapes, so that resizing and JPEG behave as on photographs."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 40.0
    waves = [np.sin(x * random.uniform(0.5, 2) + y * random.uniform(0.5, 2) + random.uniform(0, 6)) for _ in range(3)]
    return ((np.stack(waves, axis=-1) + 1) * 127).astype(np.uint8)


def encoded(rgb: np.ndarray, format_name: str = "JPEG", **options: object) -> bytes:
    """``rgb`` as a file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format_name, **options)
    return buffer.getvalue()
