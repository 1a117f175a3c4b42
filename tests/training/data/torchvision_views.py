"""Statistics of the published augmentation as torchvision v2 makes it, run in an interpreter that has torchvision.

    python torchvision_views.py IMAGE.npy OUTPUT.npz DRAWS

torchvision from the package index wants a CUDA build of torch; beside a CPU build its transforms work once the two
operators that it registers shapes for exist in name.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from PIL import Image

if torch.version.cuda is None:
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from torchvision.transforms import v2  # noqa: E402

from tests.training.data.view_statistics import describe  # noqa: E402


def photometric(blur: float, solarise: float) -> v2.Compose:
    """Jitter, greyscale, blur, solarisation in the order of the released code."""
    jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    gaussian = v2.GaussianBlur(kernel_size=9, sigma=(0.1, 2.0))
    return v2.Compose(
        [
            v2.RandomApply([jitter], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([gaussian], p=blur),
            v2.RandomSolarize(threshold=128, p=solarise),
        ]
    )


def main(image_file: str, output: str, draws: int) -> None:
    image = Image.fromarray(np.load(image_file))
    torch.manual_seed(0)
    found: dict[str, np.ndarray] = {}
    for name, blur, solarise in (("first", 0.0, 0.0), ("second", 0.9, 0.2), ("local", 0.5, 0.0)):
        change = photometric(blur, solarise)
        found[name] = np.stack([describe(np.asarray(change(image))) for _ in range(draws)])
    for name, scale in (("global", (0.32, 1.0)), ("small", (0.05, 0.32))):
        crop = v2.RandomResizedCrop(32, scale=scale)
        boxes = [crop.make_params([image]) for _ in range(4 * draws)]
        found[f"areas-{name}"] = np.array([[b["top"], b["left"], b["height"], b["width"]] for b in boxes])
    whole = v2.Compose([v2.RandomResizedCrop(32, scale=(0.32, 1.0), interpolation=3), v2.RandomHorizontalFlip(0.5)])
    found["cropped"] = np.stack([describe(np.asarray(whole(image))) for _ in range(draws)])
    np.savez(output, **found)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
