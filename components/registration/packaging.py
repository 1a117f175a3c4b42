"""The folder of a registered version: network, golden images, model card and the code that runs it, no pickle."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.registration.golden import AGREEMENT, largest_difference, read_golden
from components.registration.pickles import find_pickles
from foundry.errors import UserError

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

MODEL_CODE = Path(__file__).with_name("model_code.py")
REQUIREMENTS = ("torch", "transformers", "safetensors", "numpy", "pillow", "pydantic", "pyyaml")
"""Packages that the model's code needs, pinned to what is installed here."""
EXPORT_FILES = ("model.safetensors", "config.json", "preprocessor_config.json")


def latest_export(run: Path) -> Path:
    """The newest export of a training run folder or of one student in it (``export/latest`` names it).

    Raises :class:`UserError` where there is none or it is incomplete.
    """
    try:
        name = (run / "export" / "latest").read_text(encoding="utf-8").strip()
    except OSError:
        raise UserError(f"{run}: no exported model (export/latest is missing); the training did not finish") from None
    export = run / "export" / name
    for file in EXPORT_FILES:
        if not (export / file).is_file():
            raise UserError(f"{export}: not a complete export ({file} is missing)")
    return export


def count_parameters(export: Path) -> int:
    """Numbers stored in ``model.safetensors``, from its header alone."""
    with (export / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for side in tensor["shape"]:
                count *= side
            total += count
    return total


def signature(embedding_size: int) -> ModelSignature:
    """Named tensor ``pixels`` float32 (B, 3, H, W) to ``embedding`` float32 (B, D); parameter ``patch_features``."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    kind = np.dtype(np.float32)
    return ModelSignature(
        inputs=Schema([TensorSpec(kind, (-1, 3, -1, -1), "pixels")]),
        outputs=Schema([TensorSpec(kind, (-1, embedding_size), "embedding")]),
        params=ParamSchema([ParamSpec("patch_features", "boolean", False)]),
    )


def pinned_requirements() -> list[str]:
    """``package==version`` of :data:`REQUIREMENTS`, without local build tags such as ``+cpu``."""
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS]


def write_model(
    folder: Path, description: Model, *, export: Path, golden: Path, card: str, metadata: Mapping[str, Any]
) -> None:
    """Write the MLflow model ``folder`` (must not exist) and prove that it works as it stands.

    It is loaded back by MLflow and must give the golden embeddings from the encoded golden images; no file in it may
    hold a pickle. Otherwise :class:`RuntimeError`: nothing of the kind may reach the registry.
    """
    import mlflow.pyfunc

    import foundry

    size = read_golden(golden)[0].embedding_size
    staged = folder.with_name(f"{folder.name}-staged")
    shutil.rmtree(staged, ignore_errors=True)
    package = staged / "foundry"
    shutil.copytree(Path(foundry.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    # MLflow keeps an artifact under the last part of its path, so each gets a path that ends in the wanted name.
    shutil.copytree(export, staged / "export", copy_function=_link_or_copy)
    shutil.copytree(golden, staged / "golden", copy_function=_link_or_copy)
    (staged / "model_card.md").write_text(card, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no input example; the golden images are better ones
        mlflow.pyfunc.save_model(
            path=folder,
            mlflow_model=description,
            python_model=str(MODEL_CODE),
            artifacts={
                "export": str(staged / "export"),
                "golden": str(staged / "golden"),
                "model_card": str(staged / "model_card.md"),
            },
            code_paths=[str(package)],
            model_config={"device": "cpu"},
            signature=signature(size),
            pip_requirements=pinned_requirements(),
            metadata=dict(metadata),
        )
    shutil.rmtree(staged)
    _prove(folder)
    for cache in folder.rglob("__pycache__"):
        shutil.rmtree(cache)
    if pickles := find_pickles(folder):
        raise RuntimeError(f"{folder}: would publish pickled data: {', '.join(pickles)}")


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copyfile(source, target)


def _prove(folder: Path) -> None:
    import mlflow.pyfunc

    _, images, expected = read_golden(folder / "artifacts" / "golden")
    model = mlflow.pyfunc.load_model(str(folder))
    network = model.unwrap_python_model()
    for start in range(0, len(images), 8):
        found = model.predict({"pixels": network.pixels(images[start : start + 8])})["embedding"]
        difference = largest_difference(found, expected[start : start + 8])
        if not difference <= AGREEMENT:
            raise RuntimeError(f"{folder}: the packaged model misses its golden embeddings by {difference:.2e}")
