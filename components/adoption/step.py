"""Take a network that is there as a teacher: a training run, public weights or a registered model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.adoption.config import AdoptionConfig
from components.common.step import InputSpec, Step


def run(config: AdoptionConfig, inputs: Mapping[str, str], output: Path) -> dict[str, Any]:
    """Lay the network of the folder ``inputs["network"]`` out like the exports of a run, into ``output``."""
    from components.adoption.adopt import adopt

    return adopt(config, Path(inputs["network"]), output)


def _digest(url: str) -> str:
    """What names the network, its heads and its terms included."""
    from components.adoption.adopt import digest_with_terms
    from components.common.model_inputs import network_folder

    return digest_with_terms(network_folder(url))


def _disk_bytes(config: AdoptionConfig, inputs: Mapping[str, str]) -> int:
    from components.adoption.adopt import needed_bytes

    return needed_bytes(Path(inputs["network"]))


STEP = Step(
    name="adoption",
    summary="Take a network that is there as a teacher: a training run, public weights or a registered model.",
    config=AdoptionConfig,
    inputs=(
        InputSpec(
            "network",
            "network to learn from: a training run, a Hugging Face folder or models:/NAME@ALIAS",
            kind="model",
            digest=_digest,
        ),
    ),
    run=run,
    code=("components.adoption.adopt",),
    disk_bytes=_disk_bytes,
)
