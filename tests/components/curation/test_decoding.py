from __future__ import annotations

import contextlib
import hashlib
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from components.curation import decoding
from components.curation.closeup import SIDE, take
from components.curation.config import DecodeConfig
from components.curation.decoding import Decoded, DecodeWorkers
from components.curation.measurement import measure
from components.curation.pool import PoolFile
from tests.components.curation.pictures import crops, encode

GOOD = [encode(piece) for piece in crops(6, 40)]


@pytest.fixture(scope="module")
def slow_image() -> bytes:
    """A valid PNG of 60 million pixels: most of a second of processor time to decode and measure."""
    return encode(np.zeros((7500, 8000, 3), np.uint8), compress_level=1)


def decode(datas: list[bytes], **settings: float) -> list[Decoded]:
    with DecodeWorkers(DecodeConfig(**settings)) as workers:  # type: ignore[arg-type]
        return list(workers.decode(PoolFile(f"{number}.png", data) for number, data in enumerate(datas)))


def test_results_come_in_pool_order_and_equal_those_measured_here() -> None:
    from foundry.images import decode_image

    datas = GOOD * 3
    found = decode(datas, workers=3)
    assert [result.path for result in found] == [f"{number}.png" for number in range(len(datas))]
    for result, data in zip(found, datas, strict=True):
        expected = measure(decode_image(data))
        assert result.measurement is not None and result.extension == "png" and result.reason == ""
        assert (result.sha256, result.size) == (hashlib.sha256(data).hexdigest(), len(data))
        assert result.measurement.pixels_sha256 == expected.pixels_sha256
        assert result.measurement.hash == expected.hash
        np.testing.assert_array_equal(result.measurement.grey, expected.grey)
        np.testing.assert_array_equal(result.measurement.colour, expected.colour)


def test_closeups_come_in_order_and_are_plain_where_there_is_none() -> None:
    from foundry.images import decode_image

    datas = [GOOD[0], GOOD[1][:200], GOOD[2], GOOD[1]]
    with DecodeWorkers(DecodeConfig(workers=2), closeups=True) as workers:
        found = list(workers.closeups(PoolFile(f"{number}.png", data) for number, data in enumerate(datas)))
    for closeup, data in zip(found, datas, strict=True):
        expected = np.zeros((SIDE, SIDE, 3), np.uint8) if data == datas[1] else take(decode_image(data))
        np.testing.assert_array_equal(closeup, expected)


def test_broken_files_have_the_decoders_reason() -> None:
    small = encode(np.zeros((9, 9, 3), np.uint8))
    header = b"IHDR" + b"\0\1\0\0\0\1\0\0" + small[24:29]  # 65,536 x 65,536
    bomb = small[:12] + header + zlib.crc32(header).to_bytes(4, "big") + small[33:]
    found = decode([b"", b"<html></html>", GOOD[0][:300], bomb, GOOD[1]], workers=1)
    assert [result.reason for result in found] == ["empty", "not-an-image", "truncated", "too-many-pixels", ""]
    assert found[1].sha256 == hashlib.sha256(b"<html></html>").hexdigest()


def test_a_file_that_was_not_read_keeps_its_reason() -> None:
    unread = PoolFile("x.png", None, "unreadable", "no permission")
    with DecodeWorkers(DecodeConfig(workers=1)) as workers:
        assert [result.reason for result in workers.decode([unread])] == ["unreadable"]
        before, found, after = workers.decode([PoolFile("a", GOOD[0]), unread, PoolFile("b", GOOD[1])])
    assert (found.reason, found.detail, found.sha256) == ("unreadable", "no permission", "")
    assert (before.path, before.reason, after.path, after.reason) == ("a", "", "b", "")


def test_a_file_that_ruins_its_batch_costs_only_itself(slow_image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "BATCH_BYTES", len(slow_image) * 2)
    found = decode([GOOD[0], slow_image, b"", GOOD[1]], workers=1, max_seconds=0.15)
    assert [result.reason for result in found] == ["", "timeout", "empty", ""]
    alone = decode([GOOD[1]], workers=1)[0].measurement
    assert found[3].measurement is not None and alone is not None
    np.testing.assert_array_equal(found[3].measurement.grey, alone.grey)


def test_no_more_is_read_ahead_than_the_windows_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "BATCH_FILES", 3)
    monkeypatch.setattr(decoding, "WINDOW_BATCHES", 2)
    taken = 0

    def endless() -> Iterator[PoolFile]:
        nonlocal taken
        while True:
            taken += 1
            yield PoolFile(str(taken), GOOD[0])

    with DecodeWorkers(DecodeConfig(workers=1)) as workers:
        results = workers.decode(endless())
        for given in range(1, 20):
            next(results)
            assert taken <= given + 3 * (2 + 2)


def test_a_file_that_takes_too_long_costs_only_itself(slow_image: bytes) -> None:
    found = decode([GOOD[0], slow_image, GOOD[1], GOOD[2]], workers=1, max_seconds=0.15)
    assert [result.reason for result in found] == ["", "timeout", "", ""]
    assert found[1].sha256 == hashlib.sha256(slow_image).hexdigest()


def test_a_file_that_takes_too_much_memory_costs_only_itself(slow_image: bytes) -> None:
    found = decode([GOOD[0], slow_image, GOOD[1]], workers=1, max_memory_mib=64)
    assert [result.reason for result in found] == ["", "too-costly", ""]


def test_a_limit_on_pixels_is_obeyed() -> None:
    assert [result.reason for result in decode(GOOD[:1], workers=1, max_pixels=1599)] == ["too-many-pixels"]
    assert [result.reason for result in decode(GOOD[:1], workers=1, max_pixels=1600)] == [""]


def decode_workers() -> list[psutil.Process]:
    """Living workers among this process's children; other tests may have left children of their own."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "components.curation.decode_worker" in child.cmdline():
                found.append(child)
    return found


def test_a_worker_that_dies_is_replaced(slow_image: bytes) -> None:
    def kill_busy_worker(files: list[PoolFile]) -> Iterator[PoolFile]:
        """The second file makes the only worker busy; it is killed while it works on it."""
        yield from files[:2]
        while not (children := decode_workers()):
            threading.Event().wait(0.01)
        (worker,) = children
        while worker.rlimit(psutil.RLIMIT_AS)[0] == psutil.RLIM_INFINITY:
            threading.Event().wait(0.01)  # it is starting
        before = worker.cpu_times().user
        while worker.cpu_times().user < before + 0.1:
            threading.Event().wait(0.01)
        worker.send_signal(signal.SIGSEGV)
        yield from files[2:]

    files = [PoolFile(f"{number}.png", data) for number, data in enumerate([GOOD[0], slow_image, GOOD[1]])]
    with DecodeWorkers(DecodeConfig(workers=1)) as workers:
        results = workers.decode(kill_busy_worker(files))
        found = list(results)
    assert [result.reason for result in found] == ["", "crashed", ""]
    assert "SIGSEGV" in found[1].detail


def test_no_worker_is_left_when_the_reader_stops_early(slow_image: bytes) -> None:
    with contextlib.suppress(RuntimeError), DecodeWorkers(DecodeConfig(workers=2)) as workers:
        results = workers.decode(PoolFile("x", data) for data in [GOOD[0], slow_image, slow_image])
        next(results)
        assert decode_workers()
        raise RuntimeError
    assert not decode_workers()


def test_no_worker_outlives_a_killed_parent(slow_image: bytes, tmp_path: Path) -> None:
    (tmp_path / "slow.png").write_bytes(slow_image)
    program = f"""
import sys
from components.curation import decoding
from components.curation.closeup import SIDE, take
from components.curation.config import DecodeConfig
from components.curation.decoding import DecodeWorkers
from components.curation.pool import PoolFile
data = open({str(tmp_path / "slow.png")!r}, "rb").read()
def files():
    yield PoolFile("x", data)
    yield PoolFile("x", data)
    print("busy", flush=True)
    sys.stdin.read()
with DecodeWorkers(DecodeConfig(workers=2, max_seconds=60)) as workers:
    list(workers.decode(files()))
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert parent.stdout is not None and parent.stdin is not None
    assert parent.stdout.readline() == b"busy\n"
    while not (children := psutil.Process(parent.pid).children(recursive=True)):
        threading.Event().wait(0.01)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    parent.stdin.close()
    parent.stdout.close()
    assert not alive


def test_a_worker_that_cannot_start_is_an_error_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="did not start"):
        decode(GOOD[:1], workers=1)
