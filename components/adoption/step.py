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
    """What names the network, its heads included."""
    from components.adoption.adopt import digest_with_heads
    from components.common.model_inputs import network_folder

    return digest_with_heads(network_folder(url))


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
)
