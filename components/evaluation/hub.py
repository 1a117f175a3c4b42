"""Models of a Hugging Face hub: what a name means now, and its files.

A hub is asked for the commit that a name means; the files of a commit (description, preprocessing, safetensors) are
kept under the project's home and never asked for again.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from foundry.errors import UserError
from foundry.home import home, require_space
from foundry.settings import digest_of
from foundry.storage import is_local, local_path, write_atomically

WAIT = 12.0
"""Seconds that a hub has to say what a name means."""
DOWNLOADED = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
)
"""Patterns of the files that are taken."""
_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")

T = TypeVar("T")


@dataclass(frozen=True)
class HubModel:
    """A model of a hub, as ``facebook/dinov2-small@main``."""

    model: str
    """``OWNER/NAME``."""
    revision: str
    """A branch, a tag, ``refs/pr/NUMBER`` or a commit of 40 digits."""

    def __str__(self) -> str:
        return f"{self.model}@{self.revision}"

    def at_commit(self) -> HubModel:
        """This model at the commit that its revision means: the hub's word, or where no hub can be asked, its last
        word on this disk. Raises :class:`UserError` where there is neither."""
        if _COMMIT.fullmatch(self.revision):
            return self
        remembered = _hub_home() / "asked" / digest_of([_endpoint(), self.model, self.revision])[:24]
        if _offline():
            reason = "HF_HUB_OFFLINE is set"
        else:
            from huggingface_hub import HfApi

            try:
                commit = _within(
                    WAIT, lambda: HfApi(endpoint=_endpoint()).model_info(self.model, revision=self.revision)
                )
                write_atomically(remembered, str(commit.sha))
                return replace(self, revision=str(commit.sha))
            except Exception as error:  # of an HTTP client, of the hub, of the operating system
                self._refuse(error)
                reason = _said(error)
        try:
            kept = replace(self, revision=remembered.read_text(encoding="utf-8"))
        except OSError:
            raise UserError(
                f"{self.model}: no such folder, and no hub can be asked for a model of that name ({reason}); connect, "
                "or fetch the folder elsewhere and give its path"
            ) from None
        print(f"{self.model}: no hub can be asked ({reason}); commit {kept.revision[:12]} is used", file=sys.stderr)
        return kept

    def folder(self) -> Path:
        """The local folder with the files of this commit, downloaded where they are not here yet.

        Raises :class:`UserError` where they cannot be had or are no safetensors.
        """
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        cache, patterns = _hub_home(), list(DOWNLOADED)
        try:
            kept = snapshot_download(
                self.model, revision=self.revision, cache_dir=cache, allow_patterns=patterns, local_files_only=True
            )
            return Path(kept)
        except LocalEntryNotFoundError:
            if _offline():
                raise UserError(
                    f"{self}: not on this disk, and HF_HUB_OFFLINE is set; unset it, or give the path of a folder"
                ) from None
        api = HfApi(endpoint=_endpoint())
        try:
            found = _within(WAIT, lambda: api.model_info(self.model, revision=self.revision, files_metadata=True))
            sizes = {file.rfilename: file.size or 0 for file in found.siblings or []}
            require_space(cache, sum(sizes[name] for name in self._wanted(list(sizes))), f"downloading {self.model}")
            made = snapshot_download(
                self.model, revision=self.revision, cache_dir=cache, allow_patterns=patterns, endpoint=_endpoint()
            )
            return Path(made)
        except UserError:
            raise
        except Exception as error:
            self._refuse(error)
            raise UserError(
                f"{self}: the download failed ({_said(error)}); run again to continue it, or give the path of a folder"
            ) from None

    def _wanted(self, names: Sequence[str]) -> list[str]:
        """Those of ``names`` to take. Raises :class:`UserError` where they make no network."""
        from huggingface_hub.utils import filter_repo_objects

        wanted = list(filter_repo_objects(names, allow_patterns=list(DOWNLOADED)))
        for needed in DOWNLOADED[:2]:
            if needed not in wanted:
                raise UserError(
                    f"{self.model}: the hub has no {needed} of it: it cannot be read as a network for images"
                )
        if not any(name.endswith(".safetensors") for name in wanted):
            raise UserError(
                f"{self.model}: the hub has no safetensors of it, and pickled weights are not opened; name a revision "
                f"with model.safetensors ({self.model}@REVISION, often {self.model}@refs/pr/NUMBER), or give a folder"
            )
        return wanted

    def _refuse(self, error: Exception) -> None:
        """Raise for what the hub itself answered: asking again would not help."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        answers = {
            GatedRepoError: "the hub asks you to accept its terms first: do so on its page, then set HF_TOKEN",
            RepositoryNotFoundError: "no such folder, and the hub knows no such model (a private one needs HF_TOKEN)",
            RevisionNotFoundError: f"the hub has no revision {self.revision!r} of it; name a branch, tag or commit",
        }
        for kind, answer in answers.items():  # the first is a special case of the second
            if isinstance(error, kind):
                raise UserError(f"{self.model}: {answer}") from None


def hub_model(value: str) -> HubModel | None:
    """The model that ``value`` names (``OWNER/NAME``, ``OWNER/NAME@REVISION``), or None where it names something else:
    an address, or a path that exists."""
    found = _ID.fullmatch(value)
    if found is None or not is_local(value) or local_path(value).exists():
        return None
    return HubModel(found[1], found[2] or "main")


def _within(seconds: float, ask: Callable[[], T]) -> T:
    """``ask()``, or :class:`TimeoutError`: a client's own time limit does not cover the look-up of a host's name."""
    answers: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if answers:
        return answers[0]
    raise errors[0] if errors else TimeoutError(f"no answer within {seconds:.0f} s")


def _hub_home() -> Path:
    return home() / "cache" / "hub"


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _offline() -> bool:
    truthy = {"1", "ON", "YES", "TRUE"}
    return any(os.environ.get(name, "").upper() in truthy for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0][:200]}"
