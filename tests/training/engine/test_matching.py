"""Distillation from a teacher without heads, whose features themselves are learnt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from foundry.errors import UserError
from tests.training.small_runs import HEADS, events, rows, small_recipe, train, write_recipe
from training.costs import measure_costs
from training.engine.exports import latest_export
from training.engine.loop import Trainer, teacher_with_heads
from training.engine.sources import trained_architecture
from training.models.interchange import load_hugging_face
from training.models.layouts import to_official
from training.objectives.matching import matching_loss, whitened
from training.recipe import Recipe, load_recipe, matched_to

VIT = {"arch": "vit", "dim": 48, "depth": 2, "heads": 2, "patch_size": 8, "layer_scale": 0.5, "init": "fan_in"}
CONVNEXT = {"arch": "convnext", "depths": [1, 1, 1], "dims": [8, 8, 16]}
LOSSES = ("loss", "match_images", "match_patches")
SETTINGS = {
    "name": "features",
    "stage": "distil",
    "model": None,
    "steps": 6,
    "heads": {"matching": "features"},
    "crops": {"global_size": 32, "local_size": 16, "local_count": 0},
    "masks": {"share": 1.0, "ratio": [1.0, 1.0]},
}


@pytest.fixture(scope="module")
def public(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone as public weights come."""
    folder = Path(shutil.copytree(latest_export(pretrained), tmp_path_factory.mktemp("public") / "network"))
    (folder / "heads.safetensors").unlink()
    return folder


def family(folder: Path, processes: tuple[int, int] = (0, 0), **changes: object) -> Path:
    students = [
        {"name": name, "model": model, "processes": count}
        for (name, model), count in zip((("vit", VIT), ("convnext", CONVNEXT)), processes, strict=True)
    ]
    return write_recipe(folder / "features.yaml", **{**SETTINGS, "students": students, **changes})


def losses(run: Path) -> np.ndarray:
    names = [f"{student}/{loss}" for student in ("vit", "convnext") for loss in LOSSES]
    return np.array([[row[name] for name in names] for row in rows(run) if "loss" in row])


def test_the_value_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    mapped, teacher = (3 * torch.randn(5, 7, dtype=torch.float64, generator=generator) for _ in range(2))
    weights = torch.rand(5, dtype=torch.float64, generator=generator)
    centred = teacher - teacher.mean(dim=1, keepdim=True)
    target = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(whitened(teacher).double(), target, rtol=1e-5, atol=1e-6)
    error = (mapped - target).abs()
    assert (error < 2).any() and (error > 2).any()
    expected = (torch.where(error < 2, error**2 / 4, error - 1).mean(dim=1) * weights).sum() / 4
    wanted = torch.where(error < 2, error / 2, torch.ones(())) * (mapped - target).sign() * weights[:, None] / 28
    given = mapped.float().requires_grad_()
    found = matching_loss(given, target.float(), weights.float(), images=4)
    found.backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    assert given.grad is not None
    torch.testing.assert_close(given.grad.double(), wanted, rtol=1e-5, atol=1e-8)
    assert float(matching_loss(target.float(), target.float(), images=5)) == 0


def test_students_learn_them_without_any_heads(data: Path, public: Path, tmp_path: Path) -> None:
    optimiser = {"learning_rate": {"peak": 3e-3, "start": 0.0, "warmup_steps": 5}, "reference_batch": 8}
    cadence = {"log": 1, "checkpoint": 60, "evaluate": 0}
    recipe = family(tmp_path, steps=60, optimiser=optimiser, cadence=cadence)
    train(1, recipe, data, tmp_path / "run", "--teacher", public)
    run = tmp_path / "run"
    assert not (run / "teacher").exists(), "no heads are made"
    assert load_recipe(run / "recipe.yaml").heads.width == 32, "that of the teacher"
    found = losses(run)
    assert (found[-10:].mean(axis=0) < 0.9 * found[:5].mean(axis=0)).all(), found[[0, -1]]
    for student in ("vit", "convnext"):
        assert {path.name for path in latest_export(run, student).iterdir()} == {
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
        }
    assert "collapse-alarm" not in events(run) and "target_entropy" not in "".join(rows(run)[0])


def test_however_they_are_divided(data: Path, public: Path, tmp_path: Path) -> None:
    found = {}
    for name, processes, changes in (
        ("in turn", (0, 0), {}),
        ("divided", (2, 1), {}),
        ("in parts", (0, 0), {"accumulate": 2}),
    ):
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        recipe = family(folder, processes, **changes)
        train(max(1, sum(processes)), recipe, data, folder / "run", "--teacher", public)
        found[name] = losses(folder / "run")
    for name in ("divided", "in parts"):
        np.testing.assert_allclose(found[name], found["in turn"], rtol=1e-5, atol=1e-7)


def test_it_goes_on_with_the_same_bits(data: Path, pretrained: Path, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(1, family(tmp_path), data, whole, "--teacher", pretrained)
    (tmp_path / "shorter").mkdir()
    train(1, family(tmp_path / "shorter", steps=4), data, run, "--teacher", pretrained)
    train(1, family(tmp_path), data, run, "--teacher", pretrained)
    for student in ("vit", "convnext"):
        weights = [(latest_export(each, student) / "model.safetensors").read_bytes() for each in (whole, run)]
        assert weights[0] == weights[1]


def test_an_official_file_teaches(data: Path, public: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    network = load_hugging_face(public)
    torch.save(to_official(network.state_dict(), network.config), file)
    train(1, family(tmp_path, steps=2), data, tmp_path / "file", "--teacher", file)
    train(1, family(tmp_path, steps=2), data, tmp_path / "folder", "--teacher", public)
    np.testing.assert_allclose(losses(tmp_path / "file"), losses(tmp_path / "folder"), rtol=1e-5)


def test_a_teacher_of_other_pixels_is_refused(data: Path, public: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(public, tmp_path / "other"))
    document = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps({**document, "image_mean": [0.5, 0.5, 0.5]}))
    for heads in ({"matching": "features"}, HEADS):
        recipe = load_recipe(family(tmp_path, heads=heads))
        with pytest.raises(UserError, match=r"mean \[0.5, 0.5, 0.5\].*set crops.mean and crops.std"):
            teacher = teacher_with_heads(recipe, str(data), str(tmp_path / "run"), str(other))
            Trainer(recipe, str(data), str(tmp_path / "run"), teacher=teacher)


def test_its_costs_are_measured(pretrained: Path, tmp_path: Path) -> None:
    costs = measure_costs(load_recipe(family(tmp_path)), trained_architecture(pretrained), torch.device("cpu"))
    assert set(costs.students) == {"vit", "convnext"} and min(costs.teacher, *costs.students.values()) > 0


def test_what_does_not_go_together() -> None:
    students = [{"name": "vit", "model": VIT}]
    for changes, told in (
        ({"crops": {"local_count": 2}}, "set crops.local_count to 0"),
        ({"teacher": {"centring": "softmax"}}, "no prototypes to share or to centre"),
        ({"stage": "pretrain", "model": VIT, "students": []}, "belongs to stage distil"),
    ):
        with pytest.raises(ValidationError, match=told):
            Recipe.model_validate(small_recipe(**{**SETTINGS, "students": students, **changes}))
    recipe = Recipe.model_validate(small_recipe(**{**SETTINGS, "students": students}))
    assert matched_to(recipe, 20).heads.width == 20
    with pytest.raises(UserError, match=r"heads.width is 20, and the teacher's features are 32 wide"):
        matched_to(matched_to(recipe, 20), 32)
