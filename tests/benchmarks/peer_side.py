"""LightlyTrain's part of ``peer.py`` and ``race.py``, run by the Python of an environment that has it.

Only its public API is used.
"""

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

from turns import Turns, report_steps  # noqa: E402

COMMON = {"overwrite": True, "num_workers": 0, "devices": 1, "accelerator": "cpu", "loggers": {"tensorboard": None}}
UNTIMED = 10_000
"""Epochs of a training that is ended from outside."""


def take_turns(options: argparse.Namespace) -> None:
    """An endless training for ``peer.py``, in turns."""
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
        data=options.images,
        model=model,
        method=options.objective,
        epochs=UNTIMED,
        batch_size=options.batch,
        precision={"fp32": "32-true", "bf16": "bf16-mixed"}[options.precision],
        transform_args={"image_size": (32, 32), "local_view": {"num_views": 6, "view_size": (16, 16)}},
        **COMMON,
        **more,
    )


def race(options: argparse.Namespace) -> None:
    """A training of ``options.epochs`` for ``race.py``: its ViT, its crops, warm-up as a share of the steps.

    By its own defaults (SGD, 4,096 prototypes, weights of 0.02) the peer learns nothing of such a network in that time.
    It gets what serves it best of six settings tried for one pass: AdamW with the learning rate of the other side
    (1e-3 after the peer's own scaling), a head of its size, a temperature near its, and first weights by fan-in.
    """
    import lightly_train
    import timm

    report_steps(options.limit)
    torch.manual_seed(options.seed)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=options.dim,
        depth=options.depth,
        num_heads=options.heads,
        num_classes=0,
        dynamic_img_size=True,
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            torch.nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    steps = options.epochs * options.count // options.batch
    lightly_train.pretrain(
        out=options.out,
        data=options.images,
        model=model,
        method="dino",
        optim="adamw",
        optim_args={"lr": 0.004},
        method_args={
            "output_dim": 512,
            "hidden_dim": 256,
            "bottleneck_dim": 64,
            "teacher_temp": 0.03,
            "warmup_teacher_temp": 0.03,
            "warmup_steps": steps // 20,
            "warmup_teacher_temp_steps": steps // 4,
            "student_freeze_last_layer_steps": steps // 100,
        },
        epochs=options.epochs,
        batch_size=options.batch,
        seed=options.seed,
        precision="32-true",
        transform_args={
            "image_size": (32, 32),
            "random_resize": {"min_scale": 0.32, "max_scale": 1.0},
            "gaussian_blur": None,
            "solarize": None,
            "global_view_1": {"gaussian_blur": None, "solarize": None},
            "local_view": {
                "num_views": 2,
                "view_size": (16, 16),
                "random_resize": {"min_scale": 0.1, "max_scale": 0.4},
                "gaussian_blur": None,
            },
        },
        **COMMON,
    )


def embed(options: argparse.Namespace) -> None:
    """Embeddings of all images below ``options.images`` by a finished training, as a file of torch's."""
    import lightly_train

    lightly_train.embed(
        out=options.out,
        data=options.images,
        checkpoint=options.checkpoint,
        format="torch",
        image_size=(32, 32),
        num_workers=0,
        accelerator="cpu",
        overwrite=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parts = parser.add_subparsers(required=True)
    turns = parts.add_parser("turns")
    turns.add_argument("--objective", choices=("dino", "dinov2"), required=True)
    turns.add_argument("--precision", choices=("fp32", "bf16"), required=True)
    turns.add_argument("--turn", type=int, required=True)
    turns.set_defaults(run=take_turns)
    racing = parts.add_parser("race")
    for name in ("dim", "depth", "heads", "epochs", "count", "seed", "limit"):
        racing.add_argument(f"--{name}", type=int, required=True)
    racing.set_defaults(run=race)
    embedding = parts.add_parser("embed")
    embedding.add_argument("--checkpoint", required=True)
    embedding.set_defaults(run=embed)
    for part in (turns, racing, embedding):
        part.add_argument("--images", required=True)
        part.add_argument("--out", required=True)
    for part in (turns, racing):
        part.add_argument("--batch", type=int, required=True)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
