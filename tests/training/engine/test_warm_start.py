"""Continued pretraining: what rests, what learns, and low-rank updates that merge into plain weights."""

import pytest
import torch

from foundry.errors import UserError
from tests.training.small_runs import MODEL, small_recipe
from training.engine.exports import latest_export
from training.engine.learner import backbone_factor
from training.engine.loop import Trainer
from training.models.build import build_backbone
from training.models.interchange import inflate_channels, load_hugging_face
from training.recipe import Recipe

PLAIN = {**MODEL, "drop_path": 0.0}


@pytest.fixture(scope="module")
def backbone(data, tmp_path_factory):
    """An export of a short run, as a public backbone would come; its heads are not looked at."""
    folder = tmp_path_factory.mktemp("first") / "run"
    recipe = Recipe.model_validate(small_recipe(model=PLAIN, steps=3, workers=0))
    Trainer(recipe, str(data), str(folder)).run()
    export = latest_export(folder)
    (export / "heads.safetensors").unlink()
    return export


def continued(data, backbone, folder, steps=4, model=None, **warm_start):
    recipe = small_recipe(model=model, steps=steps, workers=0, seed=5, warm_start=warm_start)
    trainer = Trainer(Recipe.model_validate(recipe), str(data), str(folder), start=str(backbone))
    trainer.run()
    return trainer.learners[0]


def changed(learner, backbone):
    """Names of the backbone's parameters that moved."""
    before = load_hugging_face(backbone).state_dict()
    after = learner.network.backbone.state_dict()
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


def test_the_backbone_rests_while_new_heads_learn(data, backbone, tmp_path):
    learner = continued(data, backbone, tmp_path / "run", freeze_steps=4, ramp_steps=2)
    assert changed(learner, backbone) == set()
    untrained = load_hugging_face(tmp_path / "run/export/step-000000000")
    features = [each.eval()(torch.ones(1, 3, 32, 32))["cls"] for each in (untrained, load_hugging_face(backbone))]
    assert torch.equal(*features)


def test_then_all_of_it_moves_or_the_last_blocks_or_the_patch_embedding(data, backbone, tmp_path):
    everything = changed(continued(data, backbone, tmp_path / "a", freeze_steps=1, ramp_steps=1), backbone)
    assert {"patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.1.norm2.bias", "norm.weight"} <= everything
    last = changed(continued(data, backbone, tmp_path / "b", freeze_steps=0, ramp_steps=0, last_blocks=1), backbone)
    assert last and all(name.startswith(("blocks.1.", "norm.")) for name in last)
    learner = continued(data, backbone, tmp_path / "c", freeze_steps=4, ramp_steps=0, train_patch_embedding=True)
    assert changed(learner, backbone) == {"patch_embed.proj.weight", "patch_embed.proj.bias"}


def test_the_ramp_of_the_second_stage():
    recipe = Recipe.model_validate(small_recipe(steps=40, warm_start={"freeze_steps": 10, "ramp_steps": 20}))
    factors = [backbone_factor(recipe, step) for step in (0, 9, 10, 20, 29, 30, 39)]
    assert factors == pytest.approx([0, 0, 0, 0.5, 0.95, 1, 1])


def test_low_rank_updates_merge_into_the_export(data, backbone, tmp_path):
    learner = continued(data, backbone, tmp_path / "run", freeze_steps=0, ramp_steps=0, lora_rank=2)
    learning = {name for name, p in learner.network.backbone.named_parameters() if p.requires_grad}
    assert learning and all(".parametrizations.weight.0." in name for name in learning)
    exported = load_hugging_face(latest_export(tmp_path / "run"))
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = learner.average.backbone(pixels)["cls"], exported(pixels)["cls"]
        before = load_hugging_face(backbone)(pixels)["cls"]
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours, before, rtol=1e-5, atol=1e-6)
    again = continued(data, backbone, tmp_path / "run", freeze_steps=0, ramp_steps=0, lora_rank=2)  # resumes at its end
    assert torch.equal(again.average.backbone(pixels)["cls"], ours)


def test_wrong_starts_are_one_line(data, backbone, tmp_path):
    with pytest.raises(UserError, match="not the architecture"):
        continued(data, backbone, tmp_path / "a", model={**PLAIN, "depth": 3})
    plain = Recipe.model_validate(small_recipe(workers=0))
    with pytest.raises(UserError, match="has no warm_start"):
        Trainer(plain, str(data), str(tmp_path / "b"), start=str(backbone))
    started = Recipe.model_validate(small_recipe(workers=0, warm_start={}))
    with pytest.raises(UserError, match="needs the backbone"):
        Trainer(started, str(data), str(tmp_path / "c"))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_inflated_channels_answer_a_grey_image_as_before(channels):
    rgb = build_backbone(PLAIN, seed=1).eval()
    other = build_backbone({**PLAIN, "in_channels": channels}, seed=2).eval()
    other.load_state_dict(inflate_channels(rgb.state_dict(), channels))
    grey = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = rgb(grey.expand(-1, 3, -1, -1))["patches"]
        new = other(grey.expand(-1, channels, -1, -1))["patches"]
    if channels != 2:  # two filters of the mean are scaled as one would be
        torch.testing.assert_close(new, whole, rtol=1e-4, atol=1e-5)
    assert new.isfinite().all()
