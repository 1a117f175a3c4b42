"""The embedded Triton server: started on loopback and free ports, named by a state file, stopped without leftovers."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from foundry.errors import UserError
from foundry.home import REPOSITORY, home
from foundry.lifetime import free_port, is_alive, process_identity
from serving.control import ADMIN_HEADER, ServerControl
from serving.installation import Installation, find_installation
from serving.repository import CANDIDATE, ModelRepository
from serving.supervisor import GRACE, Charge, remove_shared_memory

HOST = "127.0.0.1"
DEFAULT_NAME = "default"
_RESTRICTED = "model-repository,logging,shared-memory,trace"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Ports:
    """Loopback ports to listen on; 0 takes a free one."""

    http: int = 0
    grpc: int = 0
    metrics: int = 0


@dataclass(frozen=True)
class RunningServer:
    """A server that runs, as its state file describes it."""

    name: str
    supervisor: str
    """'pid:start-ticks' of :mod:`serving.supervisor`."""
    process: str
    """'pid:start-ticks' of tritonserver."""
    http_port: int
    grpc_port: int
    metrics_port: int
    admin_key: str
    """Opens the model-repository API; kept in the state file alone, which only its owner can read."""
    repository: str
    log: str
    shared_memory_prefix: str
    started: str
    """ISO 8601, UTC."""

    @property
    def url(self) -> str:
        """Where HTTP requests go."""
        return f"http://{HOST}:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        """What Prometheus scrapes."""
        return f"http://{HOST}:{self.metrics_port}/metrics"

    def control(self) -> ServerControl:
        """Explicit model control with this server's key."""
        return ServerControl(self.url, self.admin_key)

    def keep(self) -> None:
        """Let the server outlive the process that started it, until :func:`stop_server`."""
        _signal(self.supervisor, signal.SIGUSR1)


def find_server(name: str = DEFAULT_NAME) -> RunningServer | None:
    """The running server called ``name``, or None. What a dead one left behind is removed."""
    path = _state_file(name)
    try:
        server = RunningServer(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        path.unlink(missing_ok=True)
        return None
    if is_alive(server.process) and is_alive(server.supervisor):
        return server
    if not is_alive(server.supervisor):
        _kill_group(server)
        remove_shared_memory(server.shared_memory_prefix)
        path.unlink(missing_ok=True)
    return None


def running_servers() -> list[RunningServer]:
    """Every running server of this project's home."""
    found = (find_server(path.stem) for path in sorted((home() / "serving").glob("*.json")))
    return [server for server in found if server is not None]


def start_server(
    repository: Path,
    name: str = DEFAULT_NAME,
    *,
    ports: Ports | None = None,
    timeout: float = 60.0,
) -> RunningServer:
    """Start Triton on ``repository`` with no model loaded and wait until it takes requests.

    The server ends with the calling process, unless :meth:`RunningServer.keep` is called.
    Raises :class:`UserError` where one of this name runs already, where a port is in use, and where the server does
    not start (with its own last lines).
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"server name '{name}': use letters, digits, '_' and '-'")
    installation = find_installation()
    ports = ports or Ports()
    with _locked(name):
        running = find_server(name)
        if running is not None:
            raise UserError(
                f"server '{name}' runs already at {running.url} (process {running.process.partition(':')[0]}); "
                "use it, or stop it: python -m serving stop" + ("" if name == DEFAULT_NAME else f" --name {name}")
            )
        for setting, port in asdict(ports).items():
            if port and not _is_free(port):
                raise UserError(f"{setting} port {port} on {HOST} is in use; choose another, or 0 for a free one")
        for attempts_left in (2, 1, 0):
            try:
                return _start(installation, repository.absolute(), name, ports, timeout)
            except _PortTaken:
                if not attempts_left:
                    raise
    raise AssertionError("unreachable")


def load_models(server: RunningServer, repository: ModelRepository) -> list[str]:
    """Load every model of ``repository`` except candidates; returns what was wrong with those that do not load."""
    problems = []
    for name in repository.names():
        if not name.endswith(CANDIDATE):
            try:
                server.control().load(name)
            except UserError as error:
                problems.append(f"model '{name}' does not load: {error}")
    return problems


def stop_server(name: str = DEFAULT_NAME, *, drain: bool = True) -> bool:
    """Stop the server called ``name`` and wait until no process of it is left. False where none runs.

    ``drain`` lets requests in flight finish (Triton takes two seconds for it, even with none).
    """
    server = find_server(name)
    if server is None:
        return False
    _signal(server.supervisor, signal.SIGTERM if drain else signal.SIGQUIT)
    deadline = time.monotonic() + GRACE + 5.0
    while is_alive(server.supervisor) and time.monotonic() < deadline:
        time.sleep(0.02)
    if is_alive(server.supervisor):
        _signal(server.supervisor, signal.SIGKILL)
        _kill_group(server)
        remove_shared_memory(server.shared_memory_prefix)
        _state_file(name).unlink(missing_ok=True)
    _collect(server.supervisor)
    return True


class _PortTaken(UserError):
    """Another program was quicker with a port that had been free."""


_children: dict[str, subprocess.Popen[str]] = {}
"""Supervisors started by this process, by identity: they are waited for when they are stopped."""


def _start(installation: Installation, repository: Path, name: str, ports: Ports, timeout: float) -> RunningServer:
    folder = _state_file(name).parent
    repository.mkdir(parents=True, exist_ok=True)
    key, prefix = secrets.token_urlsafe(24), f"foundry-{secrets.token_hex(6)}-"
    numbers: dict[str, int] = {}
    for field, port in asdict(ports).items():
        number = port or free_port(HOST)
        while not port and number in numbers.values():  # the system may offer the same free port twice
            number = free_port(HOST)
        numbers[field] = number
    log = folder / f"{name}.log"
    log.write_bytes(b"")
    own = process_identity(os.getpid())
    charge = Charge(
        command=_command(installation, repository, numbers, key, prefix),
        environment=_environment(installation),
        folder=str(folder),
        log=str(log),
        state=str(_state_file(name)),
        shared_memory_prefix=prefix,
        follow=own,
    )
    with log.open("ab") as output:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "serving.supervisor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            cwd=REPOSITORY,
            start_new_session=True,
            text=True,
        )
    assert supervisor.stdin is not None and supervisor.stdout is not None
    with supervisor.stdin, supervisor.stdout:
        supervisor.stdin.write(charge.to_json())
        supervisor.stdin.close()
        first = supervisor.stdout.readline().strip()
    identities = (process_identity(supervisor.pid), process_identity(int(first)) if first else None)
    server = RunningServer(
        name=name,
        supervisor=identities[0] or "0:0",
        process=identities[1] or "0:0",
        http_port=numbers["http"],
        grpc_port=numbers["grpc"],
        metrics_port=numbers["metrics"],
        admin_key=key,
        repository=str(repository),
        log=str(log),
        shared_memory_prefix=prefix,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    _children[server.supervisor] = supervisor
    try:
        _wait_until_ready(server, timeout)
        _write_state(server)
    except BaseException:
        _signal(server.supervisor, signal.SIGQUIT)
        _collect(server.supervisor)
        raise
    return server


def _command(
    installation: Installation, repository: Path, ports: dict[str, int], key: str, shared_memory_prefix: str
) -> list[str]:
    return [
        str(installation.binary),
        f"--model-repository={repository}",
        f"--backend-directory={installation.server / 'backends'}",
        f"--cache-directory={installation.server / 'caches'}",
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
        "--backend-config=python,shm-default-byte-size=4194304",
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",  # it would start every model's process one time more
        "--strict-readiness=false",  # a version that does not load must not make the others look down
        "--exit-timeout-secs=5",
        "--allow-gpu-metrics=false",
        "--pinned-memory-pool-byte-size=0",
        *(f"--{service}-address={HOST}" for service in ("http", "grpc", "metrics")),
        *(f"--{service}-port={port}" for service, port in ports.items()),
        # Loading takes files from the request body: whoever may load may run code.
        f"--http-restricted-api={_RESTRICTED}:{ADMIN_HEADER}={key}",
        f"--grpc-restricted-protocol={_RESTRICTED}:{ADMIN_HEADER}={key}",
    ]


def _environment(installation: Installation) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LD_PRELOAD"))}
    folders = [installation.library_folder, os.environ.get("LD_LIBRARY_PATH", "")]
    path = f"{installation.environment / 'bin'}:{os.environ.get('PATH', '/usr/bin:/bin')}"
    return kept | {"PATH": path, "LD_LIBRARY_PATH": ":".join(filter(None, folders)), "LANG": "C.UTF-8"}


def _wait_until_ready(server: RunningServer, timeout: float) -> None:
    control = ServerControl(server.url, timeout=2.0)
    deadline = time.monotonic() + timeout
    while not control.is_ready():
        if not is_alive(server.process):
            words = _last_words(Path(server.log))
            kind = _PortTaken if re.search(r"already in use|bind", words, re.IGNORECASE) else UserError
            raise kind(f"Triton did not start; its last lines: {words} (all of them: {server.log})")
        if time.monotonic() > deadline:
            raise UserError(
                f"Triton is not ready after {timeout:.0f} s; its last lines: {_last_words(Path(server.log))} "
                f"(all of them: {server.log})"
            )
        time.sleep(0.05)


def _last_words(log: Path, count: int = 3) -> str:
    """The last lines that tell of an error, else the last lines; without times and source positions."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    lines = [line for line in lines if line and not re.fullmatch(r"[+|\-= ]*|\|.*\|", line)]
    if any(line.startswith("Usage:") for line in lines):  # an option it does not take: its whole help, then the reason
        lines = lines[-1:]
    noise = ("CudaDriverHelper has not been initialized", "Unable to allocate pinned")
    lines = [line for line in lines if not any(text in line for text in noise)]
    errors = [line for line in lines if re.match(r"E\d{4} |error:|.*(?:error while loading|Error:)", line)]
    shown = [re.sub(r"^[IWE]\d{4} [\d:.]+ \d+ \S+\] ", "", line).strip('"') for line in (errors or lines)[-count:]]
    return " | ".join(line[:400] for line in shown) or "it wrote nothing"


def _write_state(server: RunningServer) -> None:
    path = _state_file(server.name)
    temporary = path.with_suffix(".tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(asdict(server), file, indent=2)
        file.write("\n")
    os.chmod(temporary, 0o600)
    os.replace(temporary, path)


def _state_file(name: str) -> Path:
    folder = home() / "serving"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.json"


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    with _state_file(name).with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except (OSError, OverflowError):
            return False
    return True


def _signal(identity: str, number: int) -> None:
    if is_alive(identity):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(identity.partition(":")[0]), number)


def _kill_group(server: RunningServer) -> None:
    """Kill the server and its stubs, where they live without their supervisor."""
    if is_alive(server.process):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(server.process.partition(":")[0]), signal.SIGKILL)


def _collect(identity: str) -> None:
    child = _children.pop(identity, None)
    if child is not None:
        child.wait()
