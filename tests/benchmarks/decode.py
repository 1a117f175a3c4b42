"""The scan of curation against a bare loop of its decoder, for 32 px files and for photographs of 500 x 375.

    python tests/benchmarks/decode.py [--rounds 10] [--small 10000] [--photos 2000] [--data FOLDER]

The scan reads a tar, decodes in two guarded workers, digests, measures and writes its part files. The bare loops run
in two processes that hold the same files in memory: `decode_image`, and the JPEG codec under it alone. Workers are
started before the clock. Small files are cifar10's and photographs caltech20's, resized (quality 90), of the folder of
image sets (--data, else FOUNDRY_DATA); without one, parts of scikit-image's photographs. Rounds are interleaved. The
last line is one JSON object: images a minute, and the median ratios with intervals that hold 95 of 100 medians of
resampled rounds.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.benchmarks.ratios import median_of_rounds, ratio_of_rounds  # noqa: E402

PROCESSES = 2
SIZES = {"small": (32, 32), "photos": (500, 375)}
SETS = {"small": "cifar10/cifar10_test.tar.gz", "photos": "caltech20/caltech20_train.tar"}


def pictures(kind: str, data: str | None) -> Iterator[bytes]:
    """Encoded files of a set, over and over; small ones as they are, photographs at 500 x 375."""
    from PIL import Image

    def sized(image: Image.Image, box: tuple[int, int, int, int] | None = None) -> bytes:
        buffer = io.BytesIO()
        image.convert("RGB").resize(SIZES[kind], Image.Resampling.BICUBIC, box=box).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()

    found = []
    if data:
        with tarfile.open(Path(data) / SETS[kind]) as archive:
            for member in itertools.islice((member for member in archive if member.isfile()), 2000):
                content = archive.extractfile(member)
                assert content is not None
                encoded = content.read()
                found.append(encoded if kind == "small" else sized(Image.open(io.BytesIO(encoded))))
    else:
        from skimage import data as photographs

        for name, start in itertools.product(("astronaut", "chelsea", "coffee", "rocket"), range(0, 100, 5)):
            image = Image.fromarray(getattr(photographs, name)())
            found.append(sized(image, (start, start, start + 300, start + 200)))
    return itertools.cycle(found)


def serve(archive: str, part: int) -> None:
    """Hold every ``PROCESSES``-th file of a tar from number ``part`` on; decode them all for each line on stdin."""
    import simplejpeg

    from foundry.images import decode_image

    with tarfile.open(archive) as tar:
        files = [tar.extractfile(member).read() for member in tar][part::PROCESSES]  # type: ignore[union-attr]
    ways: dict[str, Callable[[bytes], object]] = {"loop": decode_image, "codec": simplejpeg.decode_jpeg}
    for way in ways.values():
        way(files[0])
    print("ready", flush=True)
    for line in sys.stdin:
        way = ways[line.strip()]
        for data in files:
            way(data)
        print("done", flush=True)


def measure(archive: Path, rounds: int, folder: Path) -> dict[str, np.ndarray]:
    """Seconds of each of ``rounds`` of the scan and of the bare loops over the files of ``archive``."""
    from components.curation import scan
    from components.curation.config import DecodeConfig
    from components.curation.decoding import DecodeWorkers
    from components.curation.pool import open_pool

    pool, seconds = open_pool(str(archive)), {"scan": [], "loop": [], "codec": []}
    commands = [[sys.executable, __file__, "--serve", str(archive), str(part)] for part in range(PROCESSES)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    loops = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for command in commands
    ]

    def answers() -> None:
        for loop in loops:
            assert loop.stdout is not None and loop.stdout.readline(), "a loop ended"

    answers()
    with DecodeWorkers(DecodeConfig(workers=PROCESSES)) as workers:
        list(workers.decode(itertools.islice(pool.files(), 200)))
        for _ in range(rounds):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            begun, done = time.perf_counter(), 0
            results = workers.decode(pool.files())
            while rows := list(itertools.islice(results, scan.PART_FILES)):
                assert not any(row.reason for row in rows)
                scan._write(rows, folder, done)
                done += len(rows)
            seconds["scan"].append(time.perf_counter() - begun)
            for way in ("loop", "codec"):
                begun = time.perf_counter()
                for loop in loops:
                    assert loop.stdin is not None
                    loop.stdin.write(f"{way}\n")
                    loop.stdin.flush()
                answers()
                seconds[way].append(time.perf_counter() - begun)
    for loop in loops:
        loop.communicate()
    return {way: np.array(each) for way, each in seconds.items()}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--data", default=os.environ.get("FOUNDRY_DATA"))
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve[0], int(options.serve[1]))
        return 0
    result: dict[str, object] = {"benchmark": "decode", "processes": PROCESSES, "rounds": options.rounds}
    with tempfile.TemporaryDirectory() as temporary:
        for kind in SIZES:
            count, archive = getattr(options, kind), Path(temporary) / f"{kind}.tar"
            with tarfile.open(archive, "w") as tar:
                for number, data in enumerate(itertools.islice(pictures(kind, options.data), count)):
                    entry = tarfile.TarInfo(f"{number:06d}.jpg")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
            rates = {
                way: 60 * count / each
                for way, each in measure(archive, options.rounds, Path(temporary) / "scan").items()
            }
            result[kind] = {
                "files": count,
                "size": SIZES[kind],
                "bytes": archive.stat().st_size // count,
                "images_per_minute": median_of_rounds(rates["scan"]),
                "loop_images_per_minute": median_of_rounds(rates["loop"]),
                "of_loop": ratio_of_rounds(rates["scan"], rates["loop"], 3),
                "codec_images_per_minute": median_of_rounds(rates["codec"]),
                "of_codec": ratio_of_rounds(rates["scan"], rates["codec"], 3),
            }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
