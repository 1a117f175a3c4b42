"""What the parts of a distillation step cost on this machine, and how processes are best divided among students.

    python -m training.costs --recipe RECIPE --teacher RUN --processes 8 [--set a.b=c]

Measured on random pixels with random weights: the teacher's pass over the global crops of an image, and each student's
passes over all crops with its update. With n_i of N processes for student i, a step of B images takes about

    B / N * teacher + max_i (B / n_i * student_i)

(Siméoni et al. 2025, section 5.2). Divided evenly by cost that is as long as when every process trains all students in
turn; but a process then holds one student only, and works on more images of it at a time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from foundry.errors import UserError, run_command
from foundry.lifetime import die_with_launcher
from foundry.settings import apply_overrides
from foundry.storage import local_path
from training.data.loader import Batch, sizes_at
from training.data.masks import step_masks
from training.engine.learner import Learner, Network, build_network
from training.engine.parallel import Parallel
from training.engine.process import choose_device
from training.engine.sources import trained_architecture
from training.engine.teaching import Teacher
from training.engine.views import Views
from training.models.architectures import Architecture, architecture
from training.models.draws import StepDraws
from training.recipe import Recipe, load_recipe, matched_to

IMAGES, ROUNDS = 16, 3


@dataclass(frozen=True)
class Costs:
    """Seconds an image: of the teacher's pass, and of each student's passes and update, by name."""

    teacher: float
    students: Mapping[str, float]

    def step(self, batch: int, processes: Mapping[str, int]) -> float:
        """Seconds of a step of ``batch`` images where each student has so many processes."""
        slowest = max(cost / processes[name] for name, cost in self.students.items())
        return batch * (self.teacher / sum(processes.values()) + slowest)

    def in_turn(self, batch: int, processes: int) -> float:
        """Seconds of a step of ``batch`` images where every process trains all students."""
        return batch * (self.teacher + sum(self.students.values())) / processes


def divide(costs: Mapping[str, float], processes: int) -> dict[str, int]:
    """How many of ``processes`` each student gets, so that the slowest is as fast as it can be.

    One each, then one by one to the student whose share takes longest. Raises :class:`UserError` for fewer processes
    than students.
    """
    if processes < len(costs):
        raise UserError(f"{len(costs)} students cannot be divided among {processes} processes; train them in turn")
    counts = dict.fromkeys(costs, 1)
    for _ in range(processes - len(costs)):
        counts[max(costs, key=lambda name: costs[name] / counts[name])] += 1
    return counts


def measure_costs(recipe: Recipe, teacher: Architecture, device: torch.device) -> Costs:
    """The costs of the students of ``recipe`` beside a teacher of this architecture, on ``device``."""
    group = recipe.losses.koleo_group if recipe.losses.koleo else 1
    images = -(-IMAGES // group) * group
    recipe = matched_to(recipe, teacher.dim).model_copy(update={"batch": images, "accumulate": 1})
    parallel = Parallel(recipe, device)
    scales = [architecture(student.model).stride // teacher.stride for student in recipe.students]
    views = Views(_random_batch(recipe, teacher.stride, max(scales)).to(device), recipe.crops, max(scales))
    draws = StepDraws.for_images(recipe.seed, 0, range(images), images, (2, recipe.crops.local_count))
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=parallel.bf16)
    network = build_network(teacher, recipe.heads, 0, "cpu")
    if recipe.heads.matching == "features":
        network = Network.bare(network.backbone)
    taught = parallel.inference(network.to(device).eval().requires_grad_(False))
    teaching = Teacher(taught, recipe, hides=False)

    def pass_of_teacher() -> None:
        with autocast:
            teaching.targets([views], 0)

    seconds = _seconds(pass_of_teacher, device)
    with autocast:
        targets = teaching.targets([views], 0)
    students = {}
    for student, scale in zip(recipe.students, scales, strict=True):
        learner = Learner(student.name, architecture(student.model), recipe, 0, parallel, scale)

        def step_of_student(learner: Learner = learner) -> None:
            learner.backward([views], targets, [draws], autocast)
            learner.clip()
            learner.update(0, 1.0)
            learner.forget_gradients()

        students[student.name] = _seconds(step_of_student, device) / images
    return Costs(seconds / images, students)


def _random_batch(recipe: Recipe, stride: int, scale: int) -> Batch:
    sizes, crops, count = sizes_at(recipe, 0), recipe.crops, recipe.batch
    generator = torch.Generator().manual_seed(0)

    def pixels(number: int, side: int) -> torch.Tensor:
        shape = (number, side * scale, side * scale, len(crops.mean))
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    grid = sizes.global_size // stride
    masks = step_masks(recipe.masks, count, range(count), grid, recipe.seed, 0)
    return Batch.of(
        0,
        pixels(2 * count, sizes.global_size),
        pixels(crops.local_count * count, sizes.local_size),
        torch.zeros((0, 1, 1, 3), dtype=torch.uint8),
        torch.zeros((0, 11)),
        torch.from_numpy(masks),
    )


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    """Median of some rounds after one that does not count."""
    found = []
    for _ in range(ROUNDS + 1):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - begun)
    return statistics.median(found[1:])


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    die_with_launcher()
    parser = argparse.ArgumentParser(
        prog="python -m training.costs", description="Measure a distillation's parts and divide processes by them."
    )
    parser.add_argument("--recipe", required=True, help="name of a recipe in training/recipes, or a YAML file")
    parser.add_argument("--teacher", required=True, help="run folder to distil from")
    parser.add_argument("--processes", type=int, required=True, help="processes of the whole run")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=c")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)
    recipe = load_recipe(options.recipe, apply_overrides({}, options.overrides))
    if recipe.stage != "distil":
        raise UserError(f"recipe {options.recipe}: is for stage {recipe.stage}, and students belong to stage distil")
    costs = measure_costs(recipe, trained_architecture(local_path(options.teacher)), choose_device(recipe.device))
    counts = divide(costs.students, options.processes)
    divided, in_turn = costs.step(recipe.batch, counts), costs.in_turn(recipe.batch, options.processes)
    if options.json:
        document = {
            "world_size": options.processes,
            "batch": recipe.batch,
            "seconds_per_image": {"teacher": costs.teacher, "students": dict(costs.students)},
            "processes": counts,
            "step_seconds": {"divided": divided, "in_turn": in_turn},
        }
        print(json.dumps(document))
        return 0
    print(f"{'teacher':<20} {1000 * costs.teacher:9.2f} ms an image")
    for name, cost in costs.students.items():
        print(f"{name:<20} {1000 * cost:9.2f} ms an image   processes: {counts[name]}")
    print(f"a step of {recipe.batch} images: {divided:.3g} s divided so, {in_turn:.3g} s with all students in turn")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
