"""Guarded decoding: files go to worker processes; one that hangs, dies or eats memory costs its file and no more."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.curation.blocks import available_cores
from components.curation.config import DecodeConfig
from components.curation.decode_worker import ANSWER, LENGTH, WALL_FACTOR
from components.curation.measurement import COLOUR_SIDE, SIDE, Measurement
from components.curation.pool import PoolFile
from foundry.home import REPOSITORY

START_SECONDS = 120.0
"""How long a worker may take to import its libraries, on the busiest machine."""
WINDOW_FILES, WINDOW_BYTES = 64, 128 << 20
"""Files (for each worker) and bytes that wait or are decoded at most."""


@dataclass(frozen=True)
class Decoded:
    """What became of one file of the pool: a ``measurement`` with an ``extension``, or a ``reason`` it has none."""

    path: str
    size: int
    sha256: str
    """Of the encoded bytes; empty where they could not be read."""
    reason: str = ""
    detail: str = ""
    extension: str = ""
    measurement: Measurement | None = None


class _Died(Exception):
    """The worker is gone; ``reason`` and ``detail`` for the file it worked on."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class _Worker:
    """One process of :mod:`decode_worker`, started when it is first needed and again after it died."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, data: bytes) -> tuple[dict[str, Any], bytes]:
        """The worker's answer for a file. Raises :class:`_Died`."""
        if self._process is None:
            self._start()
        deadline = time.monotonic() + self._options["seconds"] * (WALL_FACTOR + 1)
        try:
            self._send(LENGTH.pack(len(data)) + data, deadline)
            return self._receive(deadline)
        except (TimeoutError, EOFError, BrokenPipeError) as error:
            raise self._post_mortem(error) from None

    def _start(self) -> None:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        paths = [str(REPOSITORY), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        with tempfile.TemporaryFile() as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "components.curation.decode_worker", json.dumps(self._options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            )
            assert self._process.stdin and self._process.stdout
            os.set_blocking(self._process.stdin.fileno(), False)
            os.set_blocking(self._process.stdout.fileno(), False)
            try:
                self._receive(time.monotonic() + START_SECONDS)
            except (TimeoutError, EOFError):
                self.stop()
                errors.seek(0)
                told = errors.read()[-2000:].decode(errors="replace")
                raise RuntimeError(f"the decoding worker did not start:\n{told}") from None

    def _send(self, message: bytes, deadline: float) -> None:
        assert self._process and self._process.stdin
        descriptor = self._process.stdin.fileno()
        left = memoryview(message)
        while left:
            self._wait(descriptor, select.POLLOUT, deadline)
            left = left[os.write(descriptor, left) :]

    def _receive(self, deadline: float) -> tuple[dict[str, Any], bytes]:
        text, arrays = ANSWER.unpack(self._read(ANSWER.size, deadline))
        return json.loads(self._read(text, deadline)), self._read(arrays, deadline)

    def _read(self, count: int, deadline: float) -> bytes:
        assert self._process and self._process.stdout
        descriptor = self._process.stdout.fileno()
        parts = []
        while count:
            self._wait(descriptor, select.POLLIN, deadline)
            part = os.read(descriptor, count)
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    @staticmethod
    def _wait(descriptor: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError

    def _post_mortem(self, error: Exception) -> _Died:
        assert self._process
        limit = f"{self._options['seconds']:g} s of processor time"
        if isinstance(error, TimeoutError):
            self.stop()
            return _Died("timeout", f"no result after {self._options['seconds'] * (WALL_FACTOR + 1):g} s")
        status = self._process.wait()
        self.stop()
        if status in (-signal.SIGPROF, -signal.SIGALRM):
            return _Died("timeout", f"took more than {limit}")
        told = signal.Signals(-status).name if status < 0 else f"status {status}"
        return _Died("crashed", f"the decoder died ({told})")

    def kill(self) -> None:
        """Kill the process, if there is one. Safe while another thread waits for its answer."""
        process = self._process
        if process is not None:
            process.kill()

    def stop(self) -> None:
        """Kill the process and take down what belongs to it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None


class DecodeWorkers:
    """A set of worker processes; a context manager. No process is left when it closes, or when this process dies."""

    def __init__(self, config: DecodeConfig) -> None:
        self.count = config.workers or available_cores()
        options = {
            "limits": {"max_bytes": config.max_bytes, "max_pixels": config.max_pixels},
            "seconds": config.max_seconds,
            "memory": config.max_memory_mib << 20,
            "parent": os.getpid(),
        }
        self._workers = [_Worker(options) for _ in range(self.count)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._executor = ThreadPoolExecutor(self.count, thread_name_prefix="decode")

    def __enter__(self) -> DecodeWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()  # whoever waits for it in a thread sees it end
        self._executor.shutdown(wait=True)
        for worker in self._workers:
            worker.stop()

    def decode(self, files: Iterable[PoolFile]) -> Iterator[Decoded]:
        """Decode and measure ``files``; the results come in the order of the files."""
        waiting: deque[tuple[int, Future[Decoded]]] = deque()
        held = 0
        for file in files:
            size = len(file.data or b"")
            waiting.append((size, self._executor.submit(self._one, file)))
            held += size
            while waiting and (waiting[0][1].done() or len(waiting) > WINDOW_FILES * self.count or held > WINDOW_BYTES):
                size, result = waiting.popleft()
                held -= size
                yield result.result()
        while waiting:
            yield waiting.popleft()[1].result()

    def _one(self, file: PoolFile) -> Decoded:
        if file.data is None:
            return Decoded(file.path, 0, "", file.reason, file.detail)
        worker = self._idle.get()
        try:
            values, arrays = worker.ask(file.data)
        except _Died as death:
            digest = hashlib.sha256(file.data).hexdigest()
            return Decoded(file.path, len(file.data), digest, death.reason, death.detail)
        finally:
            self._idle.put(worker)
        if "reason" in values:
            return Decoded(file.path, len(file.data), values["sha256"], values["reason"], values["detail"])
        grey = np.frombuffer(arrays, np.uint8, SIDE * SIDE).reshape(SIDE, SIDE)
        colour = np.frombuffer(arrays, np.int8, offset=SIDE * SIDE).reshape(COLOUR_SIDE, COLOUR_SIDE, 2)
        sha256, extension = values.pop("sha256"), values.pop("extension")
        measurement = Measurement(grey=grey, colour=colour, **values)
        return Decoded(file.path, len(file.data), sha256, "", "", extension, measurement)
