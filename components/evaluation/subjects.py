"""Which networks a report compares: what the line trained, the same networks untrained, and the reigning champions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from foundry.errors import UserError
from foundry.storage import local_path, sha256_of_file

TEACHERS = {"pretrained": "Teacher, pretrained", "refined": "Teacher, refined", "teacher": "Teacher, as given"}
"""Inputs that are teachers, and their titles: those of a line, or one that was there (adoption)."""
Kind = Literal["teacher", "student", "champion", "peer", "random"]

PEERS = "peers."
"""What the names of networks to measure beside those of the line begin with, among the inputs."""

UNTRAINED = "step-000000000"
"""Name of the export that a run writes before its first step."""


@dataclass(frozen=True)
class Subject:
    """One network of the table."""

    name: str
    """Unique, as in metrics.json: ``pretrained``, ``refined``, ``teacher``, ``student-vit``, ``student-vit-random``,
    ``student-vit-champion``, ``peer-NAME``."""
    title: str
    """As people read it."""
    kind: Kind
    export: Path
    """Folder in the Hugging Face layout."""
    student: str = ""
    """The student's name in its recipe."""
    random: str = ""
    """Name of the subject with the same architecture and random weights."""
    champion: str = ""
    """Name of the champion that this student challenges."""
    source: str = ""
    """Of a peer: where it is opened from (:func:`components.evaluation.networks.open_network`)."""


@dataclass(frozen=True)
class Champion:
    """The model that the registry's alias ``champion`` pointed at when this line began."""

    student: str
    model: str
    version: str
    digest: str
    path: Path


def read_champions(value: str) -> dict[str, Champion]:
    """Champions by student, from the input ``champion``: empty, JSON text, or the path of a JSON file.

    The JSON maps a student to ``{"model", "version", "digest", "path"}``. Raises :class:`UserError` for anything else.
    """
    text = value.strip()
    if not text:
        return {}
    if not text.startswith("{"):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise UserError(f"champion: {value} is neither JSON nor a readable JSON file") from None
    try:
        document = json.loads(text)
        return {
            student: Champion(
                student, str(row["model"]), str(row["version"]), str(row["digest"]), local_path(row["path"])
            )
            for student, row in document.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            'champion: expected {"<student>": {"model": ..., "version": ..., "digest": ..., "path": ...}}, '
            f"got {text[:80]}"
        ) from None


def latest_export(root: Path) -> Path:
    """The trained export of a run's ``export`` folder. Raises :class:`UserError` where there is none."""
    try:
        folder = root / (root / "latest").read_text(encoding="utf-8").strip()
    except OSError:
        raise UserError(f"{root}: no trained export there ('latest' is missing); the run did not finish") from None
    return _checked(folder)


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no exported network there (config.json is missing)")
    return folder


def find_subjects(inputs: Mapping[str, str], champions: Mapping[str, Champion]) -> list[Subject]:
    """Every network of the line, each random one before what was trained from it; then its peers.

    ``inputs`` are the folders of teachers (:data:`TEACHERS`) and ``students``. Random networks whose weights and
    preprocessing are the same files are listed once.
    """
    teachers = {name: title for name, title in TEACHERS.items() if name in inputs}
    if not teachers:
        raise UserError(f"no teacher is given; give at least one of the inputs {', '.join(TEACHERS)}")
    subjects: list[Subject] = []
    randoms: dict[tuple[str, str], str] = {}

    def random_of(root: Path, name: str, title: str) -> str:
        export = _checked(root / UNTRAINED)
        key = (sha256_of_file(export / "model.safetensors"), sha256_of_file(export / "preprocessor_config.json"))
        if key not in randoms:
            randoms[key] = name
            subjects.append(Subject(name, title, "random", export))
        return randoms[key]

    for name, title in teachers.items():
        root = Path(inputs[name]) / "export"
        random = random_of(root, f"{name}-random", "Teacher, random weights")
        subjects.append(Subject(name, title, "teacher", latest_export(root), random=random))
    folder = Path(inputs["students"]) / "students"
    students = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not students:
        raise UserError(f"{folder}: holds no student; give the result of distillation")
    for student in students:
        name, root = f"student-{student}", folder / student / "export"
        random = random_of(root, f"{name}-random", f"Student {student}, random weights")
        champion = champions.get(student)
        reigning = f"{name}-champion" if champion else ""
        if champion is not None:
            title = f"Champion {champion.model} v{champion.version}"
            subjects.append(Subject(reigning, title, "champion", _checked(champion.path), student))
        trained = latest_export(root)
        subjects.append(Subject(name, f"Student {student}", "student", trained, student, random, reigning))
    for name, source in inputs.items():
        if name.startswith(PEERS):
            label = name.removeprefix(PEERS)
            subjects.append(Subject(f"peer-{label}", label, "peer", Path(), source=source))
    return subjects


def describe_network(export: Path) -> dict[str, Any]:
    """What the table says about a network: architecture, parameters (millions), input side, sha256 of the weights."""
    from safetensors import safe_open

    config = json.loads((export / "config.json").read_text(encoding="utf-8"))
    preprocessing = json.loads((export / "preprocessor_config.json").read_text(encoding="utf-8"))
    weights = export / "model.safetensors"
    parameters = 0
    with safe_open(weights, framework="np") as file:
        for key in file.keys():  # noqa: SIM118  (safe_open has no iterator)
            size = 1
            for length in file.get_slice(key).get_shape():
                size *= length
            parameters += size
    return {
        "architecture": _architecture(config),
        "parameters": parameters,
        "input_side": preprocessing["crop_size"]["height"],
        "sha256": sha256_of_file(weights),
    }


def _architecture(config: Mapping[str, Any]) -> str:
    if "num_hidden_layers" in config:
        return f"ViT {config['num_hidden_layers']}x{config['hidden_size']}, patch {config.get('patch_size')}"
    if "hidden_sizes" in config:
        return "ConvNeXt " + "-".join(str(size) for size in config["hidden_sizes"])
    return str(config.get("model_type", "network"))
