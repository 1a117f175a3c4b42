"""From encoded images or pixels to embeddings with ONNX Runtime. Knows nothing of Triton."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from foundry.images import DecodeLimits, ImageError, Preprocessing, decode_image

MODEL_FILE = "model.onnx"
PREPROCESSOR_FILE = "preprocessor_config.json"
DESCRIPTION_FILE = "serving.json"


class EmbeddingModel:
    """The network of one version folder with its preprocessing.

    ``threads`` bounds both the decoding and the network; 0 means one per usable core. ``device`` None is the CPU, a
    number that GPU (when this ONNX Runtime has CUDA).
    """

    def __init__(
        self,
        folder: Path,
        *,
        threads: int = 0,
        max_image_bytes: int | None = None,
        max_image_pixels: int | None = None,
        device: int | None = None,
    ) -> None:
        import onnxruntime

        description = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        self.digest: str = description["digest"]
        self.resolution: int = description["resolution"]
        self.preprocessing = Preprocessing.from_config(
            json.loads((folder / PREPROCESSOR_FILE).read_text(encoding="utf-8"))
        )
        changes = {"max_bytes": max_image_bytes, "max_pixels": max_image_pixels}
        self.limits = replace(DecodeLimits(), **{name: value for name, value in changes.items() if value})
        self.threads = threads or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # Threads that spin while idle take the cores from the decoding of the next batch and from other models.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers: list[Any] = ["CPUExecutionProvider"]
        if device is not None and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device}))
        self._session = onnxruntime.InferenceSession(str(folder / MODEL_FILE), options, providers=providers)

    def decode(self, images: Sequence[bytes]) -> list[np.ndarray | ImageError]:
        """For each encoded image its pixels, float32 (3, S, S), or what is wrong with it."""
        if len(images) <= 1 or self.threads == 1:
            return [self._decode_one(image) for image in images]
        return list(self._pool.map(self._decode_one, images))

    def _decode_one(self, data: bytes) -> np.ndarray | ImageError:
        try:
            return self.preprocessing(decode_image(_payload(data, self.limits), self.limits))
        except ImageError as error:
            return error

    def run(self, pixels_BCHW: np.ndarray, patch_features: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """(embedding (B, D), patch features (B, N, D) or None) of float32 pixels (B, 3, S, S)."""
        names = ["embedding", "patch_features"] if patch_features else ["embedding"]
        outputs = self._session.run(names, {"pixels": np.ascontiguousarray(pixels_BCHW, dtype=np.float32)})
        return outputs[0], outputs[1] if patch_features else None

    def warm_up(self, batch_size: int) -> None:
        """Run once at batch 1 and once at ``batch_size``, so that the first request finds memory and threads ready."""
        for count in sorted({1, batch_size}):
            self.run(np.zeros((count, 3, self.resolution, self.resolution), np.float32), patch_features=True)

    def close(self) -> None:
        """End the decoding threads."""
        self._pool.shutdown()


def _payload(data: bytes, limits: DecodeLimits) -> bytes:
    """The image itself: ``data``, or what a ``data:...;base64,`` URI (RFC 2397) carries."""
    if not data.startswith(b"data:"):
        return data
    header, separator, body = data[:256].partition(b",")
    if not separator or not header.endswith(b";base64"):
        raise ImageError("not-an-image", "a data: URI needs the form data:image/TYPE;base64,DATA")
    start = len(header) + 1
    if (len(data) - start) * 3 // 4 > limits.max_bytes + 2:
        raise ImageError("too-many-bytes", f"{len(data)} bytes of base64, allowed {limits.max_bytes} decoded")
    try:
        return base64.b64decode(data[start:], validate=True)
    except binascii.Error as error:
        raise ImageError("corrupt", f"base64: {error}") from None
