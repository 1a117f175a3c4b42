"""The registered model as MLflow loads it ("models from code"): nothing is unpickled.

MLflow copies this file into every version and runs it from there, with the ``foundry`` package beside it. It reads
``artifacts/export`` (safetensors and configuration in the Hugging Face layout) and decodes images as training did.

``predict({"pixels": array})`` takes float32 (B, 3, H, W), preprocessed; H and W are multiples of the patch size.
``unwrap_python_model().embed([bytes, ...])`` takes encoded images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np


class Embedder(mlflow.pyfunc.PythonModel):
    """One frozen backbone: pixels or encoded images in, embeddings and patch features out."""

    def load_context(self, context: Any) -> None:
        """Load the network in fp32 on the device that ``model_config`` names (``cpu`` where it names none)."""
        import torch
        from transformers import AutoModel

        from foundry.images import Preprocessing

        export = Path(context.artifacts["export"])
        self._device = torch.device((context.model_config or {}).get("device", "cpu"))
        network = AutoModel.from_pretrained(export, local_files_only=True, use_safetensors=True, dtype=torch.float32)
        self._network = network.eval().to(self._device)
        self._leading_tokens = 1 + getattr(network.config, "num_register_tokens", 0)
        self.preprocessing = Preprocessing.from_config(json.loads((export / "preprocessor_config.json").read_text()))

    def predict(self, context: Any, model_input: Any, params: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
        """``{"embedding": float32 (B, D)}`` and, where ``params`` has ``patch_features: true``, that too (B, N, D).

        ``model_input``: float32 pixels (B, 3, H, W), as they are or under the name ``pixels``; or encoded images as a
        sequence of bytes, as they are or under the name ``image``.
        """
        import torch

        if isinstance(model_input, Mapping):
            (name,) = set(model_input) & {"pixels", "image"} or {"neither 'pixels' nor 'image'"}
            if name not in model_input:
                raise ValueError(f"expected an input named 'pixels' or 'image', found {sorted(model_input)}")
            model_input = model_input[name]
        encoded = not isinstance(model_input, np.ndarray) or model_input.dtype.kind in "OS"
        pixels = self.pixels(list(model_input)) if encoded else np.asarray(model_input, np.float32)
        with torch.inference_mode():
            output = self._network(pixel_values=torch.from_numpy(pixels).to(self._device))
        result = {"embedding": output.pooler_output.float().cpu().numpy()}
        if params and params.get("patch_features"):
            result["patch_features"] = output.last_hidden_state[:, self._leading_tokens :].float().cpu().numpy()
        return result

    def pixels(self, images: Sequence[bytes]) -> np.ndarray:
        """Encoded images as the network takes them, float32 (B, 3, crop, crop). Raises ``ImageError``."""
        from foundry.images import decode_image

        return np.stack([self.preprocessing(decode_image(bytes(image))) for image in images])

    def embed(self, images: Sequence[bytes]) -> np.ndarray:
        """Embeddings of encoded images, float32 (B, D)."""
        return self.predict(None, images)["embedding"]


mlflow.models.set_model(Embedder())
