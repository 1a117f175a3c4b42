"""The face that Triton's Python backend calls: requests in, responses out; an error stays with its request."""

from __future__ import annotations

import itertools
import json
import os
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from foundry.images import ImageError
from serving.triton_backend.embedding import EmbeddingModel
from serving.triton_backend.metrics import DECODE_SECONDS, INFER_SECONDS, INTERNAL_ERROR, ServingMetrics
from serving.triton_backend.tensors import EMBEDDING, IMAGE, MODEL_DIGEST, PATCH_FEATURES, PIXELS


class Refused(Exception):
    """A request that cannot be answered; the text goes to the caller with INVALID_ARG (HTTP 400)."""


class Work:
    """One request on its way: encoded images or pixels, later its rows of the batch, or its error."""

    def __init__(self, request: Any) -> None:
        self.request = request
        self.outputs: set[str] = set(request.requested_output_names())
        self.images: list[bytes] = []
        self.pixels_BCHW = np.empty((0, 3, 0, 0), np.float32)
        self.tensors: list[Any] = []
        self.error: Any = None


class TritonPythonModel:
    """Loaded once for each instance of each served version."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the network and run it once; the version is ready when this returns."""
        config = json.loads(args["model_config"])
        parameters = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        instances = sum(int(group["count"]) for group in config["instance_group"])
        gpu = args["model_instance_kind"] == "GPU"
        self.model = EmbeddingModel(
            Path(args["model_repository"]) / args["model_version"],
            threads=int(parameters["threads"]) or max(1, len(os.sched_getaffinity(0)) // instances),
            max_image_bytes=int(parameters["max_image_bytes"]),
            max_image_pixels=int(parameters["max_image_pixels"]),
            device=int(args["model_instance_device_id"]) if gpu else None,
        )
        self.metrics = ServingMetrics(pb_utils, args["model_name"], args["model_version"])
        self.model.warm_up(max(1, int(config["max_batch_size"])))

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request. Nothing is raised: that would fail the whole batch and show our paths."""
        work = [Work(request) for request in requests]
        for item in work:
            self._attempt([item], self._read)
        self._attempt([item for item in work if item.images], self._decode)
        self._attempt([item for item in work if item.error is None], self._infer)
        return [
            pb_utils.InferenceResponse(output_tensors=[], error=item.error)
            if item.error is not None
            else pb_utils.InferenceResponse(output_tensors=item.tensors)
            for item in work
        ]

    def finalize(self) -> None:
        """Called when the version is unloaded."""
        self.model.close()

    def _attempt(self, work: Sequence[Work], action: Any) -> None:
        """Run ``action`` on ``work``; what it raises becomes the error of these requests."""
        if not work:
            return
        try:
            action(work)
        except Refused as error:
            for item in work:
                item.error = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception:
            pb_utils.Logger.log_error(traceback.format_exc())
            for item in work:
                self.metrics.count(INTERNAL_ERROR, max(1, len(item.images) or len(item.pixels_BCHW)))
                item.error = pb_utils.TritonError("internal error, see the server's log", pb_utils.TritonError.INTERNAL)

    def _read(self, work: Sequence[Work]) -> None:
        (item,) = work
        image = pb_utils.get_input_tensor_by_name(item.request, IMAGE)
        pixels = pb_utils.get_input_tensor_by_name(item.request, PIXELS)
        if (image is None) == (pixels is None):
            raise Refused(f"give exactly one of the inputs '{IMAGE}' and '{PIXELS}'")
        if image is not None:
            item.images = image.as_numpy().reshape(-1).tolist()
            return
        array = pixels.as_numpy()
        size = self.model.resolution
        if array.shape[1:] != (3, size, size):
            raise Refused(f"'{PIXELS}' has shape {list(array.shape)}, this model takes [B, 3, {size}, {size}]")
        if not np.isfinite(array).all():
            raise Refused(f"'{PIXELS}' holds values that are not finite")
        item.pixels_BCHW = array

    def _decode(self, work: Sequence[Work]) -> None:
        """Decode the images of all requests together, on the instance's threads."""
        start = time.perf_counter()
        decoded = iter(self.model.decode([image for item in work for image in item.images]))
        self.metrics.observe(DECODE_SECONDS, time.perf_counter() - start)
        for item in work:
            rows: list[np.ndarray] = []
            refusals: list[str] = []
            for index, pixels in enumerate(itertools.islice(decoded, len(item.images))):
                if isinstance(pixels, ImageError):
                    self.metrics.count(pixels.reason)
                    refusals.append(f"image {index}: {pixels} [{pixels.reason}]")
                else:
                    rows.append(pixels)
            if refusals:
                self.metrics.count("ok", len(rows))
                more = f"; and {len(refusals) - 1} more" if len(refusals) > 1 else ""
                item.error = pb_utils.TritonError(refusals[0] + more, pb_utils.TritonError.INVALID_ARG)
            else:
                item.pixels_BCHW = np.stack(rows)

    def _infer(self, work: Sequence[Work]) -> None:
        """Run all rows as one batch and give each request its part."""
        arrays = [item.pixels_BCHW for item in work]
        batch = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        start = time.perf_counter()
        embedding, patches = self.model.run(batch, any(PATCH_FEATURES in item.outputs for item in work))
        self.metrics.observe(INFER_SECONDS, time.perf_counter() - start)
        self.metrics.count("ok", len(batch))
        row = 0
        for item, array in zip(work, arrays, strict=True):
            rows = slice(row, row := row + len(array))
            results = {EMBEDDING: embedding[rows]}
            results[MODEL_DIGEST] = np.full((len(array), 1), self.model.digest.encode(), dtype=object)
            if patches is not None:
                results[PATCH_FEATURES] = patches[rows]
            item.tensors = [pb_utils.Tensor(name, value) for name, value in results.items() if name in item.outputs]
