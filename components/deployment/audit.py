"""Who did what, when and why to the served models: an append-only file here, tags of the versions in the registry."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from components.common.mlflow_store import plain_address_errors
from components.common.tracking import TAG_PREFIX
from components.deployment.desired_state import Refusal
from components.registration.registry import ModelRegistry

LAST_ACT = f"{TAG_PREFIX}deployment.last_act"
"""Tag of a version: the last act on it by any replica, JSON as in the audit log."""
REFUSED = f"{TAG_PREFIX}deployment.refused"
"""Tag of a version that is not served: a :class:`Refusal`, JSON."""
WHY_LIMIT = 1500
"""Characters of a reason in a tag; MLflow keeps 5000 of all."""

Outcome = Literal["started", "done", "refused", "failed"]


@dataclass(frozen=True)
class Entry:
    """One line of the audit log."""

    when: str
    """ISO 8601, UTC."""
    who: str
    what: str
    model: str
    version: int | None
    outcome: Outcome
    why: str
    details: Mapping[str, Any] = field(default_factory=dict)


class AuditLog:
    """JSON lines, only ever appended to. Several processes may write; a line is there whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, entry: Entry) -> None:
        """Add one line and wait until it is on the disk."""
        line = json.dumps(asdict(entry), ensure_ascii=False, sort_keys=True).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o640)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":  # a machine that stopped in the middle of a line
                line = b"\n" + line
            while line:
                line = line[os.write(handle, line) :]
            os.fsync(handle)
        finally:
            os.close(handle)

    def entries(self, model: str | None = None) -> list[Entry]:
        """All lines that can be read, oldest first; of one model where it is named."""
        if not self.path.is_file():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):
                continue
            if model is None or entry.model == model:
                found.append(entry)
        return found


def now() -> str:
    """The time as the audit log has it."""
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%S.%fZ}"


def tag_last_act(registry: ModelRegistry, entry: Entry) -> None:
    """Leave ``entry`` at its version in the registry. Raises :class:`UserError` where that does not answer."""
    document = {**asdict(entry), "why": entry.why[:WHY_LIMIT], "details": {}}
    _set_tag(registry, entry.model, entry.version, LAST_ACT, document)


def tag_refusal(registry: ModelRegistry, model: str, version: int, refusal: Refusal) -> None:
    """Keep a refusal where every replica reads it. Raises :class:`UserError` where the registry does not answer."""
    _set_tag(registry, model, version, REFUSED, {**asdict(refusal), "why": refusal.why[:WHY_LIMIT]})


def remove_refusal(registry: ModelRegistry, model: str, version: int) -> None:
    """Take the refusal of a version that is served away. Raises :class:`UserError` as :func:`tag_refusal`."""
    with plain_address_errors(registry.uri):
        registry.client.delete_model_version_tag(model, str(version), REFUSED)


def read_refusal(tags: Mapping[str, str]) -> Refusal | None:
    """The refusal among the tags of a version, or None; one that cannot be read counts as none."""
    try:
        return Refusal(**json.loads(tags[REFUSED]))
    except (KeyError, ValueError, TypeError):
        return None


def _set_tag(registry: ModelRegistry, model: str, version: int | None, key: str, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, sort_keys=True, ensure_ascii=False)
    with plain_address_errors(registry.uri):
        registry.client.set_model_version_tag(model, str(version), key, text)
