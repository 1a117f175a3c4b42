"""Hosts that can be killed and cut off: network namespaces joined by a bridge, on which a TorchX application runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from torchx.specs import AppDef, Role, macros

from components.common.processes import kill_all

BRIDGE = 254
"""Last part of the bridge's address, at which the store listens: a machine of its own."""


def why_no_hosts() -> str:
    """What keeps this machine from having network namespaces; empty where nothing does."""
    if os.geteuid() != 0:
        return "making network namespaces takes root"
    if shutil.which("ip") is None:
        return "the command ip is missing (apt-get install iproute2)"
    name = f"foundry-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return f"the kernel refuses network namespaces: {made.stderr.strip()}" if made.returncode else ""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Hosts:
    """``count`` hosts, numbered from 1, and the processes on them; all gone at the end of the context.

    Names and addresses are those of this process, so that several tests may run beside each other.
    """

    def __init__(self, count: int, folder: Path) -> None:
        self.count, self.folder = count, folder
        self._key = os.getpid() % 200
        self._bridge = f"fb{self._key}"
        self._running: list[subprocess.Popen[bytes]] = []

    def name(self, host: int) -> str:
        """The host's name."""
        return f"fh{self._key}x{host}"

    def address(self, host: int) -> str:
        """The host's address; that of the bridge for :data:`BRIDGE`."""
        return f"10.77.{self._key}.{host}"

    def __enter__(self) -> Hosts:
        self._remove()
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self.address(BRIDGE)}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        known = "127.0.0.1 localhost\n" + f"{self.address(BRIDGE)} store\n"
        known += "".join(f"{self.address(host)} {self.name(host)}\n" for host in range(1, self.count + 1))
        for host in range(1, self.count + 1):
            name, link = self.name(host), f"{self._bridge}-{host}"
            _ip("netns", "add", name)
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", link, "master", self._bridge, "up")
            _ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            folder = Path("/etc/netns") / name
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(known)  # a look-up by DNS would hang
            (folder / "nsswitch.conf").write_text("hosts: files\n")
            (folder / "resolv.conf").write_text("")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        for host in range(1, self.count + 1):
            self.kill(host)
        for process in self._running:
            process.wait()
        self._remove()

    def _remove(self) -> None:
        for host in range(1, self.count + 1):
            name = self.name(host)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
            subprocess.run(["rm", "-rf", f"/etc/netns/{name}"], check=True)
            subprocess.run(["ip", "link", "del", f"{self._bridge}-{host}"], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True, check=False)

    def start_store(self, app: AppDef) -> subprocess.Popen[bytes]:
        """The application's meeting point, on the machine of the bridge."""
        return self._start(self._filled(app, "store"), [], self.folder / "store.log")

    def start_trainer(self, app: AppDef, host: int) -> subprocess.Popen[bytes]:
        """A replica of the application's trainers on ``host``."""
        name = self.name(host)
        inside = ["ip", "netns", "exec", name, "unshare", "--uts", "bash", "-c", f'hostname {name}; exec "$@"', "-"]
        return self._start(self._filled(app, "train"), inside, self.folder / f"host{host}.log")

    def _filled(self, app: AppDef, role: str) -> Role:
        values = macros.Values(img_root="", app_id="job", replica_id="0", rank0_env="VC_STORE_0_HOSTS")
        return values.apply(next(each for each in app.roles if each.name == role))

    def _start(self, role: Role, inside: list[str], log: Path) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **role.env, "VC_STORE_0_HOSTS": "store", "OMP_NUM_THREADS": "1"}
        with log.open("ab") as file:
            started = subprocess.Popen(
                [*inside, role.entrypoint, *role.args],
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._running.append(started)
        return started

    def pids(self, host: int) -> list[int]:
        """The processes of ``host``."""
        found = subprocess.run(
            ["ip", "netns", "pids", self.name(host)], capture_output=True, text=True, check=False
        ).stdout
        return [int(pid) for pid in found.split()]

    def trainers(self, host: int) -> list[int]:
        """Those of them that train (not their agent, guard or loader workers)."""
        found = []
        for pid in self.pids(host):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                above = Path(f"/proc/{parent}/cmdline").read_bytes()
            except OSError:
                continue
            if b"training" in words and b"torchrun" not in b" ".join(words) and b"torchrun" in above:
                found.append(pid)
        return found

    def kill(self, host: int) -> None:
        """The host loses its power: no process of it gets another instruction."""
        kill_all(lambda: self.pids(host))

    def cut(self, host: int) -> None:
        """Unplug the host's network cable."""
        _ip("link", "set", f"{self._bridge}-{host}", "down")

    def heal(self, host: int) -> None:
        """Plug it in again."""
        _ip("link", "set", f"{self._bridge}-{host}", "up")
