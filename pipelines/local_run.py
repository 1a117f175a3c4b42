"""The whole line on this machine: kfp.local runs the graph, the step store remembers, the summary tells."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import secrets
import shutil
import sys
import sysconfig
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.common.execution import RUN_FOLDER_VARIABLE
from components.common.kfp_face import FAILURE_VARIABLE
from components.common.params import Params
from foundry.errors import UserError
from foundry.home import REPOSITORY, home
from foundry.lifetime import watch_environment
from foundry.storage import write_atomically
from pipelines.console import Console, showing_steps
from pipelines.stations import STATIONS

RUNS = REPOSITORY / "runs"
LOG = "run.log"
FAILURE = "failure.json"


class LineFailed(Exception):
    """A step ended with an error of the program; its traceback was shown and stands in the log."""


@dataclass(frozen=True)
class RunFolder:
    """``runs/<id>/``: what one run leaves for people."""

    path: Path

    @property
    def name(self) -> str:
        """The run's id: when it began, and four characters against collisions."""
        return self.path.name

    def failure(self) -> str | None:
        """The line of the error a person can mend that ended a step, if one did."""
        try:
            return str(json.loads((self.path / FAILURE).read_text(encoding="utf-8"))["error"])
        except (OSError, ValueError, KeyError):
            return None


def run_line(params: Params, *, version_data: bool = True) -> int:
    """Run every step with ``params``, reusing what is there, print the summary and write it to ``runs/<id>/``.

    ``version_data`` puts the curated dataset under DVC at the end. Returns the exit status: 0 also when the verdict
    failed (the summary says so and nothing was promoted), 1 after an error of the program, which was shown.

    Raises:
        UserError: another run is under way here, or a step ended with an error that a person can mend.
    """
    with _only_run():
        folder = _new_folder(params)
        print(f"run {folder.name}: log in {_shown(folder.path / LOG)}", flush=True)
        started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
        try:
            tracking = _run_steps(params, folder, version_data)
        except LineFailed as error:
            _write_failure(folder, str(error), started, clock)
            print(f"error: {error}", file=sys.stderr)
            return 1
        except UserError as error:
            _write_failure(folder, str(error), started, clock)
            raise
        from pipelines.summary import build_summary, describe

        summary = build_summary(
            params,
            folder.path,
            read_outcomes(folder.path),
            started=started,
            seconds=time.monotonic() - clock,
            tracking=tracking,
        )
        write_atomically(folder.path / "summary.json", json.dumps(summary, indent=1) + "\n")
        print("\n".join(describe(summary)))
    return 0


def _run_steps(params: Params, folder: RunFolder, version_data: bool) -> dict[str, Any]:
    """Run the graph; returns what the summary says of tracking and data versions."""
    from components.common.tracking import line_run, tracking_uri

    with _environment(folder), line_run(folder.name, config=params.model_dump(mode="json")) as run:
        _run_graph(params, folder)
        outcomes = read_outcomes(folder.path)
        facts: dict[str, Any] = {"uri": tracking_uri(), "run_id": run.run_id}
        curation = outcomes["curation"]
        dataset = {"digest": curation["metrics"]["digest"], "fingerprint": curation["fingerprint"]}
        if version_data:
            from pipelines.data_version import version_dataset

            dataset["dvc"] = facts["dvc"] = version_dataset(Path(curation["path"]), params)
        run.set_tags({"dataset": dataset})
    return facts


def _run_graph(params: Params, folder: RunFolder) -> None:
    """Run the graph under kfp.local, its own noise in the log only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from kfp import local

        from pipelines.graph import pipeline_of

        root = home() / "kfp"
        shutil.rmtree(root, ignore_errors=True)  # links into the store that a killed run left
        root.mkdir(parents=True)
        local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root), enable_caching=False)
        line = pipeline_of(params)
        tasks = line.pipeline_spec.root.dag.tasks
        titles = {station.task: station.title for station in STATIONS if station.task in tasks}
        with (folder.path / LOG).open("a", encoding="utf-8") as log:
            console = Console(sys.stdout, log, titles, is_reported=lambda line: line == folder.failure())
            try:
                with showing_steps(console):
                    line()
            except RuntimeError as error:  # kfp.local: 'finished with status FAILURE', without the reason
                log.write(traceback.format_exc())
                if reason := folder.failure():
                    raise UserError(reason) from error
                where = _shown(folder.path / LOG)
                raise LineFailed(
                    f"{console.task or 'the line'}: ended with an error of the program; log: {where}"
                ) from error
            finally:
                shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def _environment(folder: RunFolder) -> Iterator[None]:
    """What the processes of the steps find in their environment."""
    scripts = sysconfig.get_path("scripts")
    changes = {
        RUN_FOLDER_VARIABLE: str(folder.path),
        FAILURE_VARIABLE: str(folder.path / FAILURE),
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore"),
        **watch_environment(),
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _only_run() -> Iterator[None]:
    """Hold the home folder against a second run of the line; a killed run holds nothing."""
    path = home() / "line.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            who = lock.read().strip() or "another process"
            raise UserError(
                f"{home()}: {who} runs the line here; wait until it ends, or set FOUNDRY_HOME to another folder"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        yield
        lock.truncate(0)


def _new_folder(params: Params) -> RunFolder:
    name = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    folder = RunFolder(RUNS / name)
    folder.path.mkdir(parents=True)
    import yaml

    values = yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False)
    write_atomically(folder.path / "params.yaml", f"# The settings of run {name}, complete.\n{values}")
    return folder


def read_outcomes(folder: Path) -> dict[str, dict[str, Any]]:
    """What became of each step of a run, by step name, from ``steps.jsonl``."""
    try:
        lines = (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    rows = [json.loads(line) for line in lines if line]
    return {row["step"]: row for row in rows}


def _write_failure(folder: RunFolder, reason: str, started: datetime.datetime, clock: float) -> None:
    summary = {
        "schema": 1,
        "run": folder.name,
        "state": "failed",
        "error": reason,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 1),
        "steps": list(read_outcomes(folder.path).values()),
    }
    write_atomically(folder.path / "summary.json", json.dumps(summary, indent=1) + "\n")


def _shown(path: Path) -> str:
    """``path`` as short as it can be written from here."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
