"""LightlyTrain's part of ``peer.py``, run by the Python of an environment that has it; only its public API is used."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
if torch.version.cuda is None:  # torchvision beside a CPU build of torch
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from turns import Turns  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--objective", choices=("dino", "dinov2"), required=True)
    parser.add_argument("--precision", choices=("fp32", "bf16"), required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--turn", type=int, required=True)
    options = parser.parse_args()
    import lightly_train
    import timm

    Turns(options.turn)
    if options.objective == "dino":
        model: object = timm.create_model(
            "vit_tiny_patch16_224", patch_size=4, img_size=32, dynamic_img_size=True, num_classes=0
        )
        more: dict[str, object] = {}
    else:
        model, more = "dinov2/vits14-notpretrained", {"model_args": {"patch_size": 4}}
    lightly_train.pretrain(
        out=options.out,
        overwrite=True,
        data=options.images,
        model=model,
        method=options.objective,
        epochs=10_000,
        batch_size=options.batch,
        num_workers=0,
        devices=1,
        accelerator="cpu",
        precision={"fp32": "32-true", "bf16": "bf16-mixed"}[options.precision],
        loggers={"tensorboard": None},
        transform_args={"image_size": (32, 32), "local_view": {"num_views": 6, "view_size": (16, 16)}},
        **more,
    )


if __name__ == "__main__":
    main()
