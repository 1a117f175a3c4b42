"""Images a second of `serving embed` against the number of requests at once and of images in a request.

    .venv/bin/python tests/benchmarks/embed.py [--images 400] [--rounds 5] [--concurrency 1 2 4 8 16] [--batch 1 8]

A ViT/16 with random weights is served from the embedded Triton; JPEG files of 20 kB on disk go through the whole of
`embed` (reading, asking, parts, Parquet), every setting once a round; beside them the same files go through the same
network in this process. Prints one JSON object as its last line: for each setting the median rate of the rounds and its
ratio to the first setting (one request of one image), paired by round, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402

from tests.benchmarks.ratios import median_of_rounds, ratio_of_rounds  # noqa: E402
from tests.benchmarks.serving import photographs, write_network  # noqa: E402


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the comparison inside ``folder``."""
    from serving.bulk import embed_files
    from serving.bulk_requests import BulkOptions
    from serving.export import export_onnx
    from serving.image_paths import find_images
    from serving.installation import serving_environment
    from serving.model_config import ServingOptions
    from serving.repository import ModelRepository
    from serving.server import start_server, stop_server
    from serving.triton_backend.embedding import EmbeddingModel

    write_network(folder / "export", arguments)
    export = export_onnx(folder / "export", folder / "onnx")
    repository = ModelRepository(folder / "repository")
    repository.write_version("vit", 1, folder / "onnx", export)
    repository.serve("vit", [1], ServingOptions(threads=arguments.threads, environment=serving_environment()))
    (folder / "images").mkdir()
    for index, data in enumerate(photographs(arguments.images)):
        (folder / "images" / f"{index:05d}.jpg").write_bytes(data)
    images = find_images([str(folder / "images")])
    server = start_server(repository.root, "benchmark")
    try:
        server.control().load("vit")
        model = EmbeddingModel(repository.root / "vit" / "1", threads=arguments.threads)

        def in_process() -> None:
            for first in range(0, len(images.paths), 8):
                rows = model.decode([images.read(path) for path in images.paths[first : first + 8]])
                model.run(np.stack([row for row in rows if isinstance(row, np.ndarray)]), patch_features=False)

        def served(batch: int, concurrency: int) -> Callable[[], None]:
            options = BulkOptions(batch=batch, concurrency=concurrency)

            def run() -> None:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    assert embed_files(images, server.url, "vit", options, folder / "v.parquet") == 0

            return run

        settings = {
            (batch, at_once): served(batch, at_once) for batch in arguments.batch for at_once in arguments.concurrency
        }
        runs = {f"batch {batch}, {at_once} at once": run for (batch, at_once), run in settings.items()}
        runs |= {"in process": in_process}
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            run()
        for number in range(arguments.rounds):
            names = list(runs)
            for name in names if number % 2 == 0 else reversed(names):
                start = time.perf_counter()
                runs[name]()
                rates[name].append(arguments.images / (time.perf_counter() - start))
        model.close()
    finally:
        stop_server("benchmark")
    first = np.array(next(iter(rates.values())))
    return {
        "images_per_second": {name: median_of_rounds(np.array(values)) for name, values in rates.items()},
        "to_the_first_setting": {name: ratio_of_rounds(np.array(values), first) for name, values in rates.items()},
        "images": arguments.images,
        "rounds": arguments.rounds,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
    }


def main(argv: list[str]) -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"dim": 96, "depth": 4, "heads": 2, "size": 96, "images": 400, "threads": 2, "rounds": 5}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="requests at once")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="images of a request")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="foundry-benchmark-") as folder:
        from foundry.home import home

        os.environ.setdefault("FOUNDRY_TRITON", str(home() / "triton"))
        os.environ["FOUNDRY_HOME"] = folder
        print(json.dumps(measure(arguments, Path(folder))))
    return 0


if __name__ == "__main__":
    from foundry.errors import run_command

    sys.exit(run_command(main))
