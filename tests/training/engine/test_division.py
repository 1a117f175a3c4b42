"""Students divided among processes: the same mathematics as by all processes in turn."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.small_runs import command, events, rows, train, write_recipe
from training.engine.exports import latest_export
from training.engine.loop import Trainer
from training.recipe import load_recipe

VIT = {"arch": "vit", "dim": 32, "depth": 2, "heads": 2, "patch_size": 8, "layer_scale": 0.5, "init": "fan_in"}
CONVNEXT = {"arch": "convnext", "depths": [1, 1, 1], "dims": [8, 8, 16]}
LOSSES = ("loss", "dino_global", "dino_local", "ibot", "koleo")
STEPS = 6


def family(folder: Path, processes: tuple[int, int] = (0, 0), **changes: object) -> Path:
    """A distillation of two students with so many processes each."""
    students = [
        {"name": name, "model": model, "processes": count}
        for (name, model), count in zip((("vit", VIT), ("convnext", CONVNEXT)), processes, strict=True)
    ]
    changes = {"steps": STEPS, "students": students, **changes}
    return write_recipe(folder / "family.yaml", name="family", stage="distil", model=None, **changes)


def losses(run: Path, names: Sequence[str] = ("vit", "convnext")) -> np.ndarray:
    return np.array(
        [[row[f"{name}/{loss}"] for name in names for loss in LOSSES] for row in rows(run) if "loss" in row]
    )


@pytest.fixture(scope="module")
def in_turn(data: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both students by one process."""
    folder = tmp_path_factory.mktemp("in-turn")
    train(1, family(folder), data, folder / "run", "--teacher", pretrained)
    return folder / "run"


@pytest.mark.parametrize(
    ("processes", "changes"),
    [((1, 1), {}), ((1, 2), {"accumulate": 2}), ((2, 2), {"parallel": "fsdp"}), ((3, 1), {"batch": 8})],
    ids=str,
)
def test_the_losses_are_those_of_one_process(
    data: Path, pretrained: Path, in_turn: Path, tmp_path: Path, processes: tuple[int, int], changes: dict[str, object]
) -> None:
    train(sum(processes), family(tmp_path, processes, **changes), data, tmp_path / "run", "--teacher", pretrained)
    assert losses(tmp_path / "run").shape == (STEPS, 10)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(in_turn), rtol=1e-5, atol=1e-6)
    assert [row["loss"] for row in rows(tmp_path / "run") if "loss" in row] == pytest.approx(
        [row["loss"] for row in rows(in_turn) if "loss" in row], rel=1e-5
    )
    for name in ("vit", "convnext"):
        assert latest_export(tmp_path / "run", name).name == f"step-{STEPS:09d}"


def test_a_family_learns_what_each_of_its_students_learns_alone(data: Path, pretrained: Path, tmp_path: Path) -> None:
    three = [
        {"name": name, "model": model}
        for name, model in {"vit": VIT, "convnext": CONVNEXT, "small": {**VIT, "dim": 16, "depth": 1}}.items()
    ]
    crops = {"global_size": 32, "local_size": 16, "local_count": 2, "made_at": 2}
    found = {}
    for students in (three, *([student] for student in three)):
        folder = tmp_path / "-".join(str(student["name"]) for student in students)
        folder.mkdir()
        train(1, family(folder, students=students, crops=crops), data, folder / "run", "--teacher", pretrained)
        names = [str(student["name"]) for student in students]
        found[folder.name] = losses(folder / "run", names)
    alone = np.concatenate([found[str(student["name"])] for student in three], axis=1)
    np.testing.assert_allclose(alone, found["vit-convnext-small"], rtol=1e-5, atol=1e-6)


def test_the_teacher_answers_once_for_a_batch(
    data: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(family(tmp_path, cadence={"log": 1, "evaluate": 0}))
    trainer = Trainer(recipe, str(data), str(tmp_path / "run"), teacher=str(pretrained))
    passes: list[int] = []
    whole = trainer.teacher.network.backbone.forward_crops

    def counted(crops: list[torch.Tensor], *args: object, **named: object) -> object:
        passes.append(sum(len(each) for each in crops))
        return whole(crops, *args, **named)

    monkeypatch.setattr(trainer.teacher.network.backbone, "forward_crops", counted)
    trainer.run()
    assert passes == [2 * recipe.batch] * STEPS


def test_a_running_centre_is_that_of_the_whole_batch(data: Path, pretrained: Path, tmp_path: Path) -> None:
    found = []
    for processes in ((0, 0), (1, 2)):
        folder = tmp_path / str(processes)
        folder.mkdir()
        recipe = family(folder, processes, teacher={"centring": "softmax"})
        train(max(1, sum(processes)), recipe, data, folder / "run", "--teacher", pretrained)
        found.append(losses(folder / "run"))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_it_goes_on_from_its_checkpoint_with_the_same_bits(data: Path, pretrained: Path, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    recipe = family(tmp_path, (1, 1))
    train(2, recipe, data, whole, "--teacher", pretrained)
    shorter = family(tmp_path, (1, 1), steps=4)
    train(2, shorter, data, run, "--teacher", pretrained)
    train(2, family(tmp_path, (1, 1)), data, run, "--teacher", pretrained)
    assert events(run) == ["started", "finished", "resumed", "finished"]
    for name in ("vit", "convnext"):
        ours, theirs = (latest_export(folder, name) / "model.safetensors" for folder in (run, whole))
        assert ours.read_bytes() == theirs.read_bytes()


def test_the_processes_must_be_as_many_as_there_are(data: Path, pretrained: Path, tmp_path: Path) -> None:
    arguments = (
        "--recipe",
        family(tmp_path, (1, 2)),
        "--data",
        data,
        "--output",
        tmp_path / "run",
        "--teacher",
        pretrained,
    )
    done = subprocess.run(command(1, *arguments), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "1 for vit + 2 for convnext make 3 processes, and 1 are running" in done.stderr.splitlines()[-1]
