"""Embeddings of images by a backbone: parts of a fixed number of pool files, made by any number of processes, found
again by name; and embeddings that are given, as a matrix with keys."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.common.accelerator import accelerator_name, default_device
from components.common.networks import network_digest
from components.curation.blocks import available_cores
from components.curation.candidates import unit
from components.curation.config import CurationConfig, DecodeConfig, EmbeddingConfig
from components.curation.decoding import DecodeWorkers
from components.curation.pool import Pool, PoolFile
from foundry.errors import UserError
from foundry.home import REPOSITORY, home
from foundry.images import DecodeLimits, decode_image
from foundry.lifetime import watch_environment
from foundry.progress import Progress
from foundry.settings import digest_of
from foundry.storage import sha256_of_file, write_atomically

if TYPE_CHECKING:
    from foundry.images import Preprocessing
    from training.models.build import Backbone

PART_FILES = 512
"""Files of the pool in one part: what a kill costs at most. Part of the definition of a result."""
BATCH = 32
"""Images that go through the network together; also part of it."""
POLL_SECONDS = 0.2
VECTORS, KEYS = "vectors.npy", "keys.npy"
"""Files of given embeddings: (n, d) float16 or float32, and (n,) bytes, the key of the image of each row."""


@dataclass(frozen=True)
class PoolFiles:
    """What is known of the files of a pool from part ``first`` on: ``sha256`` of each (empty where it could not be
    read), and ``decoded`` (n,) bool, whether it is an image within the limits that is to be embedded."""

    sha256: Sequence[str]
    decoded: np.ndarray
    first: int = 0

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-len(self.sha256) // PART_FILES)

    def part(self, number: int) -> tuple[Sequence[str], np.ndarray]:
        """``sha256`` and ``decoded`` of the files of part ``number``."""
        start = (number - self.first) * PART_FILES
        return self.sha256[start : start + PART_FILES], self.decoded[start : start + PART_FILES]

    def write(self, path: Path) -> None:
        """Write it for another process."""
        buffer = io.BytesIO()
        np.savez(buffer, sha256=np.array(self.sha256, "S64"), decoded=self.decoded)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> PoolFiles:
        """What :meth:`write` wrote."""
        with np.load(path) as stored:
            return cls(stored["sha256"].astype(str).tolist(), stored["decoded"])


def look_through(pool: Pool, config: DecodeConfig, parts: range) -> PoolFiles:
    """Find out which files of ``parts`` of the pool can be decoded, in guarded workers."""
    sha256: list[str] = []
    decoded: list[bool] = []
    with Progress("decode", None, "images") as progress, DecodeWorkers(config) as workers:
        files = pool.files(parts.start * PART_FILES, config.max_bytes)
        for found in workers.decode(islice(files, len(parts) * PART_FILES)):
            sha256.append(found.sha256)
            decoded.append(not found.reason)
            progress.advance()
    return PoolFiles(sha256, np.array(decoded, bool), parts.start)


@dataclass(frozen=True)
class Store:
    """Where parts of one network lie. ``maker``: all that decides the numbers, beside the images."""

    folder: Path
    maker: dict[str, Any]

    @classmethod
    def of(cls, network: Path, config: EmbeddingConfig) -> Store:
        """That of the network in the folder ``network``."""
        digest = network_digest(network)
        device = config.device if config.device != "auto" else default_device()
        maker = {
            "schema": 1,
            "network": digest,
            "dtype": config.dtype,
            "device": device,
            "accelerator": accelerator_name() if device != "cpu" else None,
            "batch": BATCH,
            **{name: importlib.metadata.version(name) for name in ("torch", "pillow")},
        }
        return cls(home() / "cache" / "embeddings" / digest[:16], maker)

    def path(self, files: PoolFiles, number: int) -> Path:
        """The file of part ``number``: named by the maker and the digests of the images in it."""
        sha256, decoded = files.part(number)
        return self.folder / f"{digest_of([self.maker, list(sha256), decoded.tolist()])[:32]}.npy"


class Parts:
    """The embeddings of a whole pool, read from its parts where they are wanted."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)

    def take(self, rows: np.ndarray, into: Path | None = None) -> np.ndarray:
        """(m, d) float32 of unit length for the pool files ``rows`` (m,), ascending; decoded images only.

        ``into``: a file that holds the matrix in place of memory.
        """
        matrix: np.ndarray | None = None
        for span, stored in self.stored(rows):
            if matrix is None:
                matrix = _matrix((len(rows), stored.shape[1]), np.float32, into)
            matrix[span] = unit(stored.astype(np.float32))
        return np.zeros((0, 0), np.float32) if matrix is None else matrix

    def stored(self, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Spans of ``rows`` (ascending) with their vectors as they are kept."""
        numbers, starts = np.unique(rows // PART_FILES, return_index=True)
        for number, start, stop in zip(numbers, starts, [*starts[1:], len(rows)], strict=True):
            part = np.load(self._paths[number], mmap_mode="r")
            yield slice(start, stop), part[rows[start:stop] % PART_FILES]


def _matrix(shape: tuple[int, int], dtype: Any, into: Path | None) -> np.ndarray:
    if into is None:
        return np.empty(shape, dtype)
    into.parent.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(into, "w+", dtype, shape)


def embed_pool(config: CurationConfig, pool: Pool, network: Path, files: PoolFiles, work: Path) -> Parts:
    """Make the parts of ``pool`` that are missing, in processes of :mod:`components.curation.embed`.

    ``files``: the whole pool. ``work``: folder for what they are told. Raises :class:`UserError` where one of them
    ends with an error that a person can mend.
    """
    store = Store.of(network, config.embedding)
    paths = [store.path(files, number) for number in range(files.parts)]
    asked = [path for number, path in enumerate(paths) if files.part(number)[1].any()]
    missing = sum(not path.exists() for path in asked)
    if missing:
        wanted = config.embedding.processes or (1 if store.maker["device"] == "cuda" else available_cores())
        count = min(wanted, files.parts)
        work.mkdir(parents=True, exist_ok=True)
        files.write(work / "known.npz")
        settings = {"curation": config.model_dump(mode="json")}
        write_atomically(work / "params.yaml", json.dumps(settings))  # YAML is a superset of JSON
        command = [sys.executable, "-P", "-m", "components.curation.embed", "--pool", pool.url]
        command += ["--backbone", str(network), "--params", str(work / "params.yaml")]
        command += ["--known", str(work / "known.npz"), "--parts", str(count)]
        _run_all([[*command, "--part", str(number)] for number in range(count)], asked, work)
    return Parts(paths)


def _run_all(commands: Sequence[list[str]], paths: Sequence[Path], work: Path) -> None:
    """Run ``commands`` side by side to their end, showing how many of ``paths`` are there."""
    environment = {**os.environ, **watch_environment(), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [environment.get("PYTHONPATH")])])
    logs = [work / f"embed-{number}.log" for number in range(len(commands))]
    waiting = {path for path in paths if not path.exists()}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("wb") as target:
                processes.append(subprocess.Popen(command, env=environment, stdout=target, stderr=target))
        with Progress("embed", len(set(paths)), "parts", done=len(set(paths)) - len(waiting)) as progress:
            while any(process.poll() is None for process in processes):
                if any(process.poll() not in (None, 0) for process in processes):
                    break
                there = {path for path in waiting if path.exists()}
                waiting -= there
                progress.advance(len(there))
                time.sleep(POLL_SECONDS)
            progress.advance(sum(path.exists() for path in waiting))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    for process, log in zip(processes, logs, strict=True):
        if process.returncode > 0:
            told = log.read_text(encoding="utf-8", errors="replace").strip()
            last = told.splitlines()[-1] if told else ""
            if process.returncode == 2 and last.startswith("error: "):
                raise UserError(last.removeprefix("error: "))
            raise RuntimeError(f"a process that embeds images ended with status {process.returncode}:\n{told[-2000:]}")
    if any(process.returncode for process in processes):
        raise RuntimeError("a process that embeds images was killed, as when memory runs out")


def make_parts(
    pool: Pool, files: PoolFiles, numbers: range, network: Path, store: Store, config: CurationConfig
) -> int:
    """Make those parts of ``numbers`` that are missing, in this process; returns how many."""
    paths = {number: store.path(files, number) for number in numbers if files.part(number)[1].any()}
    missing = [number for number, path in paths.items() if not path.exists()]
    if not missing:
        return 0
    embedder = Embedder(network, store.maker["device"], config)
    reader = pool.files(missing[0] * PART_FILES, config.decode.max_bytes)
    for number in range(missing[0], missing[-1] + 1):
        own = islice(reader, PART_FILES)
        if number not in missing:
            deque(own, maxlen=0)
            continue
        sha256, decoded = files.part(number)
        vectors = embedder.vectors(_images(own, sha256, decoded, pool.url))
        part = np.zeros((len(sha256), vectors.shape[1]), config.embedding.dtype)
        part[decoded] = vectors
        buffer = io.BytesIO()
        np.save(buffer, part)
        write_atomically(paths[number], buffer.getvalue())
    return len(missing)


def _images(files: Iterable[PoolFile], sha256: Sequence[str], decoded: np.ndarray, pool: str) -> Iterator[bytes]:
    """The encoded images among ``files``. Raises :class:`UserError` where one is no longer what it was."""
    source = iter(files)
    for digest, wanted in zip(sha256, decoded, strict=True):
        file = next(source, None)
        if wanted:
            if file is None or file.data is None or hashlib.sha256(file.data).hexdigest() != digest:
                name = f"'{file.path}'" if file else "it"
                raise UserError(f"{pool}: {name} changed while it was read; curate again when nothing writes to it")
            yield file.data


class Embedder:
    """A network that gives vectors for encoded images, on one thread of a processor or on a GPU."""

    def __init__(self, network: Path, device: str, config: CurationConfig) -> None:
        import torch

        from training.models.interchange import load_export

        if device == "cpu":
            torch.set_num_threads(1)  # how many there are decides sums; processes are what there may be more of
        self._device = device
        self._threads = 1 if device == "cpu" else available_cores()
        self._limits = DecodeLimits(max_bytes=config.decode.max_bytes, max_pixels=config.decode.max_pixels)
        model, preprocessing = load_export(network)
        self._model: Backbone = model.to(device)
        self._preprocessing: Preprocessing = preprocessing

    def vectors(self, images: Iterable[bytes]) -> np.ndarray:
        """The normalised CLS features (n, d) float32 of encoded images that were decoded before, in their order."""
        import torch

        found: list[np.ndarray] = []
        source = iter(images)
        with torch.inference_mode(), ThreadPoolExecutor(self._threads) as executor:

            def ahead() -> list[Future[np.ndarray]]:
                return [executor.submit(self._pixels, data) for data in islice(source, BATCH)]

            batch = ahead()
            while batch:
                following = ahead()  # decoded while the device computes
                pixels = torch.from_numpy(np.stack([future.result() for future in batch]))
                found.append(self._model(pixels.to(self._device))["cls"].float().cpu().numpy())
                batch = following
        return unit(np.concatenate(found)).astype(np.float32) if found else np.zeros((0, 1), np.float32)

    def _pixels(self, data: bytes) -> np.ndarray:
        return self._preprocessing(decode_image(data, self._limits))


def write_matrix(folder: Path, keys: Sequence[str], parts: Parts, rows: np.ndarray) -> None:
    """Write the embeddings of the pool files ``rows`` (ascending), which have these ``keys``, as they are kept.

    :class:`GivenEmbeddings` reads them, so that another machine curates by the same numbers.
    """
    matrix: np.ndarray | None = None
    for span, stored in parts.stored(rows):
        if matrix is None:
            matrix = _matrix((len(rows), stored.shape[1]), stored.dtype, folder / VECTORS)
        matrix[span] = stored
    if matrix is None:
        raise UserError(f"{folder}: no image of the pool can be embedded")
    assert isinstance(matrix, np.memmap)
    matrix.flush()
    np.save(folder / KEYS, np.array(keys, "S"))


class GivenEmbeddings:
    """A folder with ``vectors.npy`` (n, d) and ``keys.npy`` (n,): for each row the key of its image, the first 24 (or
    more) hex digits of the sha256 of its bytes, as bytes of one length."""

    def __init__(self, folder: Path) -> None:
        try:
            self._vectors = np.load(folder / VECTORS, mmap_mode="r")
            keys = np.load(folder / KEYS)
        except FileNotFoundError as error:
            raise UserError(f"{folder}: no embeddings ({Path(error.filename).name} is missing)") from None
        except ValueError as error:
            raise UserError(f"{folder}: no embeddings ({error})") from None
        wrong = self._vectors.ndim != 2 or keys.shape != self._vectors.shape[:1] or keys.dtype.kind != "S"
        if wrong or self._vectors.dtype.kind != "f" or keys.dtype.itemsize < 24:
            raise UserError(
                f"{folder}: expected {VECTORS} (n, d) of floats and {KEYS} (n,) of bytes, a key for each row"
            )
        self._folder, self._width = folder, keys.dtype.itemsize
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def digest(self) -> str:
        """sha256 over both files."""
        return digest_of([sha256_of_file(self._folder / name) for name in (VECTORS, KEYS)])

    def take(self, sha256: Sequence[str], names: Sequence[str]) -> np.ndarray:
        """(m, d) float32 of unit length for images of these digests, called ``names`` in messages.

        Raises :class:`UserError` where one has no row.
        """
        wanted = np.array([digest[: self._width] for digest in sha256], f"S{self._width}")
        places = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        absent = np.flatnonzero(self._keys[places] != wanted) if len(self._keys) else np.arange(len(wanted))
        if len(absent):
            first = f"first {names[absent[0]]}"
            raise UserError(f"{self._folder}: {len(absent)} of {len(wanted)} images have no embedding ({first})")
        return unit(np.asarray(self._vectors[self._order[places]], np.float32))
