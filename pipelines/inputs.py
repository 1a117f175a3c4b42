"""Are the images and labels that a person named there at all? Asked before minutes go into set-up or work.

``python -m pipelines.inputs`` asks it for the variables IMAGES, EVAL and TEACHER that ``make run`` was given; it needs
the standard library only, so that it answers where nothing is installed yet.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from foundry.errors import UserError, run_command
from foundry.storage import is_local, local_path


def check_images(url: str, prefix: str = "IMAGES=") -> None:
    """Raise :class:`UserError` when a local ``url`` is missing, empty or unreadable; other URLs are left to the step.

    ``prefix`` is how the person named it, for the message.
    """
    if not is_local(url) or url.startswith("sample:"):
        return
    path = local_path(url)
    try:
        if not path.exists():
            if "{" in url:
                return  # shards-{000..009}.tar: curation spells it out
            raise UserError(f"{prefix}{url}: no such file or folder{_relative(path)}")
        if path.is_dir():
            if not _holds_a_file(path):
                raise UserError(f"{prefix}{url}: the folder is empty; name one with images below it")
        elif path.stat().st_size == 0:
            raise UserError(f"{prefix}{url}: the file is empty")
        elif not os.access(path, os.R_OK):
            raise PermissionError
    except PermissionError:
        raise UserError(f"{prefix}{url}: permission denied; check the owner and mode") from None


def check_labels(url: str, prefix: str = "EVAL=") -> None:
    """As :func:`check_images` for labelled images; ``auto``, ``none`` and nothing name no folder."""
    if url not in ("", "auto", "none"):
        check_images(url, prefix)


def check_teacher(url: str) -> None:
    """Raise :class:`UserError` when ``url`` names no network; nothing passes. Of a registered model only that it exists
    is asked."""
    from components.common.model_inputs import REGISTERED, network_folder, settled

    if url:
        try:
            if url.startswith(REGISTERED):
                settled(url)
            else:
                network_folder(url)
        except UserError as error:
            raise UserError(f"inputs.teacher={url}: {str(error).removeprefix(f'{url}: ')}") from None


def _relative(path: Path) -> str:
    return "" if path.is_absolute() else f" (looked in {Path.cwd()})"


def _holds_a_file(folder: Path) -> bool:
    # A folder that cannot be listed must not look empty.
    def refuse(error: OSError) -> None:
        raise error

    return any(files for _, _, files in os.walk(folder, onerror=refuse, followlinks=True))


def main(argv: list[str]) -> int:
    """Check the environment variables IMAGES, EVAL and TEACHER."""
    if argv:
        print(__doc__)
        return 0
    if images := os.environ.get("IMAGES"):
        check_images(images)
    check_labels(os.environ.get("EVAL", ""))
    if (teacher := os.environ.get("TEACHER", "")) and not teacher.startswith("models:/"):
        check_images(teacher, "TEACHER=")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
