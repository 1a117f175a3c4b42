"""The meeting point of a job of several nodes: ``python -m components.common.rendezvous --port PORT``.

A small process of its own, so that no trainer's death takes the meeting point along. torchrun's agents find each other
in its store. It ends by itself soon after a node has said that the job is done (:func:`job_is_done`), and with status 1
where nobody says so and it is told to stop.
"""

from __future__ import annotations

import argparse
import datetime
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import TCPStore

STORE_VARIABLE = "FOUNDRY_STORE"
"""Environment variable 'host:port' of the meeting point, which the guard of a node watches."""
_DONE = "dino-foundry/done"
GRACE_SECONDS = 5.0
"""How long the store outlives the first node that is done, so that the others can end in peace."""


def job_is_done(endpoint: str) -> None:
    """Tell the store at ``endpoint`` (host:port) that the job is done. Nothing where there is no store any more."""
    host, port = split_endpoint(endpoint)
    if not reachable(endpoint, 2.0):
        return
    try:
        _client(host, port).set(_DONE, "1")
    except RuntimeError:
        return


def is_job_done(endpoint: str) -> bool:
    """Whether a node has told the store at ``endpoint`` (host:port) that the job is done; False where none answers."""
    if not reachable(endpoint, 2.0):
        return False
    try:
        return bool(_client(*split_endpoint(endpoint)).check([_DONE]))
    except RuntimeError:
        return False


def reachable(endpoint: str, timeout: float) -> bool:
    """Whether something listens at ``endpoint`` (host:port) and answers within ``timeout`` seconds."""
    try:
        with socket.create_connection(split_endpoint(endpoint), timeout=timeout):
            return True
    except OSError:
        return False


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """('host', port) of 'host:port'."""
    host, _, port = endpoint.rpartition(":")
    return host, int(port)


def _client(host: str, port: int) -> TCPStore:
    from torch.distributed import TCPStore

    return TCPStore(host, port, timeout=datetime.timedelta(seconds=5), wait_for_workers=False)


def main(argv: list[str]) -> int:
    """Serve until the job is done."""
    parser = argparse.ArgumentParser(prog="python -m components.common.rendezvous", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="0.0.0.0", help="address to listen at; default: all")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    from torch.distributed import TCPStore

    listener = socket.create_server((options.host, options.port), backlog=1024)
    port = listener.getsockname()[1]
    store = TCPStore(options.host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    print(f"rendezvous store on port {port}", flush=True)
    while not store.check([_DONE]):
        time.sleep(0.5)
    time.sleep(GRACE_SECONDS)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
