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
        from transformers.utils import logging

        from foundry.images import Preprocessing
        from foundry.vector_math import settle_vector_math

        settle_vector_math(torch)
        export = Path(context.artifacts["export"])
        self._device = torch.device((context.model_config or {}).get("device", "cpu"))
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        network = AutoModel.from_pretrained(export, local_files_only=True, use_safetensors=True, dtype=torch.float32)
        if bars:
            logging.enable_progress_bar()
        self._network = network.eval().to(self._device)
        self._leading_tokens = 1 + getattr(network.config, "num_register_tokens", 0)
        self.preprocessing = Preprocessing.from_config(json.loads((export / "preprocessor_config.json").read_text()))

    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> dict[str, np.ndarray]:
        """``{"embedding": float32 (B, D)}`` and, where ``params`` has ``patch_features: true``, that too (B, N, D).

        ``model_input``: float32 pixels (B, 3, H, W), as they are or under the name ``pixels``; or encoded images as a
        sequence of bytes, as they are or under the name ``image``. (Of the hint ``np.ndarray`` MLflow makes no schema;
        the model's signature is one.)
        """
        import torch

        given: Any = model_input
        if isinstance(given, Mapping):
            name = next((name for name in ("pixels", "image") if name in given), None)
            if name is None:
                raise ValueError(f"expected an input named 'pixels' or 'image', found {sorted(given)}")
            given = given[name]
        encoded = not isinstance(given, np.ndarray) or given.dtype.kind in "OS"
        pixels = self.pixels(list(given)) if encoded else np.asarray(given, np.float32)
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
        return self.predict(None, self.pixels(images))["embedding"]


mlflow.models.set_model(Embedder())
