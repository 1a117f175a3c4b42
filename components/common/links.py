"""A stored result shown somewhere else without a second copy: reflinks or hardlinks, a copy across disks."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from components.common.manifest import MANIFEST
from foundry.errors import UserError
from foundry.storage import files_under

_FICLONE = 0x40049409
"""Linux ioctl: share the blocks of one file with another (Btrfs, XFS, bcachefs)."""
_NOT_POSSIBLE = {
    errno.EXDEV,
    errno.EOPNOTSUPP,
    errno.ENOTTY,
    errno.EINVAL,
    errno.EPERM,
    errno.EMLINK,
    errno.ENOSYS,
    errno.EISDIR,
    errno.ETXTBSY,
    errno.EBADF,
}


def check_destination(destination: Path) -> None:
    """Raise :class:`UserError` unless :func:`link` may make or replace the folder ``destination``."""
    if destination.is_symlink() or destination.is_file():
        raise UserError(f"{destination}: is not a folder; name another --output")
    if destination.is_dir() and any(destination.iterdir()) and not (destination / MANIFEST).is_file():
        raise UserError(f"{destination}: holds files that no step made; name an empty folder or a new one")


def link(result: Path, destination: Path) -> None:
    """Show the files of ``result`` in the folder ``destination``, its manifest last.

    ``destination`` may be absent, an empty folder or an older link farm (a folder with a manifest), which is replaced
    whole: a reader sees the old folder, for an instant none, then the new one. Anything else there is not touched:
    :class:`UserError`.
    """
    destination = destination.absolute()
    check_destination(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}."))
    try:
        fresh.chmod(0o755)
        names = [path.relative_to(result) for path in files_under(result)]
        for name in sorted(names, key=lambda name: name.as_posix() == MANIFEST):
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            link_file(result / name, fresh / name)
        if destination.is_dir():
            old = fresh.with_name(f"{fresh.name}.old")
            os.rename(destination, old)
            os.rename(fresh, destination)
            shutil.rmtree(old)
        else:
            os.rename(fresh, destination)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def link_file(source: Path, target: Path) -> None:
    """Show the file ``source`` as the new file ``target``, which is read-only like it."""
    if _reflink(source, target):
        return
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NOT_POSSIBLE:
            raise
        shutil.copyfile(source, target)
        target.chmod(0o444)


def _reflink(source: Path, target: Path) -> bool:
    """Share blocks (changes to one file do not reach the other); False where the file system cannot."""
    with source.open("rb") as original, target.open("wb") as copy:
        try:
            fcntl.ioctl(copy.fileno(), _FICLONE, original.fileno())
        except OSError as error:
            if error.errno not in _NOT_POSSIBLE:
                raise
            target.unlink()
            return False
    target.chmod(0o444)
    return True
