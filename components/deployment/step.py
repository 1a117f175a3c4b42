"""Serve the champions by Triton: a candidate first, published when it reproduces its golden images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.common.step import InputSpec, Step
from components.deployment.config import DeploymentConfig


def run(config: DeploymentConfig, inputs: Mapping[str, str], output: Path) -> dict[str, Any]:
    """Make the served versions what the registry's champions are, and write ``deployment.json``.

    Raises :class:`foundry.errors.UserError` where a champion does not give its recorded embeddings (the versions served
    before are untouched then) and where the server does not start.
    """
    from components.deployment.deploy import deploy_champions

    return deploy_champions(config, Path(inputs["registration"]), output)


STEP = Step(
    name="deployment",
    summary="Serve the champions by Triton, each only if it reproduces its golden images.",
    config=DeploymentConfig,
    inputs=(InputSpec("registration", "the registered students: the result of registration"),),
    run=run,
    code=("components.deployment", "serving", "foundry"),
    pure=False,
)
