"""A distillation step of several students against its parts: the teacher's pass, each student's passes and update.

    python tests/benchmarks/distillation.py [--rounds 12] [--batch 32] [--threads 1]

A ViT-S teacher of 48-pixel crops with patches of 8 and three students (a ViT, a smaller one and a ConvNeXt), weights at
random; a step is the trainer's own, logging included. In every round the whole step and each part are measured one
after the other on the same batch. The last line is one JSON object: milliseconds, the median ratio of the step to the
sum of its parts, and the interval that holds 95 of 100 medians of resampled rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.benchmarks.ratios import ratio_of_rounds  # noqa: E402
from tests.training.curated import write_dataset  # noqa: E402
from training.data.loader import step_batches, step_order  # noqa: E402
from training.engine.loop import Trainer  # noqa: E402
from training.models.build import build_backbone, build_head  # noqa: E402
from training.models.draws import StepDraws  # noqa: E402
from training.models.interchange import save_export  # noqa: E402
from training.recipe import Recipe  # noqa: E402

TEACHER = {"arch": "vit", "dim": 384, "depth": 6, "heads": 6, "patch_size": 8, "registers": 4}
STUDENTS = {
    "vit": {"arch": "vit", "dim": 192, "depth": 4, "heads": 3, "patch_size": 8, "registers": 4},
    "small": {"arch": "vit", "dim": 96, "depth": 3, "heads": 3, "patch_size": 8, "registers": 4},
    "convnext": {"arch": "convnext", "depths": [2, 2], "dims": [64, 256]},
}
HEAD = {"prototypes": 1024, "hidden": 256, "bottleneck": 64}


def make_trainer(folder: Path, batch: int) -> Trainer:
    """A trainer of the three students on a small dataset of noise."""
    from foundry.images import Preprocessing

    order = ("hidden", "bottleneck", "prototypes")
    heads = {name: build_head(TEACHER["dim"], *(HEAD[key] for key in order)) for name in ("dino", "ibot")}
    save_export(build_backbone(TEACHER), folder / "teacher", Preprocessing(resize=48, crop=48), heads)
    recipe = Recipe.model_validate(
        {
            "name": "costs",
            "stage": "distil",
            "steps": 10_000,
            "batch": batch,
            "students": [{"name": name, "model": model} for name, model in STUDENTS.items()],
            "crops": {"global_size": 48, "local_size": 24, "local_count": 4},
            "heads": {"dino": HEAD, "ibot": HEAD},
            "losses": {"dino_same_crop": True},
            "cadence": {"log": 1, "checkpoint": 10_000, "evaluate": 0},
            "device": "cpu",
        }
    )
    dataset = write_dataset(folder / "dataset", side=96)
    return Trainer(recipe, str(dataset), str(folder / "run"), teacher=str(folder / "teacher"))


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure(trainer: Trainer, rounds: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(seconds of each part by round, seconds of the whole step by round)."""
    recipe = trainer.recipe
    order = step_order(trainer.images, recipe, None)
    batches = step_batches(
        trainer.images, recipe, order, trainer.slots, trainer.stride, trainer.scale, 0, 0, trainer.device
    )
    parts: dict[str, list[float]] = {name: [] for name in ("teacher", *STUDENTS)}
    whole = []
    autocast = torch.autocast("cpu", enabled=False)
    for number, batch in zip(range(rounds + 1), batches, strict=False):
        views = trainer._views(batch)
        draws = [StepDraws.for_images(recipe.seed, number, trainer.slots, recipe.batch, (2, recipe.crops.local_count))]
        for view in views:  # made once for all, as in a step
            view.global_crops(), view.local_crops()
        found: dict[str, float] = {}
        targets = []
        found["teacher"] = seconds(lambda: targets.extend(trainer.teacher.targets(views, number)))  # noqa: B023
        for learner in trainer.learners:

            def step_of_student(learner=learner) -> None:
                learner.backward(views, targets, draws, autocast)  # noqa: B023
                learner.clip()
                learner.update(number, 1.0)  # noqa: B023
                learner.forget_gradients()

            found[learner.name] = seconds(step_of_student)
        step = seconds(lambda: trainer._step(number, batch))  # noqa: B023
        if number:  # the first one warms up
            for name, value in found.items():
                parts[name].append(value)
            whole.append(step)
    return {name: np.array(each) for name, each in parts.items()}, np.array(whole)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        parts, whole = measure(make_trainer(Path(name), options.batch), options.rounds)
    model = np.sum(list(parts.values()), axis=0)
    result = {
        "benchmark": "distillation",
        "batch": options.batch,
        "rounds": options.rounds,
        "milliseconds": {name: round(1000 * float(np.median(each)), 1) for name, each in parts.items()},
        "step_milliseconds": round(1000 * float(np.median(whole)), 1),
        **ratio_of_rounds(whole, model, digits=3),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
