"""The students in the result of a distillation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.registration.champions import folder_digest
from components.registration.packaging import latest_export
from foundry.errors import UserError


@dataclass(frozen=True)
class Student:
    """One student and its last export."""

    name: str
    export: Path
    digest: str
    """Of the export folder; names the network."""


def find_students(distillation: Path) -> list[Student]:
    """Every student of a distillation result, by name. Raises :class:`UserError` where there is none."""
    folders = sorted(path for path in (distillation / "students").glob("*") if path.is_dir())
    if not folders:
        raise UserError(f"{distillation}: no students in it; give the result of distillation")
    exports = {folder.name: latest_export(folder) for folder in folders}
    return [Student(name, export, folder_digest(export)) for name, export in exports.items()]


def export_digests(distillation: Path) -> dict[str, str]:
    """Digest of the last export of every student, as :func:`champions.resolve_champions` takes them."""
    return {student.name: student.digest for student in find_students(distillation)}
