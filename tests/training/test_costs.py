"""Costs of a distillation by part, and processes divided by them."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foundry.errors import UserError
from tests.training.small_runs import HEADS, MODEL, small_recipe, write_recipe
from training.costs import Costs, divide, measure_costs
from training.models.architectures import architecture
from training.recipe import Recipe

STUDENTS = [
    {"name": "vit", "model": {**MODEL, "dim": 64, "depth": 4}},
    {"name": "convnext", "model": {"arch": "convnext", "depths": [1, 1, 1], "dims": [8, 8, 16]}},
]
DISTIL = {"stage": "distil", "model": None, "heads": HEADS, "students": STUDENTS}


@pytest.mark.parametrize("seed", range(8))
def test_no_other_division_is_faster(seed: int) -> None:
    draw = random.Random(seed)
    costs = {name: draw.uniform(0.01, 1) for name in "abc"}
    processes = draw.randrange(3, 10)
    counts = divide(costs, processes)
    assert sum(counts.values()) == processes and min(counts.values()) >= 1

    def slowest(each: tuple[int, ...]) -> float:
        return max(cost / count for cost, count in zip(costs.values(), each, strict=True))

    others = [each for each in itertools.product(range(1, processes), repeat=3) if sum(each) == processes]
    assert slowest(tuple(counts.values())) == pytest.approx(min(map(slowest, others)))


def test_the_published_allocation_follows_from_costs_like_those() -> None:
    """DINOv3's 296 processes for S, S+, B and L: 48, 48, 80 and 120; costs in that proportion give it back."""
    assert divide({"s": 48.0, "s+": 48.0, "b": 80.0, "l": 120.0}, 296) == {"s": 48, "s+": 48, "b": 80, "l": 120}


def test_seconds_of_a_step() -> None:
    costs = Costs(0.1, {"a": 0.2, "b": 0.4})
    assert costs.step(12, {"a": 1, "b": 2}) == pytest.approx(12 * (0.1 / 3 + 0.2))
    assert costs.in_turn(12, 3) == pytest.approx(12 * 0.7 / 3)


def test_fewer_processes_than_students() -> None:
    with pytest.raises(UserError, match="2 students cannot be divided among 1 processes"):
        divide({"a": 1.0, "b": 1.0}, 1)


def test_a_larger_student_costs_more() -> None:
    recipe = Recipe.model_validate(small_recipe(**DISTIL))
    costs = measure_costs(recipe, architecture(MODEL), torch.device("cpu"))
    assert set(costs.students) == {"vit", "convnext"}
    assert 0 < costs.teacher < costs.students["vit"], "a forward pass of a smaller network over fewer crops"


def test_the_command(tmp_path: Path) -> None:
    write_recipe(tmp_path / "recipe.yaml")  # of a pretraining, as a run folder has it
    recipe = write_recipe(tmp_path / "family.yaml", **DISTIL)
    command = [sys.executable, "-m", "training.costs", "--recipe", recipe, "--teacher", tmp_path, "--processes", "4"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["teacher", "vit", "convnext", "a"]
    assert sum(int(line.split()[-1]) for line in lines[1:3]) == 4
    done = subprocess.run(
        [*map(str, command[:4]), str(tmp_path / "recipe.yaml"), *map(str, command[5:])],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2 and "students belong to stage distil" in done.stderr
