"""The line, or a family of students, as the YAML that the Kubeflow UI takes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from components.common.params import Params
from foundry.errors import UserError
from foundry.home import REPOSITORY
from foundry.storage import write_atomically

BUILD = REPOSITORY / "pipelines" / "build"


def default_path(params: Params) -> Path:
    """Where the pipeline that ``params`` ask for is written, where nobody says."""
    return BUILD / ("family.yaml" if params.inputs.teacher else "line.yaml")


def compile_line(params: Params, path: Path, image: str | None = None) -> Path:
    """Write the compiled pipeline with the defaults of ``params`` to ``path``; the same inputs give the same bytes.

    ``image`` names the container image of the steps (else FOUNDRY_IMAGE, else the project's default name).

    Raises:
        UserError: ``path`` is a folder, or does not end in .yaml.
    """
    if path.is_dir() or path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{path}: name a file that ends in .yaml")
    if image:
        _check_image(image)
        os.environ["FOUNDRY_IMAGE"] = image  # read where the components are defined, at the import below
    from kfp import compiler

    from pipelines.graph import pipeline_of

    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(None):
        fresh = Path(scratch) / "line.yaml"
        compiler.Compiler().compile(pipeline_of(params, params.curation.embedding.fan_out), str(fresh))
        write_atomically(path, _HEADER + _without_header(fresh.read_text(encoding="utf-8")))
    return path


_HEADER = "# For the upload page of Kubeflow Pipelines; written by `python -m pipelines compile`.\n"


def _without_header(text: str) -> str:
    """kfp begins the file with a comment that lists dict defaults in an order of chance."""
    lines = text.splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "".join(lines[first:])


def _check_image(image: str) -> None:
    if not image or any(character.isspace() for character in image):
        raise UserError(f"--image '{image}': not the name of a container image")
