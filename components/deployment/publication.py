"""One model on its way into service: candidate, golden images, publication; nothing changes for clients on failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.deployment.golden_check import GoldenCheck, LatencyBudget
from foundry.errors import UserError
from serving.control import ServerControl
from serving.export import OnnxExport
from serving.model_config import ServingOptions
from serving.repository import CANDIDATE, ModelRepository, candidate_of


@dataclass(frozen=True)
class Published:
    """What became of one model."""

    served: tuple[int, ...]
    """Versions that answer now, ascending; the last is the default."""
    before: tuple[int, ...]
    """Versions that were served until then."""
    changed: bool
    """False where exactly this was served already."""
    differences: dict[str, float]
    """Of the published version to the recorded embeddings, by golden image."""
    seconds: dict[str, float]
    """Where the time went: candidate, publish."""


def clear_candidates(control: ServerControl, repository: ModelRepository, names: Sequence[str] | None = None) -> None:
    """Remove candidates that a killed deployment left behind: all, or those called ``names``."""
    for name in repository.names() if names is None else names:
        if name.endswith(CANDIDATE):
            _withdraw(control, repository, name)


def publish(
    control: ServerControl,
    repository: ModelRepository,
    name: str,
    version: int,
    source: tuple[Path, OnnxExport],
    golden: GoldenCheck,
    options: ServingOptions,
    keep_versions: int,
    *,
    budget: LatencyBudget | None = None,
    beside: Sequence[int] | None = None,
) -> Published:
    """Make ``version`` the default of model ``name``, if it gives its golden embeddings.

    New content is loaded and checked as ``<name>-candidate`` first; a version whose content lies in the repository
    already (a rollback, a repeated deployment) is loaded under its own name and checked there. Older versions stay
    served up to ``keep_versions``, those of ``beside`` where it is given; newer ones are withdrawn. A candidate slower
    than ``budget`` is not published. Raises :class:`foundry.errors.UserError` where a load or a
    check fails; the versions served before then answer as before.
    """
    before, text_before = repository.served(name), repository.config(name)
    seconds: dict[str, float] = {}
    new = not repository.holds(name, version, *source)
    if new:
        with _timed(seconds, "candidate"):
            _try_candidate(control, repository, name, version, source, golden, options, budget)
        repository.write_version(name, version, *source)
    standing = before if beside is None else beside
    older = [number for number in standing if number < version and number in repository.versions(name)]
    served = (*older[max(0, len(older) - keep_versions + 1) :], version) if keep_versions > 1 else (version,)
    with _timed(seconds, "publish"):
        try:
            repository.serve(name, served, options)
            changed = new or text_before != repository.config(name)
            differences = {} if changed else _answers_already(control, repository, name, served, golden)
            if not differences:
                control.load(name)
                differences = golden.differences(control.url, name, version)
        except BaseException:
            if text_before is None:
                _withdraw(control, repository, name)
            else:
                repository.restore(name, text_before)
                control.load(name)
            raise
    for number in repository.versions(name):
        if number not in served:
            repository.remove(name, number)
    return Published(tuple(served), tuple(before), changed, differences, seconds)


def add_beside(
    control: ServerControl,
    repository: ModelRepository,
    name: str,
    version: int,
    source: tuple[Path, OnnxExport],
    golden: GoldenCheck,
    options: ServingOptions,
) -> None:
    """Serve ``version`` too, below the default of ``name``, if it gives its golden embeddings.

    Raises :class:`foundry.errors.UserError` as :func:`publish`; what was served before then answers as before.
    """
    before, text_before = repository.served(name), repository.config(name)
    if text_before is None or before[-1] <= version:
        raise UserError(f"model '{name}': version {version} cannot stand beside {before or 'nothing'}")
    if not repository.holds(name, version, *source):
        _try_candidate(control, repository, name, version, source, golden, options, None)
        repository.write_version(name, version, *source)
    try:
        repository.serve(name, sorted({*before, version}), options)
        control.load(name)
        golden.differences(control.url, name, version)
    except BaseException:
        repository.restore(name, text_before)
        control.load(name)
        raise


def _answers_already(
    control: ServerControl, repository: ModelRepository, name: str, served: Sequence[int], golden: GoldenCheck
) -> dict[str, float]:
    """The golden differences of the default version where exactly ``served`` are loaded; {} where a load is due."""
    version = served[-1]
    if control.ready_versions(name) != list(served):  # killed between the configuration and the load
        return {}
    try:
        return golden.differences(control.url, name, version)
    except UserError:  # a model process that was killed: Triton says READY, answers 500 and does not start it again
        repository.touch(name, version)
        return {}


def _try_candidate(
    control: ServerControl,
    repository: ModelRepository,
    name: str,
    version: int,
    source: tuple[Path, OnnxExport],
    golden: GoldenCheck,
    options: ServingOptions,
    budget: LatencyBudget | None,
) -> None:
    candidate = candidate_of(name)
    try:
        repository.write_version(candidate, version, *source)
        repository.serve(candidate, (version,), options)
        control.load(candidate)
        golden.differences(control.url, candidate, version)
        if budget is not None:
            budget.check(control.url, candidate, version)
    finally:
        _withdraw(control, repository, candidate)


def _withdraw(control: ServerControl, repository: ModelRepository, name: str) -> None:
    if control.ready_versions(name):
        control.unload(name)
    repository.remove(name)


class _timed:
    """Adds the seconds inside the ``with`` to a table."""

    def __init__(self, table: dict[str, float], name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._table, self._name, self._clock = table, name, clock

    def __enter__(self) -> None:
        self._start = self._clock()

    def __exit__(self, *_: object) -> None:
        self._table[self._name] = round(self._clock() - self._start, 3)
