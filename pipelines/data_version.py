"""The curated dataset under DVC: its files in DVC's cache and remote, a small pointer file in the work tree.

Git is never written to: ``dvc.lock`` and ``datasets/*.dvc`` change in the work tree, and committing them is the
person's choice. A line with the images and curation of ``params.yaml`` updates the stage ``curation`` of ``dvc.lock``,
so ``dvc repro`` finds it finished. Any other dataset gets a pointer of its own, ``datasets/<digest>.dvc``, because
``dvc.lock`` must not say of ``params.yaml`` what is not so.
"""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from components.common.links import link
from components.common.manifest import read_manifest
from components.common.params import DEFAULT_FILE, Params, load_params
from foundry.errors import UserError
from foundry.home import REPOSITORY, home
from foundry.settings import read_yaml

STAGE = "curation"
ARTIFACT = Path("artifacts") / STAGE
DATASETS = Path("datasets")


class DvcFailed(Exception):
    """A dvc command did not succeed."""


def version_dataset(result: Path, params: Params, repository: Path = REPOSITORY) -> dict[str, Any]:
    """Put the curated dataset in the folder ``result`` under DVC and push it to the default remote.

    Returns {"md5", "file", "pushed"}: the hash that DVC knows it by, the pointer file (relative to ``repository``), and
    whether the remote has it. A DVC that does not work costs a warning and gives {"error"}: the line itself has ended
    well.
    """
    try:
        _allow_without_git(repository)
        _place_remote(repository)
        if _is_described(params, repository):
            link(result, repository / ARTIFACT)
            _dvc(repository, "commit", "--force", STAGE)
            pointer, target = repository / "dvc.lock", STAGE
            md5 = read_yaml(pointer)["stages"][STAGE]["outs"][0]["md5"]
        else:
            manifest = read_manifest(result)
            assert manifest is not None
            name = manifest.digest[:12]
            link(result, repository / DATASETS / name)
            _dvc(repository, "add", str(DATASETS / name))
            pointer, target = repository / DATASETS / f"{name}.dvc", str(DATASETS / f"{name}.dvc")
            md5 = read_yaml(pointer)["outs"][0]["md5"]
    except (DvcFailed, UserError, OSError, KeyError) as error:
        print(f"warning: the dataset was not put under DVC: {error}", file=sys.stderr)
        return {"error": str(error)}
    version = {"md5": str(md5), "file": str(pointer.relative_to(repository)), "target": target, "pushed": True}
    try:
        _dvc(repository, "push", target)
    except DvcFailed as error:
        print(f"warning: the dataset was not pushed to DVC's remote: {error}", file=sys.stderr)
        version["pushed"] = False
    return version


def _is_described(params: Params, repository: Path) -> bool:
    """Whether ``params.yaml`` describes the dataset that ``params`` made."""
    file = repository / DEFAULT_FILE
    if not file.is_file():
        return False
    written = load_params(file)
    return written.inputs == params.inputs and written.curation == params.curation


def _allow_without_git(repository: Path) -> None:
    """An unpacked archive of the project is no Git repository; DVC has to be told so (in its own local settings)."""
    git = ["git", "-C", str(repository), "rev-parse", "--is-inside-work-tree"]
    if subprocess.run(git, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        _dvc(repository, "config", "--local", "core.no_scm", "true")


def _place_remote(repository: Path) -> None:
    """Let the remote ``local`` follow FOUNDRY_HOME (in DVC's own local settings); another remote is not touched."""
    beside = repository / ".foundry" / "dvc-remote"
    wanted = home() / "dvc-remote"
    settings = configparser.ConfigParser()
    settings.read(repository / ".dvc" / "config.local", encoding="utf-8")
    present = settings.get("'remote \"local\"'", "url", fallback=None)
    if wanted != beside and present != str(wanted):
        _dvc(repository, "config", "--local", "remote.local.url", str(wanted))
    elif wanted == beside and present is not None:
        _dvc(repository, "config", "--local", "--unset", "remote.local.url")


def _dvc(repository: Path, *arguments: str) -> None:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "GIT_OPTIONAL_LOCKS": "0"}
    command = [sys.executable, "-m", "dvc", *arguments, "--quiet"]
    done = subprocess.run(
        command, cwd=repository, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        lines = [line.removeprefix("ERROR: ") for line in done.stdout.splitlines() if line.startswith("ERROR")]
        raise DvcFailed((lines or done.stdout.strip().splitlines() or [f"dvc {arguments[0]} failed"])[-1])
