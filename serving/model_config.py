"""``config.pbtxt`` of a served model, and reading back the versions it serves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.triton_backend.tensors import EMBEDDING, IMAGE, MODEL_DIGEST, PATCH_FEATURES, PIXELS


@dataclass(frozen=True)
class ServingOptions:
    """How a model is served; the same for all of its versions."""

    max_batch_size: int = 16
    """Images a request may hold, and the most that requests are joined to."""
    queue_delay_microseconds: int = 500
    """How long the first request of a batch may wait for others."""
    max_queue_size: int = 256
    """Requests that may wait; further ones get 503 at once."""
    instances: int = 1
    """Processes, each with the weights of its own. instances x threads should not pass the number of cores."""
    threads: int = 0
    """Threads of one instance for decoding and for the network; 0: cores / instances."""
    max_image_bytes: int = 64 << 20
    """Encoded size above which an image is refused."""
    max_image_pixels: int = 100_000_000
    """Width x height above which an image is refused before it is decoded."""
    environment: Path | None = None
    """Virtual environment of the Python backend; None: that of the server (an image with the packages built in)."""


def config_text(name: str, versions: Sequence[int], options: ServingOptions) -> str:
    """The protobuf text of ``config.pbtxt`` for model ``name`` that serves ``versions``.

    Sizes that differ between versions (resolution, dimension, number of patches) are variable; the version checks its
    own. Both inputs are optional for Triton: the model wants exactly one of them and says so.
    """
    parameters = {
        "threads": str(options.threads),
        "max_image_bytes": str(options.max_image_bytes),
        "max_image_pixels": str(options.max_image_pixels),
    }
    if options.environment is not None:
        parameters["EXECUTION_ENV_PATH"] = str(options.environment)
    entries = "\n".join(
        f'parameters {{ key: "{key}" value {{ string_value: {_quoted(value)} }} }}' for key, value in parameters.items()
    )
    return f"""\
name: {_quoted(name)}
backend: "python"
max_batch_size: {options.max_batch_size}
input [
  {{ name: "{IMAGE}" data_type: TYPE_STRING dims: [ 1 ] optional: true }},
  {{ name: "{PIXELS}" data_type: TYPE_FP32 dims: [ 3, -1, -1 ] optional: true }}
]
output [
  {{ name: "{EMBEDDING}" data_type: TYPE_FP32 dims: [ -1 ] }},
  {{ name: "{PATCH_FEATURES}" data_type: TYPE_FP32 dims: [ -1, -1 ] }},
  {{ name: "{MODEL_DIGEST}" data_type: TYPE_STRING dims: [ 1 ] }}
]
version_policy {{ specific {{ versions: [ {", ".join(map(str, sorted(versions)))} ] }} }}
dynamic_batching {{
  max_queue_delay_microseconds: {options.queue_delay_microseconds}
  default_queue_policy {{ max_queue_size: {options.max_queue_size} }}
}}
instance_group [ {{ count: {options.instances} kind: KIND_AUTO }} ]
{entries}
"""


def served_versions(text: str) -> list[int]:
    """The versions that a ``config.pbtxt`` written by :func:`config_text` serves, ascending."""
    found = re.search(r"version_policy \{ specific \{ versions: \[ ([0-9, ]*) \] \} \}", text)
    return sorted(int(number) for number in found.group(1).split(",") if number.strip()) if found else []


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
