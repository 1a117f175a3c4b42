"""Networks as inputs of a step: a training run, a folder in the Hugging Face layout, or a registered model."""

from __future__ import annotations

import re
from pathlib import Path

from foundry.errors import UserError
from foundry.storage import is_local, local_path

REGISTERED = "models:/"
"""What the address of a registered model begins with: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``."""


def settled(value: str) -> str:
    """``value`` with the alias of a registered model as the version that it means now; anything else as it is.

    Raises :class:`UserError` for a model, version or alias that does not exist.
    """
    if not value.startswith(REGISTERED):
        return value
    from components.registration.registry import ModelRegistry, describe_version

    name, version = _parts(value)
    return f"{REGISTERED}{name}/{describe_version(ModelRegistry().version(name, version))['version']}"


def network_folder(value: str) -> Path:
    """The local folder with the weights, ``config.json`` and ``preprocessor_config.json`` of the network ``value``.

    A training run gives its newest export; a registered model is downloaded once and checked against its digest.
    Raises :class:`UserError` where there is no network.
    """
    if value.startswith(REGISTERED):
        from components.registration.champions import default_destination, download_version

        name, version = _parts(value)
        return download_version(name, version, default_destination()).export
    if not is_local(value):
        raise UserError(f"{value}: a network is read from a local folder or {REGISTERED}NAME@ALIAS; copy it there")
    folder = local_path(value).absolute()
    if not folder.is_dir():
        raise UserError(f"{value}: no such folder")
    latest = folder / "export" / "latest"
    if latest.is_file():
        folder = latest.parent / latest.read_text(encoding="utf-8").strip()
    elif (students := sorted(path.name for path in folder.glob("students/*") if path.is_dir())) != []:
        raise UserError(f"{value}: a distillation; name one of its students, as in {value}/students/{students[0]}")
    if not (folder / "config.json").is_file():
        raise UserError(f"{value}: neither a training run with an export nor a folder in the Hugging Face layout")
    return folder


def _parts(value: str) -> tuple[str, str]:
    """(name, version or alias) of the address of a registered model."""
    found = re.fullmatch(rf"{REGISTERED}/*([^/@]+)[@/]([^/@]+)", value)
    if found is None:
        raise UserError(f"{value}: write {REGISTERED}NAME@ALIAS or {REGISTERED}NAME/VERSION")
    return found[1], found[2]
