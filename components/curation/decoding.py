"""Guarded decoding: files go to worker processes; one that hangs, dies or eats memory costs its file and no more."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import queue
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np

from components.curation import closeup
from components.curation.blocks import available_cores
from components.curation.config import DecodeConfig
from components.curation.decode_worker import ANSWER, COUNT, WALL_FACTOR, lengths_format
from components.curation.measurement import COLOUR_SIDE, SIDE, Measurement
from components.curation.pool import PoolFile
from foundry.home import REPOSITORY

START_SECONDS = 120.0
"""How long a worker may take to import its libraries, on the busiest machine."""
BATCH_FILES, BATCH_BYTES = 32, 512 << 10
"""Files that go to a worker together: so many, or as many as make so many bytes (a larger file goes alone)."""
WINDOW_BATCHES, WINDOW_BYTES = 4, 128 << 20
"""Batches (for each worker) and bytes that wait or are decoded at most."""
PIPE_BYTES = 1 << 20
"""Size of the pipes to and from a worker, where the system allows it: a batch passes at once."""
ARRAY_BYTES = SIDE * SIDE + 2 * COLOUR_SIDE * COLOUR_SIDE
"""Thumbnail and colour map of one image."""

T = TypeVar("T")


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
    """The worker is gone; ``reason`` and ``detail`` for the file, or one of the files, that it worked on."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class _Worker:
    """One process of :mod:`decode_worker`, started when it is first needed and again after it died."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, files: Sequence[bytes]) -> tuple[list[dict[str, Any]], bytes]:
        """The worker's answers for some files, and the arrays of those it measured. Raises :class:`_Died`."""
        if self._process is None:
            self._start()
        deadline = time.monotonic() + len(files) * self._options["seconds"] * (WALL_FACTOR + 1)
        header = COUNT.pack(len(files)) + struct.pack(lengths_format(len(files)), *map(len, files))
        try:
            self._send([header, *files], deadline)
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
            for pipe in (self._process.stdin, self._process.stdout):
                os.set_blocking(pipe.fileno(), False)
                with contextlib.suppress(OSError, AttributeError):
                    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            try:
                self._receive(time.monotonic() + START_SECONDS)
            except (TimeoutError, EOFError):
                self.stop()
                errors.seek(0)
                told = errors.read()[-2000:].decode(errors="replace")
                raise RuntimeError(f"the decoding worker did not start:\n{told}") from None

    def _send(self, parts: Iterable[bytes], deadline: float) -> None:
        assert self._process and self._process.stdin
        descriptor = self._process.stdin.fileno()
        left = [memoryview(part) for part in parts]
        while left:
            self._wait(descriptor, select.POLLOUT, deadline)
            written = os.writev(descriptor, left)
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if written:
                left[0] = left[0][written:]

    def _receive(self, deadline: float) -> tuple[list[dict[str, Any]], bytes]:
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
    """A set of worker processes; a context manager. No process is left when it closes, or when this process dies.

    They measure files (:meth:`decode`), or with ``closeups`` take close-ups of them (:meth:`closeups`).
    """

    def __init__(self, config: DecodeConfig, closeups: bool = False) -> None:
        self.count = config.workers or available_cores()
        options = {
            "limits": {"max_bytes": config.max_bytes, "max_pixels": config.max_pixels},
            "seconds": config.max_seconds,
            "memory": config.max_memory_mib << 20,
            "parent": os.getpid(),
            "closeups": closeups,
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
        return self._in_order(self._batch, files)

    def closeups(self, files: Iterable[PoolFile]) -> Iterator[np.ndarray]:
        """Close-ups (see :mod:`closeup`) of ``files``, in their order; plain for a file that is no longer decoded."""
        return self._in_order(self._close_looks, files)

    def _in_order(self, work: Callable[[list[PoolFile]], list[T]], files: Iterable[PoolFile]) -> Iterator[T]:
        waiting: deque[tuple[int, Future[list[T]]]] = deque()
        held, most = 0, WINDOW_BATCHES * self.count
        for size, batch in _batches(files):
            waiting.append((size, self._executor.submit(work, batch)))
            held += size
            while waiting and (waiting[0][1].done() or len(waiting) > most or held > WINDOW_BYTES):
                size, result = waiting.popleft()
                held -= size
                yield from result.result()
        while waiting:
            yield from waiting.popleft()[1].result()

    def _ask(self, files: Sequence[PoolFile]) -> tuple[list[dict[str, Any]], bytes]:
        """What the next idle worker answers. Raises :class:`_Died`."""
        worker = self._idle.get()
        try:
            return worker.ask([file.data or b"" for file in files])
        finally:
            self._idle.put(worker)

    def _batch(self, files: list[PoolFile]) -> list[Decoded]:
        known = [file for file in files if file.data is not None]
        results = iter(self._measured(known))
        return [
            next(results) if file.data is not None else Decoded(file.path, 0, "", file.reason, file.detail)
            for file in files
        ]

    def _measured(self, files: list[PoolFile]) -> list[Decoded]:
        """What became of ``files``, all of them with data."""
        if not files:
            return []
        try:
            answers, arrays = self._ask(files)
        except _Died as death:
            if len(files) > 1:  # one of them did it: each for itself
                return [result for file in files for result in self._measured([file])]
            data = files[0].data or b""
            return [Decoded(files[0].path, len(data), hashlib.sha256(data).hexdigest(), death.reason, death.detail)]
        starts = accumulate((ARRAY_BYTES * ("reason" not in values) for values in answers), initial=0)
        return [_decoded(*each, arrays) for each in zip(files, answers, starts, strict=False)]

    def _close_looks(self, files: list[PoolFile]) -> list[np.ndarray]:
        shape = closeup.SIDE, closeup.SIDE, 3
        plain = np.zeros(shape, np.uint8)
        try:
            answers, arrays = self._ask(files)
        except _Died:
            return [look for file in files for look in self._close_looks([file])] if len(files) > 1 else [plain]
        looks = iter(np.frombuffer(arrays, np.uint8).reshape(-1, *shape))
        return [plain if "reason" in values else next(looks) for values in answers]


def _batches(files: Iterable[PoolFile]) -> Iterator[tuple[int, list[PoolFile]]]:
    """(bytes, files) of runs of ``files`` that go to a worker together."""
    batch: list[PoolFile] = []
    held = 0
    for file in files:
        size = len(file.data or b"")
        if batch and held + size > BATCH_BYTES:
            yield held, batch
            batch, held = [], 0
        batch.append(file)
        held += size
        if len(batch) == BATCH_FILES or held >= BATCH_BYTES:
            yield held, batch
            batch, held = [], 0
    if batch:
        yield held, batch


def _decoded(file: PoolFile, values: dict[str, Any], start: int, arrays: bytes) -> Decoded:
    """A worker's answer as a result; its arrays begin at ``start``."""
    size = len(file.data or b"")
    if "reason" in values:
        return Decoded(file.path, size, values["sha256"], values["reason"], values["detail"])
    grey = np.frombuffer(arrays, np.uint8, SIDE * SIDE, start).reshape(SIDE, SIDE)
    colour = np.frombuffer(arrays, np.int8, 2 * COLOUR_SIDE * COLOUR_SIDE, start + SIDE * SIDE)
    sha256, extension = values.pop("sha256"), values.pop("extension")
    measurement = Measurement(grey=grey, colour=colour.reshape(COLOUR_SIDE, COLOUR_SIDE, 2), **values)
    return Decoded(file.path, size, sha256, "", "", extension, measurement)
