"""The scan of 2,385 files of the web: all accounted for, as plain Pillow has it, in bounded memory."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import threading
from pathlib import Path

import psutil

from components.curation.config import DecodeConfig
from components.curation.pool import open_pool
from components.curation.scan import scan_pool

ORACLE = """
import io, json, resource, signal, sys, tarfile, warnings
from PIL import Image

class Slow(Exception): pass
def ring(*_): raise Slow
signal.signal(signal.SIGALRM, ring)
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
warnings.simplefilter("ignore")
with tarfile.open(sys.argv[1]) as archive:
    for member in archive:
        if member.isfile():
            data = archive.extractfile(member).read()
            signal.alarm(60)
            try:
                image = Image.open(io.BytesIO(data))
                size = image.size
                image.load()
                print(json.dumps([member.name, "", sorted(size), sorted(image.size)]))
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                print(json.dumps([member.name, type(error).__name__, str(error), not data]))
            signal.alarm(0)
"""
"""What plain Pillow says of each member of an archive, one JSON list a line."""


FITTING = {
    "UnidentifiedImageError": {"empty", "not-an-image", "unsupported", "truncated", "corrupt"},
    "OSError": {"truncated", "corrupt", "unsupported"},
    "ValueError": {"truncated", "corrupt", "too-costly"},
    "DecompressionBombError": {"too-many-pixels"},
}
"""Reasons that fit what Pillow raises."""
MADE = {"empty": "empty", "html": "not-an-image", "truncated": "truncated"}
"""The reason for files that were made to be refused."""


class PeakOfTree:
    """The largest memory (proportional set size) of this process, beyond what it began with, and its children."""

    def __enter__(self) -> PeakOfTree:
        self._me, self.peak, self._stop = psutil.Process(), 0, threading.Event()
        self._before = self._me.memory_full_info().pss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            total = -self._before
            for process in (self._me, *self._me.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue  # it ended
            self.peak = max(self.peak, total)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_every_file_is_what_plain_pillow_says(data_folder: Path, tmp_path: Path) -> None:
    archive = data_folder / "webpool" / "webpool.tar.gz"
    told = subprocess.run([sys.executable, "-c", ORACLE, archive], stdout=subprocess.PIPE, text=True, check=True)
    oracle = {name: rest for name, *rest in map(json.loads, told.stdout.splitlines())}
    with PeakOfTree() as memory:
        scan = scan_pool(open_pool(str(archive)), "web", DecodeConfig(workers=2), tmp_path)
    assert memory.peak < 2 << 30
    assert len(scan) == 2385 == len(set(scan.path)) and set(scan.path) == set(oracle)

    with (archive.parent / "truth.csv").open(encoding="utf-8", newline="") as file:
        made = {row["filename"]: row["transform"] for row in csv.DictReader(file)}
    refused = dict.fromkeys(FITTING, 0)
    for row, path in enumerate(scan.path):
        error, stored, loaded = oracle[path]
        if not scan.reason[row]:
            assert not error, f"{path}: Pillow says {error}"
            assert sorted((int(scan.width[row]), int(scan.height[row]))) in (stored, loaded), path
            continue
        assert error, f"{path}: refused as {scan.reason[row]} ({scan.detail[row]}), Pillow decodes it"
        assert scan.detail[row] or scan.reason[row] == "empty"
        assert scan.reason[row] in FITTING[error], f"{path}: {scan.reason[row]}, Pillow says {error}: {stored}"
        assert (scan.reason[row] == "empty") is loaded
        if "truncated" in stored or made[path] in MADE:
            assert scan.reason[row] == MADE.get(made[path], "truncated"), path
        refused[error] += 1
    assert all(refused.values()) and sum(refused.values()) == 159
