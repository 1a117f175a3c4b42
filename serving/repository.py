"""The Triton model repository: versions arrive whole, by one rename, and a served list says which of them answer."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import foundry
import serving.triton_backend
from foundry.errors import UserError
from foundry.lifetime import is_alive, process_identity
from foundry.settings import digest_of
from foundry.storage import files_under, sha256_of_file, write_atomically
from serving.export import MODEL_FILE, PREPROCESSOR_FILE, OnnxExport
from serving.model_config import ServingOptions, config_text, served_versions

CONFIG = "config.pbtxt"
DESCRIPTION_FILE = "serving.json"
CANDIDATE = "-candidate"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def candidate_of(name: str) -> str:
    """The model name under which a version of ``name`` is tried before it is published."""
    return name + CANDIDATE


class ModelRepository:
    """A folder ``<name>/<version>/`` with a ``config.pbtxt`` for each name, as Triton reads it.

    A version folder is complete in itself: weights, preprocessing and the code that runs them. Versions are prepared in
    a sibling folder (Triton takes every folder inside the repository for a model) and renamed into place.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._staging = self.root.with_name(self.root.name + ".staging")

    def names(self) -> list[str]:
        """The models, candidates included."""
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if (path / CONFIG).is_file())

    def versions(self, name: str) -> list[int]:
        """The versions of ``name`` that lie in the repository, ascending, served or not."""
        folder = self.root / name
        if not folder.is_dir():
            return []
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())

    def served(self, name: str) -> list[int]:
        """The versions of ``name`` that Triton is told to serve, ascending; the last is the default of a request."""
        try:
            return served_versions((self.root / name / CONFIG).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []

    def describe(self, name: str, version: int) -> dict[str, Any]:
        """``serving.json`` of a version: digest, resolution, dimension, patches. {} where there is none."""
        try:
            found = json.loads((self.root / name / str(version) / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def holds(self, name: str, version: int, onnx_folder: Path, export: OnnxExport) -> bool:
        """Whether ``<name>/<version>`` lies here with exactly this export and the present code."""
        return self.describe(name, version) == _description(_version_files(onnx_folder), export)

    def write_version(self, name: str, version: int, onnx_folder: Path, export: OnnxExport) -> None:
        """Put an ONNX export in place as ``<name>/<version>``; one with other content is replaced.

        The served versions do not change: :meth:`serve` does that.
        """
        if not _NAME.fullmatch(name):
            raise UserError(f"model name '{name}': use letters, digits, '.', '_' and '-', a letter or digit first")
        if self.holds(name, version, onnx_folder, export):
            return
        files = _version_files(onnx_folder)
        with self._staged() as staged:
            for path, source in files.items():
                target = staged / path
                target.parent.mkdir(parents=True, exist_ok=True)
                _link_or_copy(source, target, link=path.startswith(MODEL_FILE))
            document = json.dumps(_description(files, export), indent=2) + "\n"
            write_atomically(staged / DESCRIPTION_FILE, document)
            place = self.root / name / str(version)
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.exists():
                os.rename(place, staged.with_name("replaced"))
            os.rename(staged, place)

    def serve(self, name: str, versions: Sequence[int], options: ServingOptions) -> None:
        """Say which versions of ``name`` Triton serves from its next load on; the highest is the default."""
        absent = sorted(set(versions) - set(self.versions(name)))
        if absent or not versions:
            raise UserError(f"{self.root / name}: has no version {', '.join(map(str, absent)) or 'to serve'}")
        text = config_text(name, versions, options)
        if self.config(name) != text:
            write_atomically(self.root / name / CONFIG, text)

    def touch(self, name: str, version: int) -> None:
        """Make Triton's next load of ``name`` start this version anew, although nothing in it changed."""
        os.utime(self.root / name / str(version) / "model.py")

    def config(self, name: str) -> str | None:
        """The text of a model's configuration, for :meth:`restore`."""
        path = self.root / name / CONFIG
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def restore(self, name: str, text: str) -> None:
        """Put a configuration back as :meth:`config` gave it."""
        write_atomically(self.root / name / CONFIG, text)

    def remove(self, name: str, version: int | None = None) -> None:
        """Remove a version, or the whole model. Unload it from a running server first."""
        place = self.root / name if version is None else self.root / name / str(version)
        if place.exists():
            with self._staged() as staged:
                os.rename(place, staged / "removed")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One deployment into this repository at a time; another waits."""
        self._staging.mkdir(parents=True, exist_ok=True)
        with (self._staging / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _staged(self) -> Iterator[Path]:
        """A new folder on the repository's file system; what is left of it afterwards is deleted."""
        self._staging.mkdir(parents=True, exist_ok=True)
        for leftover in self._staging.iterdir():
            if leftover.is_dir() and not is_alive(leftover.name.partition("-")[0]):
                shutil.rmtree(leftover, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{process_identity(os.getpid())}-", dir=self._staging))
        try:
            staged = scratch / "version"
            staged.mkdir()
            yield staged
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _version_files(onnx_folder: Path) -> dict[str, Path]:
    """Where each file of a version folder comes from, by its path there; serving.json is made beside them."""
    backend = Path(serving.triton_backend.__file__).parent
    package = Path(foundry.__file__).parent
    files = {path.name: path for path in files_under(onnx_folder) if path.name.startswith(MODEL_FILE)}
    files |= {PREPROCESSOR_FILE: onnx_folder / PREPROCESSOR_FILE, "model.py": backend / "entry.py"}
    code = [package, backend, backend.parent / "__init__.py"]
    for source in code:
        for path in files_under(source) if source.is_dir() else [source]:
            if path.suffix == ".py":
                files[f"code/{path.relative_to(package.parent).as_posix()}"] = path
    return dict(sorted(files.items()))


def _description(files: dict[str, Path], export: OnnxExport) -> dict[str, Any]:
    """The content of serving.json: the export's own description and a digest over all files of the version."""
    rows = [[path, sha256_of_file(source)] for path, source in files.items()]
    return dataclasses.asdict(export) | {"content": digest_of(rows)}


def _link_or_copy(source: Path, target: Path, *, link: bool) -> None:
    if link:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system
            pass
    shutil.copyfile(source, target)
