"""Run a command that cannot outlive its launcher: ``python -m components.common.guard COMMAND ...``.

TorchX starts every replica in a session of its own, so a kill of the launcher's process group does not reach it. This
small process stands between the two. It adopts every orphan below it (Linux child subreaper) and kills its whole
process tree once the launcher named by ``FOUNDRY_WATCH_PROCESS`` is gone, or when the command has ended and left
something behind. Should the guard itself be killed, its command gets SIGKILL (parent-death signal).

On a node of a job on several nodes, ``FOUNDRY_STORE`` (host:port) names their meeting point. The guard starts the
command once the store answers and tells the store when the command has ended well. A command whose node is cut off from
the store is killed, and started again when the store is back: torchrun's agent would fail by itself, and in failing
close the meeting for all others as soon as it reaches it again. A node that stays cut off ends, so that a healthy one
can be started in its place; one that comes back when the job is done has nothing left to do.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

from components.common.processes import kill_descendants
from components.common.rendezvous import STORE_VARIABLE, is_job_done, job_is_done, reachable
from foundry.errors import ERROR_FILE_VARIABLE
from foundry.lifetime import WATCH_VARIABLE, is_alive, process_identity

VERDICT_VARIABLE = "FOUNDRY_VERDICT_FILE"
"""Environment variable naming the file that says why the job cannot succeed. Where it is set, a command that failed
for good leaves its reason there and the guard ends with 0, as it does where another node has left one: on a cluster any
other status means 'start this again'."""
CUT_OFF = 75
"""Exit status of a node that found or kept no connection to the store (EX_TEMPFAIL): another start may succeed."""
STORE_START_SECONDS = 900.0
"""How long a node waits for the store to be started."""
CUT_OFF_SECONDS = 90.0
"""How long a node that is cut off waits for its store."""
LOST_SECONDS = 20.0
"""Silence of the store after which its node counts as cut off: the agent's requests wait for 30 s before it fails."""
POLL_SECONDS = 0.2
GRACE_SECONDS = 20.0
"""How long the command may take to end by itself after SIGTERM."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(argv: list[str]) -> int:
    """Run the command ``argv`` and return its exit status (128 + signal where a signal ended it)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    watch = _Watch()
    verdict = os.environ.get(VERDICT_VARIABLE)
    if verdict and os.path.exists(verdict):
        return 0
    if not watch.store_is_up():
        return CUT_OFF
    while True:
        child = subprocess.Popen(argv, preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
        cut_off = watch.until_it_ends(child)
        kill_descendants()
        status = child.wait()
        if not cut_off and (not status or watch.told_to_stop or watch.store_answers()):
            break
        if not watch.store_is_back():
            print(f"no answer from the store {watch.store.endpoint}", file=sys.stderr, flush=True)
            return CUT_OFF
        print(f"the store {watch.store.endpoint} was out of reach; starting again", file=sys.stderr, flush=True)
    if status and watch.store.endpoint and not watch.told_to_stop and is_job_done(watch.store.endpoint):
        print("the job was done without this node", file=sys.stderr, flush=True)
        return 0
    status = status if status >= 0 else 128 - status
    if verdict and status and not watch.told_to_stop:
        _pronounce(verdict, status)
        status = 0
    if watch.store.endpoint and status == 0:
        job_is_done(watch.store.endpoint)
    return status


class _Watch:
    """Looks after the launcher, the store and the signals of this process."""

    def __init__(self) -> None:
        self._launcher = os.environ.get(WATCH_VARIABLE) or process_identity(os.getppid())
        self._alone = os.getppid() == 0  # the first process of a container, which nothing here has launched
        self._stop_at: float | None = None
        self.store = _Store(os.environ.get(STORE_VARIABLE))
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)

    def _stop(self, signum: int, frame: object) -> None:
        self._stop_at = self._stop_at or time.monotonic() + GRACE_SECONDS

    @property
    def told_to_stop(self) -> bool:
        """Whether a signal has asked for the end."""
        return self._stop_at is not None

    def _launcher_lives(self) -> bool:
        return self._alone or (self._launcher is not None and is_alive(self._launcher))

    def store_is_up(self) -> bool:
        """Wait for the store's first answer; False where it stays away or nobody needs it any more."""
        while not self.store.answered:
            if self.told_to_stop or not self._launcher_lives() or self.store.silence() > STORE_START_SECONDS:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def store_answers(self) -> bool:
        """Whether the store answers from now on, before its silence is a long one."""
        now = time.monotonic()
        while not self.store.heard_since(now):
            if self.store.silence() > LOST_SECONDS:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def store_is_back(self) -> bool:
        """Wait until the store answers again; False where it stays away or nobody needs it any more."""
        while self.store.silence() > LOST_SECONDS:
            if self.told_to_stop or not self._launcher_lives() or self.store.silence() > CUT_OFF_SECONDS:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def until_it_ends(self, child: subprocess.Popen[bytes]) -> bool:
        """Return when ``child`` has ended or has to be ended; whether that is because the store is out of reach."""
        passed_on = False
        while child.poll() is None and self._launcher_lives():
            if self.store.silence() > LOST_SECONDS:
                return True
            if self._stop_at is not None:
                if not passed_on:
                    child.terminate()
                    passed_on = True
                if time.monotonic() > self._stop_at:
                    break
            try:
                child.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        return False


def _pronounce(verdict: str, status: int) -> None:
    """Leave the reason of a failure: the line of a person's error, or the status."""
    try:
        with open(os.environ[ERROR_FILE_VARIABLE], encoding="utf-8") as file:
            reason = file.read().strip()
    except (KeyError, OSError):
        reason = ""
    os.makedirs(os.path.dirname(verdict), exist_ok=True)
    with open(verdict, "w", encoding="utf-8") as file:
        file.write(reason or f"the trainers failed on {os.uname().nodename} (exit status {status}); its log says why")


class _Store:
    """The store at ``endpoint``, asked by a thread; None: a job without one, which always answers."""

    def __init__(self, endpoint: str | None) -> None:
        self.endpoint = endpoint
        self.answered = endpoint is None
        self._heard = time.monotonic()
        if endpoint:
            threading.Thread(target=self._listen, args=(endpoint,), daemon=True).start()

    def _listen(self, endpoint: str) -> None:
        while True:
            if reachable(endpoint, timeout=3.0):
                self.answered, self._heard = True, time.monotonic()
                time.sleep(2.0)
            else:
                time.sleep(POLL_SECONDS)

    def silence(self) -> float:
        """Seconds since the store answered, or since the start."""
        return time.monotonic() - self._heard if self.endpoint else 0.0

    def heard_since(self, moment: float) -> bool:
        """Whether the store has answered after ``moment`` of the monotonic clock."""
        return self.endpoint is None or self._heard > moment


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
