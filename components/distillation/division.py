"""How the processes of a distillation are divided among its students, by what each was measured to cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.errors import UserError
from foundry.lifetime import watch_environment
from foundry.storage import write_atomically

if TYPE_CHECKING:
    from training.recipe import Recipe

RECORD = "division.json"
"""File of a run folder: the costs that were measured when it began, and the division that follows."""


def measure_division(recipe: Recipe, teacher: Path, processes: int) -> dict[str, Any]:
    """What ``python -m training.costs --json`` says of ``recipe`` and ``teacher`` (a run folder, an export, or a folder
    with the recipe of a run to come), in a process of its own, which gives its memory and its device back. Networks are
    whole in that process, also where the run shards them.

    Raises :class:`UserError` where there are fewer processes than students, or a measurement fails.
    """
    from components.common.launcher import threads_for
    from training.recipe import dump_recipe

    threads = os.environ.get("OMP_NUM_THREADS") or str(threads_for(processes))
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "recipe.yaml"
        file.write_text(dump_recipe(recipe), encoding="utf-8")
        command = [sys.executable, "-m", "training.costs", "--recipe", str(file), "--teacher", str(teacher)]
        done = subprocess.run(
            [*command, "--processes", str(processes), "--json"],
            env={**os.environ, **watch_environment(), "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
        )
    if done.returncode == 2:  # an error of people
        reason = done.stderr.strip().splitlines()[-1].removeprefix("error: ")
        raise UserError(f"distillation.divide: the costs of the students could not be measured: {reason}")
    if done.returncode:
        raise RuntimeError(f"training.costs ended with status {done.returncode}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def divided(recipe: Recipe, teacher: Path, processes: int, run: Path) -> Recipe:
    """``recipe`` with the processes that each student gets in the run folder ``run``; a run that goes on keeps them."""
    record = run / RECORD
    if not record.is_file():
        print("distillation: measuring what the teacher and each student cost", flush=True)
        found = measure_division(recipe, teacher, processes)
        for line in describe(found):
            print(line, flush=True)
        write_atomically(record, json.dumps(found, indent=1) + "\n")
    counts = json.loads(record.read_text(encoding="utf-8"))["processes"]
    students = tuple(each.model_copy(update={"processes": counts[each.name]}) for each in recipe.students)
    return recipe.model_copy(update={"students": students})


def describe(found: Mapping[str, Any]) -> Iterator[str]:
    """A division as lines for people."""
    for name, count in found["processes"].items():
        cost = 1000 * found["seconds_per_image"]["students"][name]
        yield f"{name}: {count} of {found['world_size']} processes ({cost:.3g} ms an image)"
    step, teacher = found["step_seconds"], 1000 * found["seconds_per_image"]["teacher"]
    yield (
        f"the teacher {teacher:.3g} ms an image; a step of {found['batch']} images {step['divided']:.3g} s divided so, "
        f"{step['in_turn']:.3g} s with all students in turn"
    )
