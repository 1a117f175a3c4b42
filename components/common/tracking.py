"""MLflow tracking: one run for a line, one nested run for each step.

A step never depends on its tracking server once it runs: a server that goes away costs metrics, not training.
A wrong address, though, is told before any work starts. MLflow is imported when first needed (about a second).

Whose run a step logs into is decided by the environment:

=========================  ==========================================================================================
``MLFLOW_RUN_ID``          a run that someone else opened (Kubeflow does): log into it, leave its end to them
``FOUNDRY_PARENT_RUN_ID``  a new run nested under this one (set by :func:`line_run`)
neither                    a new run on its own
=========================  ==========================================================================================
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import math
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.common.mlflow_store import client, first_line, initialise, plain_address_errors, tracking_uri
from foundry.lifetime import is_alive, process_identity

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT_VARIABLE = "FOUNDRY_PARENT_RUN_ID"
"""Environment variable: the run that new step runs are nested under."""

TAG_PREFIX = "foundry."
"""Every tag of ours begins so; lineage ``{"dataset": {"digest": d}}`` becomes the tag ``foundry.dataset.digest``."""

_NAME_LIMIT, _PARAMETER_LIMIT, _TAG_LIMIT = 250, 6000, 8000  # characters that MLflow keeps
_PARAMETERS_A_REQUEST, _METRICS_A_REQUEST = 100, 1000
_QUIET_SECONDS = 30.0  # after a failed request; a server that is down must not slow training down at every step


@contextlib.contextmanager
def line_run(
    name: str, *, config: Mapping[str, Any] | None = None, tags: Mapping[str, Any] | None = None
) -> Iterator[TrackedRun]:
    """The parent run of a whole line called ``name``; steps started inside (also in child processes) nest under it.

    Honours ``MLFLOW_RUN_ID``: then that run is the parent. Earlier lines that were killed on this machine are marked.
    """
    with _open_run(name, {"line": "true", **(tags or {})}, ended_like=("line", "true"), taken_over=False) as run:
        run.log_parameters(config or {})
        outer = {variable: os.environ.pop(variable, None) for variable in ("MLFLOW_RUN_ID", PARENT_VARIABLE)}
        os.environ[PARENT_VARIABLE] = run.run_id
        try:
            yield run
        finally:
            for variable, value in outer.items():
                os.environ.pop(variable, None)
                if value is not None:
                    os.environ[variable] = value


@contextlib.contextmanager
def step_run(
    step_name: str,
    *,
    config: Mapping[str, Any],
    lineage: Mapping[str, Any],
    reused: bool = False,
    taken_over: bool = False,
) -> Iterator[TrackedRun]:
    """The run of one step: its settings as parameters ``<step>.<setting>``, its lineage as tags ``foundry.*``.

    Args:
        step_name: name of the step, which is also its section of params.yaml.
        config: resolved settings of the step.
        lineage: tags, nested mappings allowed, None left out: ``fingerprint`` (names the result), ``git_commit``,
            ``git_dirty_digest``, digests of inputs, source versions, whatever leads back to where the result came from.
        reused: whether the result existed already, so that nothing is computed in this run.
        taken_over: whether the caller holds a lock that proves any earlier run of this fingerprint dead. Without it
            only earlier runs whose process on this machine is gone are marked as killed.

    Yields a :class:`TrackedRun`; :func:`current_run` returns it meanwhile. The run ends as FINISHED, as FAILED after an
    exception or as KILLED after Ctrl-C.

    Raises:
        UserError: at the start, as :func:`initialise`.
    """
    tags = {"step": step_name, "reused": str(bool(reused)).lower(), **lineage}
    fingerprint = str(lineage.get("fingerprint", ""))
    same = ("fingerprint", fingerprint) if fingerprint else None
    with _open_run(step_name, tags, ended_like=same, taken_over=taken_over) as run:
        run.log_parameters({step_name: config})
        _current.append(run)
        try:
            yield run
        finally:
            _current.remove(run)


_current: list[TrackedRun] = []


def current_run() -> TrackedRun | None:
    """The run of the step that this process is executing (from any thread), or None outside of one."""
    return _current[-1] if _current else None


class TrackedRun:
    """An open MLflow run. Its methods never raise for a tracking server in trouble; they print one warning line."""

    def __init__(self, tracking_client: MlflowClient, run_id: str, experiment_id: str) -> None:
        self.client = tracking_client
        self.run_id = run_id
        self.experiment_id = experiment_id
        self._quiet_until = 0.0

    def log_metrics(
        self, metrics: Mapping[str, Any], step: int | None = None, time_seconds: float | None = None
    ) -> None:
        """Log the finite scalars of ``metrics`` (nested names are joined by '/'); the rest is passed over.

        ``step`` is the optimiser step (default 0), ``time_seconds`` the Unix time of the measurement (default now).
        """
        self.log_series([{**metrics, "step": step or 0, "time": time.time() if time_seconds is None else time_seconds}])

    def log_series(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Log rows as they stand in ``metrics.jsonl``: ``{"step": int, "time": Unix seconds, name: value, ...}``.

        Rows are sent together, up to 1000 values a request, so following a training run costs little.
        """
        from mlflow.entities import Metric

        metrics = []
        for row in rows:
            step, timestamp = int(row.get("step", 0)), int(float(row.get("time", time.time())) * 1000)
            named = {name: value for name, value in row.items() if name not in ("step", "time")}
            metrics += [Metric(name, value, timestamp, step) for name, value in finite_scalars(named).items()]
        for batch in _batches(metrics, _METRICS_A_REQUEST):
            self._attempt("metrics", partial(self.client.log_batch, self.run_id, metrics=batch))

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Log settings, nested names joined by '.', long values shortened to what MLflow keeps."""
        from mlflow.entities import Param

        rows = [Param(key, value) for key, value in flatten(parameters, _PARAMETER_LIMIT).items()]
        for batch in _batches(rows, _PARAMETERS_A_REQUEST):
            self._attempt("parameters", partial(self.client.log_batch, self.run_id, params=batch))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags ``foundry.<name>``, nested names joined by '.'."""
        from mlflow.entities import RunTag

        rows = [RunTag(key, value) for key, value in tag_values(tags).items()]
        for batch in _batches(rows, _PARAMETERS_A_REQUEST):
            self._attempt("tags", partial(self.client.log_batch, self.run_id, tags=batch))

    def log_artifact(self, path: str | Path, name: str | None = None) -> None:
        """Keep a copy of a file or folder with the run as ``name`` ('report/report.html'; default: its own name)."""
        path = Path(path)
        folder, _, leaf = (name or path.name).rpartition("/")

        def send() -> None:
            if path.is_dir():
                self.client.log_artifacts(self.run_id, str(path), name or path.name)
            elif leaf == path.name:
                self.client.log_artifact(self.run_id, str(path), folder or None)
            else:
                with tempfile.TemporaryDirectory() as scratch:
                    renamed = shutil.copyfile(path, Path(scratch) / leaf)
                    self.client.log_artifact(self.run_id, str(renamed), folder or None)

        self._attempt(f"artifact {name or path.name}", send)

    def _attempt(self, what: str, action: Callable[[], Any], *, always: bool = False) -> None:
        if not always and time.monotonic() < self._quiet_until:
            return
        try:
            action()
        except Exception as error:  # a step goes on without its tracking server, whatever the server's client raises
            self._quiet_until = time.monotonic() + _QUIET_SECONDS
            reason = first_line(error)
            print(f"warning: tracking: {what} of run {self.run_id} not recorded: {reason}", file=sys.stderr, flush=True)

    def _end(self, status: str) -> None:
        self._attempt("the end", lambda: self.client.set_terminated(self.run_id, status), always=True)


def finite_scalars(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers in a nested mapping, under names that MLflow accepts; booleans count as 0 and 1."""
    found: dict[str, float] = {}
    for key, value in values.items():
        name = f"{prefix}/{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            found.update(finite_scalars(value, name))
            continue
        if isinstance(value, (str, bytes)) or value is None:
            continue
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            continue
        if math.isfinite(number):
            found[safe_name(name)] = number
    return found


def flatten(values: Any, limit: int, prefix: str = "") -> dict[str, str]:
    """``{"a": {"b": 1}}`` -> ``{"a.b": "1"}``; lists as JSON; a text longer than ``limit`` ends in its digest."""
    if hasattr(values, "model_dump"):
        values = values.model_dump(mode="json")
    if isinstance(values, Mapping) and (values or not prefix):
        rows: dict[str, str] = {}
        for key, value in values.items():
            rows.update(flatten(value, limit, f"{prefix}.{key}" if prefix else str(key)))
        return rows
    text = values if isinstance(values, str) else json.dumps(values, sort_keys=True, default=str)
    if len(text) > limit:
        ending = f"... sha256:{hashlib.sha256(text.encode()).hexdigest()}"
        text = text[: limit - len(ending)] + ending
    return {safe_name(prefix): text}


def tag_values(tags: Mapping[str, Any], limit: int = _TAG_LIMIT) -> dict[str, str]:
    """``tags`` as MLflow tags ``foundry.*`` without those that are None; the Git commit also where MLflow shows it."""
    given = {name: value for name, value in tags.items() if value is not None}
    rows = {
        key if key.startswith("mlflow.") else TAG_PREFIX + key: value for key, value in flatten(given, limit).items()
    }
    if commit := rows.get(f"{TAG_PREFIX}git_commit"):
        rows["mlflow.source.git.commit"] = commit
    return rows


def safe_name(name: str) -> str:
    """``name`` with every character that MLflow refuses in metric, parameter and tag names replaced by '_'."""
    name = re.sub(r"[^\w.\- :/]", "_", name, flags=re.ASCII)
    name = "/".join(part for part in name.split("/") if part not in ("", ".", ".."))
    return name[:_NAME_LIMIT] or "_"


@contextlib.contextmanager
def _open_run(
    name: str, tags: Mapping[str, Any], *, ended_like: tuple[str, str] | None, taken_over: bool
) -> Iterator[TrackedRun]:
    uri = tracking_uri()
    experiment_id = initialise(uri)
    given = os.environ.get("MLFLOW_RUN_ID")
    with plain_address_errors(uri):
        tracking_client = client(uri)
        if ended_like is not None:
            _mark_killed(tracking_client, experiment_id, *ended_like, taken_over=taken_over, keep=given)
        if given:
            run = TrackedRun(tracking_client, given, tracking_client.get_run(given).info.experiment_id)
        else:
            own = {
                "mlflow.runName": name,
                "mlflow.source.name": "dino-foundry",
                "mlflow.user": _user(),
                **tag_values({"process": _this_process(), **tags}),
            }
            if parent := os.environ.get(PARENT_VARIABLE):
                own["mlflow.parentRunId"] = parent
            created = tracking_client.create_run(experiment_id, run_name=name, tags=own)
            run = TrackedRun(tracking_client, created.info.run_id, experiment_id)
    if given:
        run.set_tags(tags)
    try:
        yield run
    except BaseException as error:
        run.set_tags({"error": f"{type(error).__name__}: {first_line(error)}"})
        if not given:
            run._end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    if not given:
        run._end("FINISHED")


def _mark_killed(
    tracking_client: MlflowClient, experiment_id: str, tag: str, value: str, *, taken_over: bool, keep: str | None
) -> None:
    """End the runs that say RUNNING and carry this tag though their process is gone."""
    query = f"attributes.status = 'RUNNING' and tags.`{TAG_PREFIX}{tag}` = '{value}'"
    for run in tracking_client.search_runs([experiment_id], query, max_results=100):
        if run.info.run_id != keep and (taken_over or _process_gone(run.data.tags.get(f"{TAG_PREFIX}process", ""))):
            tracking_client.set_terminated(run.info.run_id, "KILLED")


def _this_process() -> str:
    """'host boot-id pid-namespace pid:start', enough to tell later whether the process is gone."""
    return " ".join([*_machine(), process_identity(os.getpid()) or "unknown"])


def _machine() -> tuple[str, str, str]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = namespace = "unknown"
    return socket.gethostname(), boot, namespace


def _process_gone(identity: str) -> bool:
    host, boot, namespace, process = (identity.split(" ") + [""] * 4)[:4]
    here = _machine()
    if host != here[0] or "unknown" in (boot, process):
        return False
    if boot != here[1]:
        return True
    return namespace == here[2] and not is_alive(process)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return str(os.getuid())


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
