"""What a verdict does to the alias ``champion``: a student that passed takes it, one that failed leaves it alone."""

from __future__ import annotations

from collections.abc import Mapping

from components.common.mlflow_store import plain_address_errors
from components.common.tracking import TAG_PREFIX, tag_values
from components.registration.registry import ModelRegistry
from components.registration.report import Verdict

APPLIED = "applied_verdict"
"""Tag of a version: digest of the passed verdict that made it champion."""


def apply_verdict(registry: ModelRegistry, model: str, version: str, verdict: Verdict) -> str:
    """Tag ``version`` with the verdict, move ``champion`` to it if that passed, and say in one line what happened.

    A person's decision outlives the verdict it overruled: where the alias was taken from this version by ``rollback``,
    ``promote`` or by other hands, the same verdict does not give it back; a new verdict may.
    """
    tags = {"verdict": verdict.word, "verdict_reasons": list(verdict.reasons)}
    known = registry.version(model, version).tags
    _tag(registry, model, version, tags)
    champion = registry.champion(model)
    if champion == version:
        return f"version {version} is the champion"
    standing = f"version {champion} stays the champion" if champion else "there is no champion yet"
    if not verdict.passed:
        return f"{standing}: version {version} failed its verdict ({'; '.join(verdict.reasons)})"
    taken = [move for move in registry.history(model) if move.previous == version]
    if taken and taken[-1].action != "verdict" and known.get(TAG_PREFIX + APPLIED) == verdict.digest:
        return (
            f"{standing}: version {version} was replaced by hand on {taken[-1].time[:19]} ({taken[-1].action}: "
            f"{taken[-1].why}) after this verdict"
        )
    registry.promote(model, version, "passed every gate of the evaluation", action="verdict", verdict=verdict.word)
    _tag(registry, model, version, {APPLIED: verdict.digest})
    return f"version {version} is the champion now" + (f" (before: version {champion})" if champion else "")


def _tag(registry: ModelRegistry, model: str, version: str, tags: Mapping[str, object]) -> None:
    with plain_address_errors(registry.uri):
        for key, value in tag_values(tags, 5000).items():
            registry.client.set_model_version_tag(model, version, key, value)
