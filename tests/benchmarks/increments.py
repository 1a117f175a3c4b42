"""What an increment costs beside a full run: a pool that has grown, curated whole and by adding to what was there.

    python tests/benchmarks/increments.py [--pool FOLDER] [--growth 0.1] [--rounds 5] [--files N]

``--pool``: folder of images, or a tar of one; the web pool below FOUNDRY_DATA where nothing is named. Which files are
new a hash of their path decides. Both kinds of run alternate in one process, after one of each that does not count;
every run writes into a fresh folder; digests of the pool's files are remembered in both. ``--files``: only so many
files of the pool. Prints one JSON object as its last line: seconds of both, the median ratio and its interval.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.ratios import median_of_rounds, ratio_of_rounds  # noqa: E402


def rank(path: str) -> float:
    """A number in 0..1 that the path alone decides."""
    return int(hashlib.sha256(path.encode()).hexdigest()[:12], 16) / 16**12


def split(source: Path, target: Path, growth: float, count: int | None) -> tuple[int, int]:
    """Link the files of ``source`` into ``target``/grown and, without the new ones, into ``target``/base; returns how
    many each has."""
    files = sorted((path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()), key=rank)
    files = files[:count]
    old = round(len(files) / (1 + growth))
    for folder, names in (("grown", files), ("base", files[:old])):
        for name in names:
            path = target / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, path)
    return old, len(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, help="folder or tar of images (default: FOUNDRY_DATA/webpool)")
    parser.add_argument("--growth", type=float, default=0.1, help="new files over old ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, help="use so many files of the pool")
    parser.add_argument("--folder", type=Path, help="where the work goes (default: a temporary folder)")
    arguments = parser.parse_args()
    from components.curation.config import CurationConfig
    from components.curation.step import run

    source = arguments.pool or Path(os.environ["FOUNDRY_DATA"]) / "webpool" / "webpool.tar.gz"
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        os.environ["FOUNDRY_HOME"] = str(folder / "home")
        if source.is_file():
            with tarfile.open(source) as archive:
                archive.extractall(folder / "source", filter="data")
            source = folder / "source"
        old, count = split(source, folder / "pools", arguments.growth, arguments.files)

        def curate(pool: str, output: Path, previous: Path | None = None) -> tuple[float, dict[str, object]]:
            inputs = {"pool": str(folder / "pools" / pool)} | ({"previous": str(previous)} if previous else {})
            shutil.rmtree(output, ignore_errors=True)
            output.mkdir()
            begun = time.perf_counter()
            metrics = run(CurationConfig(), inputs, output)
            return time.perf_counter() - begun, metrics

        curate("base", folder / "base")
        seconds: dict[str, list[float]] = {"full": [], "increment": []}
        for number in range(arguments.rounds + 1):
            for kind in ("full", "increment") if number % 2 else ("increment", "full"):
                taken, metrics = curate("grown", folder / kind, folder / "base" if kind == "increment" else None)
                if number:
                    seconds[kind].append(taken)
                if kind == "increment":
                    added = metrics
        whole, part = (np.array(seconds[kind]) for kind in ("full", "increment"))
        result = {
            "benchmark": "increments",
            "files": count,
            "new_files": count - old,
            "new_samples": added["new_samples"],
            "full_seconds": median_of_rounds(whole),
            "increment_seconds": median_of_rounds(part),
            "increment_over_full": ratio_of_rounds(part, whole, 3),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
