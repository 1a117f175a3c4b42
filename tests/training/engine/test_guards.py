import json

import pytest
import torch

from foundry.errors import UserError
from foundry.settings import load_settings
from tests.training.curated import write_dataset
from tests.training.small_runs import events, small_recipe
from training.engine.guards import Watch, collapse_measures, feature_rank
from training.engine.journal import Journal
from training.engine.learner import Learner
from training.engine.loop import Trainer
from training.recipe import Guards, Recipe


def trainer(tmp_path, **changes):
    recipe = load_settings(Recipe, small_recipe(workers=0, **changes), "test")
    return Trainer(recipe, str(write_dataset(tmp_path / "dataset")), str(tmp_path / "run"))


def test_step_with_a_planted_nan_is_skipped_and_poisons_nothing(tmp_path, monkeypatch):
    original, before = Learner.losses, {}

    def poisoned(self, views, targets, draws, **options):
        total, parts, features = original(self, views, targets, draws, **options)
        if draws.step == 3:
            before["weights"] = [parameter.detach().clone() for parameter in self.network.parameters()]
            before["average"] = [parameter.detach().clone() for parameter in self.average.parameters()]
            total = total * float("nan")
        if draws.step == 4:
            for name, module in (("weights", self.network), ("average", self.average)):
                assert all(torch.equal(a, b) for a, b in zip(before[name], module.parameters(), strict=True))
        return total, parts, features

    monkeypatch.setattr(Learner, "losses", poisoned)
    run = trainer(tmp_path)
    run.run()
    assert before and events(tmp_path / "run") == ["started", "skipped-step", "finished"]
    assert all(torch.isfinite(parameter).all() for parameter in run.learners[0].average.parameters())
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["skipped_steps"] == 1


def test_too_many_bad_steps_in_a_row_end_the_run_plainly(tmp_path, monkeypatch):
    original = Learner.losses

    def poisoned(self, views, targets, draws, **options):
        total, parts, features = original(self, views, targets, draws, **options)
        return total * float("inf"), parts, features

    monkeypatch.setattr(Learner, "losses", poisoned)
    with pytest.raises(UserError, match="3 steps in a row had a non-finite loss"):
        trainer(tmp_path, guards={"nonfinite_limit": 3}).run()


def damage(path, start, length):
    data = bytearray(path.read_bytes())
    data[start : start + length] = bytes(length)
    path.write_bytes(data)


def test_corrupt_image_is_replaced_and_recorded(tmp_path):
    run = trainer(tmp_path)
    damage(tmp_path / "dataset/shards/shard-000000.tar", 512, 2000)  # inside the first image of the shard
    run.run()
    recorded = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    unreadable = [event["message"] for event in recorded if event["event"] == "unreadable-image"]
    assert unreadable and all(message.startswith("image0000: ") for message in unreadable)
    assert recorded[-1]["event"] == "finished"


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_dataset_ends_the_run_in_one_plain_line(tmp_path, workers):
    run = trainer(tmp_path)
    run.recipe = run.recipe.model_copy(update={"workers": workers})
    for shard in (tmp_path / "dataset/shards").iterdir():
        damage(shard, 512, shard.stat().st_size - 512)
    with pytest.raises(UserError, match="8 images in a row cannot be read") as caught:
        run.run()
    assert "Traceback" not in str(caught.value)


def test_collapse_measures_of_known_cases():
    prototypes, images = 16, 64
    one_each = torch.eye(prototypes).repeat(images // prototypes, 1)
    spread = torch.linalg.qr(torch.randn(images, 8))[0]
    healthy = collapse_measures(one_each)
    assert float(healthy["target_entropy"]) == pytest.approx(0, abs=1e-6)
    assert float(healthy["prototype_use"]) == pytest.approx(1, abs=1e-6)
    assert float(feature_rank(spread)) == pytest.approx(8, rel=0.02)
    uniform = torch.full((images, prototypes), 1 / prototypes)
    line = torch.randn(images, 1) * torch.ones(1, 8)
    collapsed = collapse_measures(uniform)
    assert float(collapsed["target_entropy"]) == pytest.approx(1, abs=1e-6)
    assert float(feature_rank(line)) == pytest.approx(1, abs=1e-3)
    everything_on_one = torch.zeros(images, prototypes).index_fill(1, torch.tensor([3]), 1.0)
    assert float(collapse_measures(everything_on_one)["prototype_use"]) == pytest.approx(1 / prototypes)


def test_collapse_alarm_is_recorded_once_until_it_recovers(tmp_path):
    watch = Watch(Guards(collapse_rank=2.0), Journal(tmp_path, writes=True))
    for rank in (5.0, 1.5, 1.2, 3.0, 1.0):
        watch.collapse(0, {"feature_rank": rank}, 24)
    assert events(tmp_path) == ["collapse-alarm", "collapse-alarm"]
    with pytest.raises(UserError, match="collapsed"):
        Watch(Guards(stop_on_collapse=True), Journal(tmp_path, writes=True)).collapse(1, {"feature_rank": 1.0}, 24)


def test_a_planted_collapse_is_recorded_and_can_end_the_run(tmp_path):
    """A teacher this smooth answers alike for every prototype, as one does that has collapsed to uniform."""
    smooth = {"temperature": {"peak": 100.0}, "momentum": {"peak": 0.9}}
    run = trainer(tmp_path, teacher=smooth, guards={"grace_steps": 2})
    run.run()
    recorded = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in recorded] == ["started", "collapse-alarm", "finished"]
    assert recorded[1]["step"] == 2 and "targets are uniform" in recorded[1]["message"]
    stopping = load_settings(
        Recipe,
        small_recipe(workers=0, teacher=smooth, guards={"grace_steps": 2, "stop_on_collapse": True}),
        "test",
    )
    with pytest.raises(UserError, match="stopped at step 2: the network has collapsed"):
        Trainer(stopping, str(tmp_path / "dataset"), str(tmp_path / "other")).run()


def test_targets_on_few_prototypes_are_a_collapse_too(tmp_path):
    watch = Watch(Guards(grace_steps=0, collapse_use=0.05), Journal(tmp_path, writes=True))
    healthy = {"feature_rank": 9.0, "target_entropy": 0.5}
    watch.collapse(5, {**healthy, "prototype_use": 0.002}, 65536, attainable=0.002)  # as many as a batch can reach
    assert not (tmp_path / "events.jsonl").exists()
    watch.collapse(6, {**healthy, "prototype_use": 0.00003}, 65536, attainable=0.002)
    assert events(tmp_path) == ["collapse-alarm"]
    watch.collapse(7, {**healthy, "prototype_use": 2 / 256}, 256, attainable=0.125)
    watch.collapse(8, {**healthy, "prototype_use": 1 / 256}, 256, attainable=0.125)
    assert events(tmp_path) == ["collapse-alarm", "collapse-alarm"]
