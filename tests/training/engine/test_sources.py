"""Teachers of a distillation: with heads as we export them, and without, as public weights come."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.training.small_runs import HEADS, events, rows, train, write_recipe
from training.engine import sources
from training.engine.exports import latest_export
from training.models.interchange import load_hugging_face

STUDENT = {
    "name": "vit",
    "model": {"arch": "vit", "dim": 32, "depth": 2, "heads": 2, "patch_size": 8, "layer_scale": 0.5, "init": "fan_in"},
}
WIDER = {kind: {**head, "hidden": 48} for kind, head in HEADS.items()}


def distillation(folder: Path, **changes: object) -> Path:
    changes = {"steps": 4, "students": [STUDENT], **changes}
    return write_recipe(folder / "distil.yaml", name="distil", stage="distil", model=None, **changes)


def losses(run: Path) -> list[float]:
    return [row["vit/loss"] for row in rows(run) if "vit/loss" in row]


def test_an_export_teaches_what_its_run_teaches(data: Path, pretrained: Path, tmp_path: Path) -> None:
    recipe = distillation(tmp_path)
    for name, teacher in (("run", pretrained), ("export", latest_export(pretrained))):
        train(1, recipe, data, tmp_path / name, "--teacher", teacher)
    assert losses(tmp_path / "run") == losses(tmp_path / "export")


def test_heads_of_a_teacher_may_be_of_another_width(data: Path, pretrained: Path, tmp_path: Path) -> None:
    train(1, distillation(tmp_path, heads=WIDER), data, tmp_path / "run", "--teacher", latest_export(pretrained))
    assert len(losses(tmp_path / "run")) == 4


@pytest.mark.parametrize("processes", [1, 2])
def test_a_backbone_without_heads_gets_them_first(data: Path, pretrained: Path, tmp_path: Path, processes: int) -> None:
    public = shutil.copytree(latest_export(pretrained), tmp_path / "public")
    (public / "heads.safetensors").unlink()
    assert not sources.has_heads(public)
    run = tmp_path / "run"
    recipe = distillation(tmp_path, teacher={"head_steps": 3})
    train(processes, recipe, data, run, "--teacher", public)
    assert events(run / "teacher") == ["started", "finished"] and events(run) == ["started", "finished"]
    assert [row["step"] for row in rows(run / "teacher") if "loss" in row] == [0, 1, 2]
    trained, given = (
        load_hugging_face(latest_export(run / "teacher")).state_dict(),
        load_hugging_face(public).state_dict(),
    )
    assert all(torch.equal(trained[name], given[name]) for name in given), "the backbone rests"
    assert len(losses(run)) == 4
    train(processes, recipe, data, run, "--teacher", public)  # all is there
    assert events(run / "teacher")[:3] == ["started", "finished", "resumed"] and len(losses(run)) == 4


def test_heads_that_are_learnt_are_worth_more_than_random_ones(data: Path, pretrained: Path, tmp_path: Path) -> None:
    public = shutil.copytree(latest_export(pretrained), tmp_path / "public")
    (public / "heads.safetensors").unlink()
    train(1, distillation(tmp_path, teacher={"head_steps": 30}), data, tmp_path / "run", "--teacher", public)
    first, *_, last = [row["dino_global"] for row in rows(tmp_path / "run" / "teacher") if "dino_global" in row]
    assert last < first
