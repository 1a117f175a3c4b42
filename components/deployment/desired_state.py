"""What the registry wants of one model, what a server has, and the acts that lead from this to that. Pure functions.

Acts are small and each may be the last before a kill: whatever was done of a list, the list made anew from what is then
found leads to the same end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Refusal:
    """Why a version is not served; its tag ``foundry.deployment.refused`` keeps this for all replicas."""

    digest: str
    """Of the version's files when it was refused; other files are tried."""
    move: str
    """Time of the move of ``champion`` that it was tried for, '' where the history has none."""
    why: str
    when: str
    who: str
    left: bool = False
    """Whether ``champion`` has stood elsewhere since then: when it returns, the version is tried again."""


@dataclass(frozen=True)
class Wanted:
    """One model in the registry."""

    champion: int | None
    move: str
    """Time of the last move of ``champion`` in the history, '' where it was moved by other hands."""
    earlier: tuple[int, ...]
    """Champions before it, the most recent last; those that were rolled back are left out."""
    digests: Mapping[int, str]
    """Of the files of every version."""
    refusals: Mapping[int, Refusal] = field(default_factory=dict)


@dataclass(frozen=True)
class Observation:
    """A version that took over a short while ago."""

    version: int
    verdict: Literal["open", "fine", "errors"]
    why: str = ""


@dataclass(frozen=True)
class Actual:
    """One model in the repository folder and in the server."""

    on_disk: tuple[int, ...] = ()
    """Ascending."""
    configured: tuple[int, ...] = ()
    """Versions that config.pbtxt tells the server to serve, ascending."""
    loaded: tuple[int, ...] = ()
    """Versions that answer, ascending; the last is the default."""
    checked: tuple[int, str] | None = None
    """The default version and its digest, once this process saw it give its golden embeddings."""
    candidate: bool = False
    """Whether a candidate of an earlier process is left."""
    observation: Observation | None = None


@dataclass(frozen=True)
class RemoveCandidate:
    """Unload and delete ``<name>-candidate``."""


@dataclass(frozen=True)
class MarkLeft:
    """Note at a refusal that ``champion`` stands elsewhere now."""

    version: int


@dataclass(frozen=True)
class Refuse:
    """Keep in the registry that a version is not to be served."""

    version: int
    why: str


@dataclass(frozen=True)
class EndObservation:
    """Stop watching the errors of a version."""

    version: int
    why: str


@dataclass(frozen=True)
class Publish:
    """Make a version the default, with ``beside`` served beside it and nothing else on disk."""

    version: int
    beside: tuple[int, ...]
    fallback: bool
    """Whether it stands in for a champion that is refused."""


@dataclass(frozen=True)
class AddBeside:
    """Serve an earlier champion too, below the default."""

    version: int


Act = RemoveCandidate | MarkLeft | Refuse | EndObservation | Publish | AddBeside


def refused_versions(wanted: Wanted) -> frozenset[int]:
    """The versions whose refusal holds."""
    return frozenset(version for version, refusal in wanted.refusals.items() if _holds(wanted, version, refusal))


def _holds(wanted: Wanted, version: int, refusal: Refusal) -> bool:
    if refusal.digest != wanted.digests.get(version):
        return False
    return version != wanted.champion or (not refusal.left and refusal.move == wanted.move)


def served_by(
    wanted: Wanted, configured: tuple[int, ...], refused: frozenset[int], keep_versions: int
) -> tuple[int, ...]:
    """The versions to be served, ascending, the last being the default; () where there is nothing to be done.

    The default is the champion; where it is refused the most recent champion before it that is not, else the version
    that is served. Beside it stand the most recent earlier champions below it, then those that were served already.
    """
    if wanted.champion is None:
        return ()
    allowed = [version for version in wanted.digests if version not in refused]
    default = next(
        (version for version in (wanted.champion, *reversed(wanted.earlier), *configured[-1:]) if version in allowed),
        None,
    )
    if default is None:
        return ()
    before = dict.fromkeys([*reversed(wanted.earlier), *reversed(configured)])
    beside = [version for version in before if version in allowed and version < default]
    return (*sorted(beside[: keep_versions - 1]), default)


def plan(wanted: Wanted, actual: Actual, keep_versions: int) -> list[Act]:
    """The acts that are due, in the order to do them; [] where the server is what the registry says."""
    acts: list[Act] = [RemoveCandidate()] if actual.candidate else []
    if wanted.champion is not None:
        acts += [
            MarkLeft(version)
            for version, refusal in sorted(wanted.refusals.items())
            if version != wanted.champion and not refusal.left
        ]
    refused = refused_versions(wanted)
    observed = actual.observation
    if observed is not None and observed.verdict == "errors" and observed.version == wanted.champion:
        if observed.version not in refused:
            acts.append(Refuse(observed.version, observed.why))
        refused |= {observed.version}
    served = served_by(wanted, actual.configured, refused, keep_versions)
    if observed is not None and (observed.verdict != "open" or served[-1:] != (observed.version,)):
        why = observed.why or ("another version is wanted" if observed.verdict == "open" else observed.verdict)
        acts.append(EndObservation(observed.version, why))
    if not served:
        return acts
    default = served[-1]
    stands = (
        actual.configured[-1:] == actual.loaded[-1:] == (default,)
        and actual.checked == (default, wanted.digests[default])
        and set(actual.on_disk) | set(actual.configured) | set(actual.loaded) <= set(served)
    )
    ready = set(actual.configured) & set(actual.on_disk)
    if not stands:
        beside = tuple(version for version in served[:-1] if version in ready)
        acts.append(Publish(default, beside, fallback=default != wanted.champion))
    answering = ready & set(actual.loaded) if stands else ready
    acts += [AddBeside(version) for version in served[:-1] if version not in answering]
    return acts
