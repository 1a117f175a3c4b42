"""Teachers of a distillation: with heads as we export them, and without, as public weights come."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from tests.training.small_runs import HEADS, events, rows, small_recipe, train, write_recipe
from training.engine import sources
from training.engine.exports import latest_export
from training.models.architectures import architecture
from training.models.interchange import load_hugging_face
from training.recipe import Recipe, load_recipe

STUDENT = {
    "name": "vit",
    "model": {"arch": "vit", "dim": 32, "depth": 2, "heads": 2, "patch_size": 8, "layer_scale": 0.5, "init": "fan_in"},
}
WIDER = {kind: {**head, "hidden": 48} for kind, head in HEADS.items()}


def test_a_gram_stage_changes_what_concerns_training_alone(data: Path, pretrained: Path, tmp_path: Path) -> None:
    sizes = [{"global_size": side, "local_size": 16, "gram_size": side, "probability": 0.5} for side in (32, 40)]
    crops = {"global_size": 32, "local_size": 16, "local_count": 2, "gram_size": 32, "mixture": sizes}
    stage = {"stage": "gram", "steps": 4, "losses": {"koleo_group": 4, "gram": 1.0}, "crops": crops}
    recipe = write_recipe(tmp_path / "high.yaml", **stage, model={"rope_rescale": 2.0})
    train(1, recipe, data, tmp_path / "run", "--teacher", pretrained)
    before, after = (load_recipe(run / "recipe.yaml").model for run in (pretrained, tmp_path / "run"))
    assert before is not None and after is not None and after["rope_rescale"] == 2.0
    assert {**after, "rope_rescale": None} == architecture(before).model_dump(mode="json")
    with pytest.raises(ValidationError, match="model.dim: stage gram continues the teacher's network"):
        Recipe.model_validate(small_recipe(**stage, model={"dim": 48, "rope_rescale": 2.0}))


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
