"""JPEG bytes to the crops of one image: this project's data path against torchvision v2 on Pillow, on one core.

    python tests/benchmarks/views.py [--rounds 10] [--side 512]

Both decode the same photographs and make 2 crops of 224 and 8 of 96 pixels with the published augmentation,
antialiased; torchvision blurs with Pillow, as the published code does. Rounds are interleaved. Time is that of the
processor, so that other work on the machine counts little. The last line is one JSON object: images a second, and the
median ratio with the interval that holds 95 of 100 medians of resampled rounds.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.benchmarks.ratios import ratio_of_rounds  # noqa: E402

REFERENCE = Path(sys.prefix) / "reference"
IMAGES = 12


def photographs(side: int) -> list[bytes]:
    """JPEG files (quality 90) of parts of scikit-image's photographs."""
    from PIL import Image
    from skimage import data

    found = []
    for photograph in (data.astronaut(), data.chelsea(), data.coffee(), data.rocket()):
        image = Image.fromarray(photograph)
        short = min(image.size)
        for corner in ((0, 0), (image.width - short, image.height - short), (0, image.height - short)):
            box = (*corner, corner[0] + short, corner[1] + short)
            buffer = io.BytesIO()
            image.resize((side, side), Image.Resampling.BICUBIC, box=box).save(buffer, "JPEG", quality=90)
            found.append(buffer.getvalue())
    return found[:IMAGES]


def ours() -> Callable[[bytes], object]:
    """This project's way from bytes to uint8 crops."""
    from foundry.images import open_image
    from training.data.augment import MultiCrop, shrinkage
    from training.recipe import Crops

    crops, rng = Crops(), np.random.default_rng(0)
    make, sizes = MultiCrop(crops), crops.sizes()[0]

    def views(data: bytes) -> object:
        encoded = open_image(data)
        whole = encoded.height, encoded.width
        areas = make.areas(*whole, rng, sizes)
        return make.views(encoded.pixels(shrinkage(areas)), whole, areas, rng, sizes)

    return views


def theirs() -> Callable[[bytes], object]:
    """torchvision v2 on Pillow's images, to uint8 tensors, with the same settings."""
    from PIL import Image, ImageFilter
    from torchvision.transforms import InterpolationMode, v2

    from training.recipe import Crops

    crops, rng = Crops(), np.random.default_rng(0)

    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=rng.uniform(*crops.blur_sigma)))

    def pipeline(size: int, scale: tuple[float, float], blurred: float, solarised: float) -> v2.Compose:
        jitter = v2.ColorJitter(*crops.jitter_strength)
        return v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC, antialias=True),
                v2.RandomHorizontalFlip(crops.horizontal_flip),
                v2.RandomApply([jitter], p=crops.colour_jitter),
                v2.RandomGrayscale(crops.greyscale),
                v2.RandomApply([v2.Lambda(blur)], p=blurred),
                v2.RandomSolarize(128, p=solarised),
                v2.PILToTensor(),
            ]
        )

    first = pipeline(crops.global_size, crops.global_scale, crops.blur[0], 0.0)
    second = pipeline(crops.global_size, crops.global_scale, crops.blur[1], crops.solarise)
    local = pipeline(crops.local_size, crops.local_scale, crops.blur[2], 0.0)

    def views(data: bytes) -> object:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return [first(image), second(image), *(local(image) for _ in range(crops.local_count))]

    return views


def serve(kind: str, side: int) -> None:
    """Time one pass over the photographs for each line on stdin."""
    import cv2
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    if kind == "theirs":
        import tests.training.data.torchvision_views  # noqa: F401  (torchvision beside a CPU build of torch)

    make, files = {"ours": ours, "theirs": theirs}[kind](), photographs(side)
    for data in files:
        make(data)
    for _ in sys.stdin:
        begun = time.process_time()
        for data in files:
            make(data)
        print((time.process_time() - begun) / len(files), flush=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--serve", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve, options.side)
        return 0
    paths = {"ours": [REPOSITORY], "theirs": [REPOSITORY, REFERENCE]}
    running = {}
    for kind, path in paths.items():
        command = [sys.executable, __file__, "--serve", kind, "--side", str(options.side)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
        running[kind] = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    seconds: dict[str, list[float]] = {kind: [] for kind in running}
    for _ in range(options.rounds):
        for kind, process in running.items():
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            seconds[kind].append(float(process.stdout.readline()))
    for process in running.values():
        process.communicate()
    rates = {kind: 1 / np.array(each) for kind, each in seconds.items()}
    result = {
        "benchmark": "views",
        "side": options.side,
        "rounds": options.rounds,
        "ours_images_per_second": round(float(np.median(rates["ours"])), 1),
        "torchvision_images_per_second": round(float(np.median(rates["theirs"])), 1),
        **ratio_of_rounds(rates["ours"], rates["theirs"]),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
