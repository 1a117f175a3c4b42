"""The step store: ``<store>/<step>/<fingerprint>/``, complete exactly when its ``manifest.json`` is there.

Unfinished work is ``<fingerprint>.partial`` with the file ``<fingerprint>.owner`` beside it. A result is published by
writing the manifest last and renaming the folder. Readers go by the manifest and never by the folder's name, so the
same layout is right on an object store, where nothing can be renamed (objects first, the manifest last); the store
implemented here is a local or mounted folder. ``python -m components.common.store list | gc | check``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from components.common.manifest import MANIFEST, Manifest, find_damage, read_manifest, write_manifest
from components.common.owner import Claim, is_working, read_owner, try_claim
from foundry.errors import UserError
from foundry.home import home
from foundry.storage import is_local, local_path

WAIT_SECONDS = 0.3
"""How often someone who waits for another's result looks."""


@dataclass(frozen=True)
class Result:
    """A complete result in the store."""

    path: Path
    manifest: Manifest


@dataclass(frozen=True)
class Work:
    """An unfinished result that this process owns."""

    folder: Path
    """Where the step writes; may hold what an earlier, killed owner left."""
    step: str
    fingerprint: str


class Store:
    """A folder of results of steps."""

    def __init__(self, root: str | Path | None = None) -> None:
        """``root``: a folder; None means FOUNDRY_STORE, else ``store`` in the project's home folder."""
        given = str(root or os.environ.get("FOUNDRY_STORE") or home() / "store")
        if not is_local(given):
            raise UserError(f"{given}: the store must be a local or mounted folder")
        self.root = local_path(given).absolute()

    def folder(self, step: str, fingerprint: str) -> Path:
        """Where the complete result is or would be."""
        return self.root / step / fingerprint

    def find(self, step: str, fingerprint: str) -> Result | None:
        """The complete, undamaged result of that name, or None. A damaged one is set aside, with a message."""
        folder = self.folder(step, fingerprint)
        manifest = read_manifest(folder)
        if manifest is None:
            return None
        damage = find_damage(folder, manifest)
        if damage is None:
            with contextlib.suppress(OSError):  # the folder's time says when it was last used
                os.utime(folder)
            return Result(folder, manifest)
        print(f"{step}: the stored result {fingerprint[:12]} is damaged ({damage}); it is set aside", flush=True)
        set_aside(folder)
        return None

    @contextlib.contextmanager
    def find_or_own(self, step: str, fingerprint: str) -> Iterator[Result | Work]:
        """The complete result, or the right to make it; while another process makes it, wait for that one.

        Inside the context a :class:`Work` is owned by this process; :meth:`publish` it there. Left without
        publishing (an error, a kill), its folder stays for the next owner to continue.
        """
        found = self.find(step, fingerprint)
        claim: Claim | None = None
        owner_file = self.root / step / f"{fingerprint}.owner"
        told = False
        while found is None:
            claim = try_claim(owner_file)
            if claim is not None:
                break
            if not told:
                owner = read_owner(owner_file)
                print(f"{step}: {owner or 'another process'} is making {fingerprint[:12]}; waiting for it", flush=True)
                told = True
            time.sleep(WAIT_SECONDS)
            found = self.find(step, fingerprint)
        if claim is None:
            assert found is not None
            yield found
            return
        with claim:
            found = self.find(step, fingerprint) or self._finish_left_over(step, fingerprint)
            if found is not None:
                yield found
                return
            folder = self.root / step / f"{fingerprint}.partial"
            folder.mkdir(parents=True, exist_ok=True)
            yield Work(folder, step, fingerprint)

    def _finish_left_over(self, step: str, fingerprint: str) -> Result | None:
        """Publish a partial folder whose owner died between its manifest and its rename."""
        folder = self.root / step / f"{fingerprint}.partial"
        try:
            manifest = read_manifest(folder)
        except UserError:
            manifest = None
        if manifest is not None and find_damage(folder, manifest, thorough=True) is None:
            return self._rename(folder, manifest)
        with contextlib.suppress(FileNotFoundError):
            (folder / MANIFEST).unlink()
        return None

    def publish(self, work: Work, manifest: Manifest) -> Result:
        """Make owned work a result: the manifest, then the name."""
        write_manifest(work.folder, manifest)
        return self._rename(work.folder, manifest)

    def _rename(self, folder: Path, manifest: Manifest) -> Result:
        target = folder.with_suffix("")
        if target.exists():  # without a manifest, or it would have been found
            set_aside(target)
        os.rename(folder, target)
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        return Result(target, manifest)

    def results(self) -> Iterator[Result]:
        """Every complete result, by step and age; files are not checked."""
        for path in sorted(self.root.glob(f"*/*/{MANIFEST}"), key=lambda p: (p.parts[-3], p.stat().st_mtime)):
            if "." in path.parent.name:
                continue
            manifest = read_manifest(path.parent)
            if manifest is not None:
                yield Result(path.parent, manifest)

    def leftovers(self) -> Iterator[tuple[Path, str]]:
        """(folder, state) of unfinished and damaged work; state is 'running', 'unfinished' or 'damaged'."""
        for folder in sorted(self.root.glob("*/*")):
            if not folder.is_dir():
                continue
            if folder.suffix == ".partial":
                yield folder, "running" if is_working(folder.with_suffix(".owner")) else "unfinished"
            elif folder.suffix.startswith(".damaged-") or not (folder.suffix or (folder / MANIFEST).exists()):
                yield folder, "damaged"


def size_of(folder: Path) -> int:
    """Bytes of the files below ``folder``."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_size if not path.is_dir() else 0
    return total


def set_aside(folder: Path) -> None:
    """Take a damaged result out of use; ``gc`` removes it."""
    with contextlib.suppress(FileNotFoundError):  # someone else may have done it just now
        folder.rename(folder.with_name(f"{folder.name}.damaged-{time.time_ns()}"))


def delete(folder: Path) -> None:
    """Remove a result's folder; its manifest first, so that it is never seen half there."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    from components.common.store_command import main
    from foundry.errors import run_command

    sys.exit(run_command(main))
