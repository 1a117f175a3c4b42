"""What in the step store may go: everything that neither a recent run nor the checkout still uses."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.common.manifest import MANIFEST, read_manifest
from components.common.store import Result, Store, size_of

DAY = 86400.0


@dataclass(frozen=True)
class Candidate:
    """A folder of the store that may be deleted."""

    folder: Path
    bytes: int
    reason: str


def deletable(store: Store, used: set[str], older_than_days: float) -> Iterator[Candidate]:
    """Results that nobody in ``used`` (fingerprints) needs and nobody touched for ``older_than_days``, and leftovers.

    What a used result was made from is used too.
    """
    results = list(store.results())
    keep = with_ancestors(used, results)
    limit = time.time() - older_than_days * DAY
    for result in results:
        last_use = result.path.stat().st_mtime
        if result.manifest.fingerprint not in keep and last_use <= limit:
            days = (time.time() - last_use) / DAY
            yield Candidate(result.path, result.manifest.size(), f"not used for {days:.0f} days")
    for folder, state in store.leftovers():
        if state == "damaged" or (state == "unfinished" and folder.stat().st_mtime <= limit):
            yield Candidate(folder, size_of(folder), state)


def with_ancestors(used: set[str], results: Iterable[Result]) -> set[str]:
    """``used`` and the fingerprints of all that those results were made from, directly or not."""
    by_name = {result.manifest.fingerprint: result.manifest for result in results}
    found: set[str] = set()
    waiting = list(used)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        manifest = by_name.get(name)
        if manifest is not None:
            waiting += [row.fingerprint for row in manifest.inputs.values() if row.fingerprint]
    return found


def used_by_runs(runs: Path, last: int) -> set[str]:
    """Fingerprints that the newest ``last`` folders below ``runs`` name in ``steps.jsonl`` or ``summary.json``."""
    folders = [path for path in runs.glob("*") if path.is_dir()] if runs.is_dir() else []
    folders.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    used: set[str] = set()
    for folder in folders[:last]:
        for name in ("steps.jsonl", "summary.json"):
            try:
                text = (folder / name).read_text(encoding="utf-8")
            except OSError:
                continue
            for part in text.splitlines() if name.endswith(".jsonl") else [text]:
                try:
                    used |= set(_fingerprints(json.loads(part)))
                except ValueError:
                    continue
    return used


def _fingerprints(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "fingerprint" and isinstance(item, str):
                yield item
            else:
                yield from _fingerprints(item)
    elif isinstance(value, list):
        for item in value:
            yield from _fingerprints(item)


def used_by_links(folder: Path) -> set[str]:
    """Fingerprints of the results shown in the folders directly below ``folder`` (``artifacts/``)."""
    manifests = (read_manifest(path.parent) for path in folder.glob(f"*/{MANIFEST}"))
    return {manifest.fingerprint for manifest in manifests if manifest is not None}
