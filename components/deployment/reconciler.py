"""The loop that makes one server serve what the registry says: look, plan, act, and again until nothing is due.

Each replica has a reconciler of its own. They share nothing but the registry: its aliases, its history, and the
refusals that each leaves there, so all come to the same versions. What one pass decides from is read anew in each.
"""

from __future__ import annotations

import getpass
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from components.deployment.audit import (
    AuditLog,
    Entry,
    Outcome,
    now,
    read_refusal,
    remove_refusal,
    tag_last_act,
    tag_refusal,
)
from components.deployment.config import DeploymentConfig
from components.deployment.deploy import (
    Champion,
    latency_budget,
    model_repository,
    server_that_runs,
    serving_options,
    start_with_models,
    to_onnx,
)
from components.deployment.desired_state import (
    Act,
    Actual,
    AddBeside,
    EndObservation,
    MarkLeft,
    Publish,
    Refusal,
    Refuse,
    RemoveCandidate,
    Wanted,
    plan,
)
from components.deployment.golden_check import GoldenCheck
from components.deployment.observation import Observations, read_metrics
from components.deployment.publication import add_beside, clear_candidates, publish
from components.registration.champions import ChangedFiles, default_destination, download_version
from components.registration.registry import CHALLENGER, CHAMPION, EXPORT_DIGEST, ModelRegistry, champion_stack
from foundry.errors import UserError, explain_os_error
from foundry.home import home
from serving.client import ServerBusy
from serving.repository import candidate_of
from serving.server import RunningServer

ROUNDS = 8
"""Looks at one model in a pass; one refused version takes one of them."""
OBSERVING = 2.0
"""Seconds between two passes, at most, while a version that took over is observed."""

T = TypeVar("T")


class VersionRefused(UserError):
    """A version that must not be served, for a reason of its own and not of its surroundings."""


class Reconciler:
    """One server and the registered models ``<prefix>-*``."""

    def __init__(
        self,
        config: DeploymentConfig,
        prefix: str,
        *,
        registry: ModelRegistry | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config, self.prefix = config, prefix
        self.repository = model_repository(config)
        self.audit = AuditLog(audit_path(config))
        self.who = f"reconciler {_user()}@{socket.gethostname()}, server {config.server}"
        self.observations = Observations(home() / "serving" / f"{config.server}.observed", config, clock)
        self._registry = registry
        self._checked: dict[str, tuple[int, str]] = {}
        self._told: dict[str, str] = {}
        self._ready: dict[str, int] = {}
        self._process = ""

    def watch(self, every: float, wake: threading.Event, stop: threading.Event) -> None:
        """Reconcile now, after each ``wake`` and every so many seconds, until ``stop`` (set ``wake`` with it)."""
        while not stop.is_set():
            wake.clear()
            self.run_once()
            wake.wait(min(every, OBSERVING) if self.observations.any_open() else every)

    def run_once(self) -> list[str]:
        """One pass over all models. Returns what went wrong, each also printed once and entered in the audit log.

        What went wrong is tried again in the next pass; a version that was refused is not.
        """
        problems: dict[str, str] = {}
        try:
            registry, server = self._reach()
            names = [name for name in registry.model_names() if name.startswith(f"{self.prefix}-")]
        except UserError as error:
            problems[""] = str(error)
        else:
            for name in names:
                try:
                    with self.repository.locked():
                        self._reconcile(registry, server, name)
                except UserError as error:
                    problems[name] = str(error)
                except OSError as error:
                    if (line := explain_os_error(error)) is None:
                        raise
                    problems[name] = line
            if not problems:
                self._make_ready(registry, names)
        for name, problem in problems.items():
            if self._told.get(name) != problem:
                print(f"deployment: warning: {problem}", file=sys.stderr, flush=True)
                self._enter(name, None, "reconcile", "failed", problem)
        self._told = problems
        return list(problems.values())

    def _reach(self) -> tuple[ModelRegistry, RunningServer]:
        self._registry = self._registry or ModelRegistry()
        server = server_that_runs(self.config, self.repository)
        if server is None:
            with self.repository.locked():
                server = start_with_models(self.config, self.repository)
            server.keep()
        if server.process != self._process:
            self._process, self._checked = server.process, {}
        return self._registry, server

    def _reconcile(self, registry: ModelRegistry, server: RunningServer, name: str) -> None:
        for _ in range(ROUNDS):
            wanted = read_wanted(registry, name)
            metrics = read_metrics(server.metrics_url)
            actual = self._actual(server, name, metrics)
            acts = plan(wanted, actual, self.config.keep_versions)
            if not acts:
                if actual.loaded:
                    self.observations.note(name, actual.loaded[-1], metrics)
                return
            for act in acts:
                try:
                    self._do(act, registry, server, name, wanted, actual)
                except VersionRefused as error:
                    assert isinstance(act, Publish | AddBeside)
                    self._refuse(registry, name, act.version, str(error), wanted)
                    break
        raise UserError(f"model '{name}': not settled after {ROUNDS} rounds; see {self.audit.path}")

    def _make_ready(self, registry: ModelRegistry, names: list[str]) -> None:
        """Download and export the challengers before anyone promotes them: it takes most of the time of a switch."""
        for name in names:
            try:
                number = registry.model(name).aliases.get(CHALLENGER)
                if number is not None and self._ready.get(name) != int(number):
                    self._ready[name] = int(number)
                    self._prepare(registry, name, int(number))
            except (UserError, OSError) as error:  # told again, and entered, when it is promoted
                print(f"deployment: warning: the challenger of {name}: {error}", file=sys.stderr, flush=True)

    def _actual(self, server: RunningServer, name: str, metrics: str) -> Actual:
        control = server.control()
        return Actual(
            on_disk=tuple(self.repository.versions(name)),
            configured=tuple(self.repository.served(name)),
            loaded=tuple(control.ready_versions(name)),
            checked=self._checked.get(name),
            candidate=candidate_of(name) in self.repository.names() or bool(control.ready_versions(candidate_of(name))),
            observation=self.observations.judge(name, metrics),
        )

    def _do(
        self, act: Act, registry: ModelRegistry, server: RunningServer, name: str, wanted: Wanted, actual: Actual
    ) -> None:
        match act:
            case RemoveCandidate():
                clear_candidates(server.control(), self.repository, [candidate_of(name)])
                self._enter(name, None, "remove candidate", "done", "left by a process that was killed")
            case MarkLeft(version):
                refusal = wanted.refusals[version]
                tag_refusal(registry, name, version, Refusal(**{**vars(refusal), "left": True}))
            case Refuse(version, why):
                self._refuse(registry, name, version, why, wanted)
            case EndObservation(version, why):
                self.observations.end(name)
                self._enter(name, version, "end observation", "done", why)
            case Publish():
                self._publish(act, registry, server, name, wanted, actual)
            case AddBeside(version):
                files = self._prepare(registry, name, version)
                details = {"digest": wanted.digests[version]}
                self._enter(name, version, "add beside", "started", "an earlier champion is kept at hand", details)
                source = (files.onnx, GoldenCheck(files.files.golden, self.config.tolerance))
                self._try(
                    server,
                    lambda: add_beside(
                        server.control(), self.repository, name, version, *source, serving_options(self.config)
                    ),
                )
                self._enter(name, version, "add beside", "done", "it gives its golden embeddings", details, registry)

    def _publish(
        self,
        act: Publish,
        registry: ModelRegistry,
        server: RunningServer,
        name: str,
        wanted: Wanted,
        actual: Actual,
    ) -> None:
        files = self._prepare(registry, name, act.version)
        before = actual.loaded[-1:] or actual.configured[-1:]
        switch = before != (act.version,)
        what = "publish" if not switch or not before or before[0] < act.version else "roll back"
        why = self._reason(registry, name, act, wanted) if switch else "what stands was checked"
        details: dict[str, Any] = {"digest": wanted.digests[act.version], "before": list(actual.loaded)}
        if switch:
            self._enter(name, act.version, what, "started", why, details)
            if before and not act.fallback:
                self.observations.expect(name, act.version, before[0], read_metrics(server.metrics_url))
        published = self._try(
            server,
            lambda: publish(
                server.control(),
                self.repository,
                name,
                act.version,
                files.onnx,
                GoldenCheck(files.files.golden, self.config.tolerance),
                serving_options(self.config),
                self.config.keep_versions,
                budget=latency_budget(self.config, files),
                beside=act.beside,
            ),
        )
        self._checked[name] = (act.version, wanted.digests[act.version])
        self.observations.begin(name, read_metrics(server.metrics_url))
        if act.version in wanted.refusals:
            remove_refusal(registry, name, act.version)
        last = next((entry for entry in reversed(self.audit.entries(name)) if entry.version == act.version), None)
        if switch or published.changed or (last is not None and last.outcome == "started"):
            details |= {
                "served": list(published.served),
                "largest_difference": max(published.differences.values(), default=0.0),
                "seconds": published.seconds,
            }
            self._enter(name, act.version, what, "done", why, details, registry)

    def _prepare(self, registry: ModelRegistry, name: str, version: int) -> Champion:
        try:
            files = download_version(name, str(version), default_destination(), registry=registry)
        except ChangedFiles as error:
            raise VersionRefused(str(error)) from error
        try:
            return Champion(name, files, to_onnx(files))
        except UserError as error:
            raise VersionRefused(str(error)) from error

    def _try(self, server: RunningServer, act: Callable[[], T]) -> T:
        """Do it; an error is the version's own fault where the server still stands."""
        try:
            return act()
        except ServerBusy:
            raise
        except UserError as error:
            if server.control().is_ready():
                raise VersionRefused(str(error)) from error
            raise

    def _refuse(self, registry: ModelRegistry, name: str, version: int, why: str, wanted: Wanted) -> None:
        refusal = Refusal(wanted.digests[version], wanted.move, why, now(), self.who)
        print(f"deployment: {name} version {version} is refused: {why}", file=sys.stderr, flush=True)
        self._enter(name, version, "refuse", "refused", why, {"digest": refusal.digest})
        tag_refusal(registry, name, version, refusal)
        self.observations.end(name)

    def _reason(self, registry: ModelRegistry, name: str, act: Publish, wanted: Wanted) -> str:
        if act.fallback:
            refusal = wanted.refusals.get(wanted.champion or 0)
            return f"champion version {wanted.champion} is refused" + (f": {refusal.why}" if refusal else "")
        moves = registry.history(name)
        if not moves or moves[-1].version != str(act.version):
            return "it is the champion"
        return f"champion moved ({moves[-1].action}): {moves[-1].why}"

    def _enter(
        self,
        name: str,
        version: int | None,
        what: str,
        outcome: Outcome,
        why: str,
        details: dict[str, Any] | None = None,
        registry: ModelRegistry | None = None,
    ) -> None:
        entry = Entry(now(), self.who, what, name, version, outcome, why, details or {})
        self.audit.append(entry)
        if registry is not None:
            tag_last_act(registry, entry)
            print(f"deployment: {name} version {version}: {what}, {why}", flush=True)


def read_wanted(registry: ModelRegistry, name: str) -> Wanted:
    """What the registry says of one model. Raises :class:`UserError` where it does not answer."""
    model = registry.model(name)
    champion = model.aliases.get(CHAMPION)
    moves = registry.history(name)
    versions = {int(version.version): version.tags for version in registry.versions(name)}
    refusals = {number: read_refusal(tags) for number, tags in versions.items()}
    recorded = [move for move in moves if move.action != "outside"]
    return Wanted(
        champion=None if champion is None else int(champion),
        move=recorded[-1].time if recorded and recorded[-1].version == str(champion) else "",
        earlier=tuple(int(number) for number in champion_stack(moves) if number != str(champion)),
        digests={number: tags.get(EXPORT_DIGEST, "") for number, tags in versions.items()},
        refusals={number: refusal for number, refusal in refusals.items() if refusal is not None},
    )


def audit_path(config: DeploymentConfig) -> Path:
    """Where the acts on the server of these settings are recorded."""
    return home() / "serving" / f"{config.server}.audit.jsonl"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
