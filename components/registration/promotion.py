"""What moves the alias ``champion``: a verdict that passed, or a person, who needs a reason where it failed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from components.common.mlflow_store import plain_address_errors
from components.common.tracking import TAG_PREFIX, tag_values
from components.registration.registry import VERDICT, ModelRegistry, Move
from components.registration.report import Verdict
from foundry.errors import UserError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

APPLIED = "applied_verdict"
"""Tag of a version: digest of the passed verdict that made it champion."""
REASONS, COMPARISONS = "verdict_reasons", "verdict_comparisons"
"""Tags of a version, JSON lists: the gates that failed, and what the comparisons with the champion found, in words."""


def apply_verdict(registry: ModelRegistry, model: str, version: str, verdict: Verdict) -> str:
    """Tag ``version`` with the verdict, move ``champion`` to it if that passed, and say in one line what happened.

    A person's decision outlives the verdict it overruled: where the alias was taken from this version by ``rollback``,
    ``promote`` or by other hands, the same verdict does not give it back; a new verdict may.
    """
    tags = {"verdict": verdict.word, REASONS: list(verdict.reasons), COMPARISONS: list(verdict.comparisons)}
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


def promote_by_hand(registry: ModelRegistry, model: str, version: str, why: str, anyway: bool = False) -> Move | None:
    """Make ``version`` (number or alias) the champion because a person says so; None where it is already.

    Raises :class:`UserError` for a version whose verdict failed, unless ``anyway``, which needs a reason.
    """
    found = registry.version(model, version)
    failed = found.tags.get(VERDICT) == "failed"
    reasons = "; ".join(refusal(found)) if failed else ""
    why = why.strip()
    if anyway and not why:
        raise UserError(
            f"registered model '{model}': --anyway needs the reason, which the history keeps; add --why TEXT"
        )
    if failed and not anyway and registry.champion(model) != str(found.version):
        raise UserError(
            f"registered model '{model}': version {found.version} failed its verdict: {reasons}; to promote it all "
            "the same, add --anyway --why TEXT"
        )
    return registry.promote(model, version, why or "promoted by hand", overruled=reasons)


def refusal(version: ModelVersion) -> list[str]:
    """The failed gates that were recorded with a version, in words."""
    text = version.tags.get(TAG_PREFIX + REASONS, "")
    # A long list is kept cut off: string by string, what is whole of it.
    reasons = [json.loads(row) for row in re.findall(r'"(?:[^"\\]|\\.)*"', text)]
    return reasons or ["the registry does not hold which gate"]


def _tag(registry: ModelRegistry, model: str, version: str, tags: Mapping[str, object]) -> None:
    with plain_address_errors(registry.uri):
        for key, value in tag_values(tags, 5000).items():
            registry.client.set_model_version_tag(model, version, key, value)
