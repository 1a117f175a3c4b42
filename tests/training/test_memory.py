"""Memory of published set-ups, and of a small run measured tensor by tensor."""

from __future__ import annotations

import pytest

from tests.training.curated import write_dataset
from tests.training.small_runs import write_recipe
from training.engine.loop import Trainer
from training.memory import memory
from training.recipe import load_recipe


@pytest.mark.parametrize(
    ("recipe", "processes", "gigabytes"),
    [
        ("dino_vits16", 1, 1.3),  # without its second head, which learns nothing
        ("dinov3_vitl16", 1, 7.0),
        ("dinov3_vit7b16_pretrain", 1, 140.6),
        ("dinov3_vit7b16_pretrain", 256, 0.55),
    ],
)
def test_state_of_published_runs(recipe: str, processes: int, gigabytes: float) -> None:
    settings = load_recipe(recipe, {"parallel": "fsdp"})
    predicted = memory(settings, processes)
    if recipe == "dino_vits16":
        assert predicted.state / 1e9 < gigabytes
    else:
        assert predicted.state / 1e9 == pytest.approx(gigabytes, rel=0.02)


def test_a_gram_teacher_is_one_more_network() -> None:
    refined = memory(load_recipe("dinov3_vit7b16_gram", {"model": {"arch": "dinov3_vitl16"}}))
    assert refined.teachers == refined.average > 0


def test_state_of_a_small_run(tmp_path) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "recipe.yaml", steps=1, workers=0))
    trainer = Trainer(recipe, data=str(write_dataset(tmp_path / "dataset")), output=str(tmp_path / "run"))
    trainer.run()
    (learner,) = trainer.learners
    predicted = memory(recipe)
    assert predicted.student == sum(4 * p.numel() for p in learner.network.parameters())
    assert predicted.average == sum(4 * p.numel() for p in learner.average.parameters())
    states = learner.optimiser.state.values()
    assert predicted.optimiser == sum(4 * s[name].numel() for s in states for name in ("exp_avg", "exp_avg_sq"))


def test_scores_shrink_with_processes_parts_and_precision() -> None:
    sizes = [
        memory(load_recipe("dinov2_vitl16_short", changes), processes).scores
        for changes, processes in (({"precision": "fp32"}, 8), ({}, 8), ({}, 32), ({"accumulate": 4}, 32))
    ]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 3 * sizes[2]
