"""Start the training processes of one run, watch over them, and say plainly why they failed.

:class:`LocalLauncher` uses TorchX's ``local_cwd`` scheduler (``torchrun`` on this machine). A launcher for another
TorchX scheduler (Kubernetes) takes the same :class:`TrainingJob` and stands beside it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import sysconfig
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from components.common.processes import MARK_VARIABLE, end_processes
from components.common.training_app import TrainingJob, training_app
from foundry.errors import ERROR_FILE_VARIABLE, UserError
from foundry.home import REPOSITORY
from foundry.lifetime import free_port, watch_environment

POLL_SECONDS = 0.25
LAST_LINES = 15
"""Lines of a failed process that are shown."""


class TrainingFailed(RuntimeError):
    """A training process ended with an error of the program."""


class Launcher(Protocol):
    """Runs a job to its end."""

    def run(self, job: TrainingJob) -> None:
        """Return when the job is done. Raises :class:`UserError` or :class:`TrainingFailed` with the reason."""


def launch_training(
    recipe_file: str | Path,
    data: str,
    output: str | Path,
    processes: int,
    *,
    evaluation: str | None = None,
    teacher: str | None = None,
    log_dir: Path | None = None,
    nodes: int = 1,
    timeout: float | None = None,
    name: str = "training",
    launcher: Launcher | None = None,
) -> None:
    """Run ``-m training`` on ``processes`` processes a node; continues what ``output`` holds.

    Raises:
        UserError: training ended with a plain-line error (a setting, the data, the disk).
        TrainingFailed: another failure, with the last lines of the process that failed first, or the time limit.
    """
    arguments = ["--recipe", str(recipe_file), "--data", str(data), "--output", str(output)]
    if teacher:
        arguments += ["--teacher", str(teacher)]
    if evaluation:
        arguments += ["--evaluation", str(evaluation)]
    job = TrainingJob(
        arguments=tuple(arguments),
        output=str(output),
        processes=processes,
        nodes=nodes,
        name=name,
        log_dir=log_dir,
        timeout=timeout,
    )
    (launcher or LocalLauncher()).run(job)


class LocalLauncher:
    """``torchrun`` on this machine through TorchX's ``local_cwd`` scheduler."""

    def run(self, job: TrainingJob) -> None:
        """Run ``job`` to its end; whatever way this ends, none of its processes is left."""
        mark = os.path.abspath(job.output)
        end_processes(mark)  # of a launcher that was killed a moment ago
        logs = (job.log_dir or Path(job.output) / "logs").absolute() / time.strftime("%Y%m%d-%H%M%S")
        while logs.exists():
            logs = logs.with_name(logs.name + "+")
        ranks = logs / "ranks"
        ranks.mkdir(parents=True)
        error_file = logs / "error"
        environment = {
            **_network(),
            **watch_environment(),
            **job.environment,
            MARK_VARIABLE: mark,
            ERROR_FILE_VARIABLE: str(error_file),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(threads_for(job.processes * job.nodes)),
            "PATH": sysconfig.get_path("scripts"),
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
            # torchrun takes options from PET_*: each rank's output to a file, the first one's also to its own
            "PET_LOG_DIR": str(ranks),
            "PET_LOCAL_RANKS_FILTER": "0",
            "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": _PREFIX,
        }
        try:
            state = self._follow(job, environment, logs)
        finally:
            end_processes(mark)
        if state != "SUCCEEDED":
            raise failure(job, state, logs)

    def _follow(self, job: TrainingJob, environment: Mapping[str, str], logs: Path) -> str:
        with _IMPORTING, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchx.runner import get_runner

            get_runner().close()  # its schedulers and their syntax trees too

        for name in ("torchx", "torchx-events-null"):  # an event for each look at the state
            logging.getLogger(name).setLevel(logging.ERROR)
        torchrun = os.path.join(sysconfig.get_path("scripts"), "torchrun")
        app = training_app(job, environment, torchrun=torchrun, host="127.0.0.1", port=free_port())
        role = app.roles[-1]
        deadline = None if job.timeout is None else time.monotonic() + job.timeout
        with _signals_as_exceptions() as install, get_runner() as runner:
            handle = runner.run(app, "local_cwd", cfg={"log_dir": str(logs)})
            install()
            try:
                output = _Output(logs, role.name)
                while True:
                    status = runner.status(handle)
                    output.show()
                    if status is None or status.is_terminal():
                        return status.state.name if status else "UNKNOWN"
                    if deadline is not None and time.monotonic() > deadline:
                        raise TrainingFailed(f"{job.name}: not finished after {job.timeout:.0f} s; it was stopped")
                    time.sleep(POLL_SECONDS)
            except BaseException:
                runner.cancel(handle)
                raise


_IMPORTING = threading.Lock()
"""Python 3.11 may fail to build syntax trees in two threads at once (python/cpython#106905)."""
_PREFIX = "[rank${rank}]: "
_PREFIXED = re.compile(r"^\[rank(\d+)\]: ?(.*)$")


def threads_for(processes: int) -> int:
    """Threads for the matrix products of one of ``processes`` processes on this machine."""
    return max(1, len(os.sched_getaffinity(0)) // max(processes, 1))


def _network() -> dict[str, str]:
    """Keep the traffic of one machine on its loopback, whatever its name resolves to."""
    values = {"PET_LOCAL_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    return {name: os.environ.get(name, value) for name, value in values.items()}


class _Output:
    """Shows what the first rank prints while it runs."""

    def __init__(self, logs: Path, role: str) -> None:
        self._files: dict[Path, tuple[int, str]] = {}
        self._pattern = f"*/*/{role}/0/std*.log"
        self._logs = logs

    def show(self) -> None:
        for path in sorted(self._logs.glob(self._pattern)):
            offset, rest = self._files.get(path, (0, ""))
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read()
            text = rest + data.decode("utf-8", "replace")
            *lines, rest = text.split("\n")
            self._files[path] = (offset + len(data), rest)
            for line in lines:
                match = _PREFIXED.match(line)
                if match and match[1] == "0":
                    print(match[2], file=sys.stderr, flush=True)


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[Any]:
    """Within it, after ``install()``, SIGTERM raises SystemExit(143) and SIGINT KeyboardInterrupt; restored at the end.

    TorchX puts handlers of its own in place when its scheduler starts, and leaves them there.
    """
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} if main else {}

    def terminate(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    def install() -> None:
        if main:
            signal.signal(signal.SIGTERM, terminate)
            signal.signal(signal.SIGINT, signal.default_int_handler)

    install()
    try:
        yield install
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_TRACEBACK = "Traceback (most recent call last)"


def failure(job: TrainingJob, state: str, logs: Path) -> Exception:
    """The exception that says why a job failed, from what its processes left in ``logs``."""
    error_file = logs / "error"
    if error_file.is_file() and (line := error_file.read_text(encoding="utf-8").strip()):
        return UserError(line)
    rank, exit_code = _first_failure(logs)
    lines = _last_lines(logs, rank)
    told = [line for line in lines if line.startswith("error: ")]
    if told and not any(_TRACEBACK in line for line in lines):  # the exit code itself is lost when libraries abort
        return UserError(told[-1].removeprefix("error: "))
    why = f"exit status {exit_code}" if exit_code is None or exit_code >= 0 else _signal_name(-exit_code)
    if exit_code == -signal.SIGKILL:
        why += ", as when memory runs out"
    who = f"process {rank} of {job.processes * job.nodes}" if rank is not None else "torchrun"
    shown = "".join(f"\n  | {line}" for line in lines[-LAST_LINES:])
    why = "ended without a reason" if exit_code is None else f"failed ({why})"
    return TrainingFailed(f"{job.name}: {who} {why}; all logs: {logs}{shown}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _first_failure(logs: Path) -> tuple[int | None, int | None]:
    """(rank, exit code) of the process that failed first, from torchrun's own account."""
    for path in sorted(logs.glob("*/*/*/*/stderr.log")):
        text = path.read_text(encoding="utf-8", errors="replace")
        account = text.rpartition("Root Cause (first observed failure)")[2]
        rank = re.search(r"^\s*rank\s*:\s*(\d+)", account, re.MULTILINE)
        code = re.search(r"^\s*exitcode\s*:\s*(-?\d+)", account, re.MULTILINE)
        if rank and code:
            return int(rank[1]), int(code[1])
    return None, None


def _last_lines(logs: Path, rank: int | None) -> list[str]:
    """The non-empty last lines that the process ``rank`` (None: torchrun) wrote to its stderr."""
    if rank is not None:
        candidates = sorted(logs.glob(f"ranks/*/attempt_*/{rank}/stderr.log"))
    else:
        candidates = sorted(logs.glob("*/*/*/0/stderr.log"))
    if not candidates:
        return []
    text = candidates[-1].read_text(encoding="utf-8", errors="replace")
    return [line.rstrip() for line in text.splitlines() if line.strip()][-LAST_LINES:]
