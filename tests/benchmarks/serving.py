"""Encoded images through Triton against the same code in one process: what does the server cost?

    .venv/bin/python tests/benchmarks/serving.py [--dim 384 --depth 12 --heads 6 --size 224] [--images 200]

A ViT/16 with random weights is exported, published and asked for embeddings of JPEG photographs; in the same rounds the
same images go through the same model without a server. Prints one JSON object as its last line: seconds to export,
start and load, milliseconds of one query, images a second served and in process (the best round of each, so that a busy
machine counts less), and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402


def photographs(count: int, size: int = 256) -> list[bytes]:
    """``count`` JPEG files of ``size`` x ``size`` pixels, cut from a photograph of scikit-image."""
    import io

    from PIL import Image
    from skimage import data

    picture, random = data.astronaut(), np.random.default_rng(0)
    files = []
    for _ in range(count):
        top, left = random.integers(0, 512 - size, 2)
        buffer = io.BytesIO()
        Image.fromarray(picture[top : top + size, left : left + size]).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def write_network(folder: Path, arguments: argparse.Namespace) -> None:
    """A ViT/16 with random weights in the layout that training exports."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    from foundry.images import Preprocessing

    config = DINOv3ViTConfig(
        hidden_size=arguments.dim,
        num_hidden_layers=arguments.depth,
        num_attention_heads=arguments.heads,
        intermediate_size=4 * arguments.dim,
        patch_size=16,
        image_size=arguments.size,
        num_register_tokens=4,
    )
    DINOv3ViTModel(config).save_pretrained(folder)
    preprocessing = Preprocessing(resize=arguments.size, crop=arguments.size)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing.to_config()))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the comparison inside ``folder``."""
    from serving.client import EmbeddingClient
    from serving.export import export_onnx
    from serving.installation import serving_environment
    from serving.model_config import ServingOptions
    from serving.repository import ModelRepository
    from serving.server import start_server, stop_server
    from serving.triton_backend.embedding import EmbeddingModel

    seconds: dict[str, float] = {}

    def timed(name: str, action: Any) -> Any:
        start = time.perf_counter()
        result = action()
        seconds[name] = round(time.perf_counter() - start, 3)
        return result

    write_network(folder / "export", arguments)
    export = timed("export", lambda: export_onnx(folder / "export", folder / "onnx"))
    repository = ModelRepository(folder / "repository")
    repository.write_version("vit", 1, folder / "onnx", export)
    repository.serve("vit", [1], ServingOptions(threads=arguments.threads, environment=serving_environment()))
    server = timed("start", lambda: start_server(repository.root, "benchmark"))
    try:
        timed("load", lambda: server.control().load("vit"))
        model = EmbeddingModel(repository.root / "vit" / "1", threads=arguments.threads)
        images = photographs(arguments.images)
        latencies, served, in_process = [], [], []
        with EmbeddingClient(server.url, "vit") as client:
            for image in images[: min(50, len(images))]:
                start = time.perf_counter()
                client.embed([image])
                latencies.append(1000 * (time.perf_counter() - start))
            for _ in range(arguments.rounds):
                start = time.perf_counter()
                count = sum(1 for _ in client.embed_each(images))
                served.append(count / (time.perf_counter() - start))
                start = time.perf_counter()
                for first in range(0, len(images), 8):
                    rows = [row for row in model.decode(images[first : first + 8]) if isinstance(row, np.ndarray)]
                    model.run(np.stack(rows), patch_features=False)
                in_process.append(len(images) / (time.perf_counter() - start))
        model.close()
    finally:
        timed("stop", lambda: stop_server("benchmark"))
    return {
        "seconds": seconds,
        "query_ms": {
            "best": round(min(latencies), 2),
            "median": round(float(np.median(latencies)), 2),
            "p95": round(float(np.percentile(latencies, 95)), 2),
        },
        "images_per_second": {"served": round(max(served), 1), "in_process": round(max(in_process), 1)},
        "served_to_in_process": round(max(served) / max(in_process), 3),
        "kilobytes_per_image": round(sum(map(len, images)) / len(images) / 1000, 1),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
    }


def main(argv: list[str]) -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("dim", 96),
        ("depth", 4),
        ("heads", 2),
        ("size", 96),
        ("images", 200),
        ("threads", 2),
        ("rounds", 5),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
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
