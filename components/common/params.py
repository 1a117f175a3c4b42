"""``params.yaml``: the one place where a run is described, a section for each step. Imports only their settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from components.adoption.config import AdoptionConfig
from components.curation.config import CurationConfig
from components.deployment.config import DeploymentConfig
from components.distillation.config import DistillationConfig
from components.evaluation.config import EvaluationConfig
from components.pretraining.config import PretrainingConfig
from components.refinement.config import RefinementConfig
from components.registration.config import RegistrationConfig
from foundry.settings import Settings, apply_overrides, load_settings, read_yaml

DEFAULT_FILE = Path("params.yaml")


class InputsConfig(Settings):
    """What a line starts from."""

    images: str = "sample:"
    """Folder, archive or fsspec URL of unlabelled images; ``sample:`` is the embedded sample pool."""
    evaluation: str = "auto"
    """Folder or URL of labelled images for the evaluation. ``auto``: the sample's own where images is ``sample:``, else
    none; ``none``: no labels."""
    benchmarks: str = ""
    """Further labelled sets for the report (labels, masks, depths, videos, ...): a URL, or several as
    ``NAME=URL;NAME=URL``."""
    peers: str = ""
    """Networks that the report measures beside those of the line: a Hugging Face folder or model id, a training run or
    ``models:/NAME@ALIAS``, or several as ``NAME=...;NAME=...``."""
    backbone: str = ""
    """Network whose embeddings tell concepts apart in curation: a training run, a Hugging Face folder or
    ``models:/NAME@ALIAS``; empty: none."""
    embeddings: str = ""
    """Folder of embeddings in place of a backbone (docs/data.md)."""
    seeds: str = ""
    """Images whose like are retrieved from the images: a URL, or several as ``NAME=URL;NAME=URL``."""
    raw: str = ""
    """Datasets that are taken as they are: a URL, or several as ``NAME=URL;NAME=URL``."""
    teacher: str = ""
    """Network to distil from, in place of pretraining and refining one: a training run, a Hugging Face folder or
    ``models:/NAME@ALIAS``; empty: none."""
    previous: str = "none"
    """Curated dataset of an earlier state of the images, to which what they have gained is added: a folder, URL,
    ``dvc://`` or ``PATH@REVISION``. ``none``: all images are curated."""

    def evaluation_url(self) -> str | None:
        """``evaluation`` resolved: a URL, or None where there are no labels."""
        if self.evaluation == "auto":
            return "sample:evaluation" if self.images == "sample:" else None
        return None if self.evaluation in ("", "none") else self.evaluation


class Params(Settings):
    """All settings of a line."""

    inputs: InputsConfig = InputsConfig()
    """What a line starts from."""
    curation: CurationConfig = CurationConfig()
    """The dataset: which images of the pool, without copies and balanced."""
    adoption: AdoptionConfig = AdoptionConfig()
    """The teacher, where it is a network that is there (``inputs.teacher``)."""
    pretraining: PretrainingConfig = PretrainingConfig()
    """The teacher, from random weights."""
    refinement: RefinementConfig = RefinementConfig()
    """The teacher with better dense features (Gram anchoring)."""
    distillation: DistillationConfig = DistillationConfig()
    """The students of that teacher."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Measures, report and verdict."""
    registration: RegistrationConfig = RegistrationConfig()
    """Registered models and their aliases."""
    deployment: DeploymentConfig = DeploymentConfig()
    """What is served, and how."""


def load_params(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Params:
    """The settings in ``path`` with each ``a.b=c`` of ``overrides`` set.

    ``path`` None: ``params.yaml`` in the working folder where there is one, else the defaults. Raises
    :class:`UserError` naming the key, the file and the nearest valid name.
    """
    if path is None and DEFAULT_FILE.is_file():
        path = DEFAULT_FILE
    values = read_yaml(path) if path is not None else {}
    source = str(path) if path is not None else "settings"
    if overrides:
        values, source = apply_overrides(values, overrides), f"{source} with --set"
    return load_settings(Params, values, source)
