"""The numbers of a run as Prometheus reads them."""

import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from foundry.errors import UserError
from tests.training.curated import write_dataset
from tests.training.small_runs import small_recipe
from training.engine.journal import Journal
from training.engine.loop import Trainer
from training.engine.served_metrics import ServedMetrics
from training.recipe import Recipe


def scrape(run):
    address = (run / "prometheus.txt").read_text().strip()
    text = urllib.request.urlopen(address, timeout=10).read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, *sorted(sample.labels.items())): sample.value for sample in samples}


def test_latest_values_and_counted_events(tmp_path):
    served = ServedMetrics(0, "small", tmp_path)
    journal = Journal(tmp_path, writes=True, served=served)
    journal.metrics(3, {"loss": 5.0, "vit/koleo": 0.25, "vit/gradient_norm/backbone": 2.0})
    journal.metrics(4, {"loss": float("nan")})
    journal.event("skipped-step", 4, "not finite")
    found = scrape(tmp_path)
    assert found["foundry_training_step", ("part", ""), ("recipe", "small")] == 4
    assert found["foundry_training_koleo", ("part", "vit"), ("recipe", "small")] == 0.25
    assert found["foundry_training_gradient_norm", ("part", "vit/backbone"), ("recipe", "small")] == 2
    assert found["foundry_training_loss", ("part", ""), ("recipe", "small")] != 5.0
    assert found["foundry_training_events_total", ("event", "skipped-step"), ("recipe", "small")] == 1
    with pytest.raises(UserError, match="cannot be served on"):
        ServedMetrics(served.port, "other", tmp_path)
    served.close()
    assert not (tmp_path / "prometheus.txt").exists()


def test_a_run_serves_while_it_lives(tmp_path, monkeypatch):
    monkeypatch.setenv("FOUNDRY_METRICS_PORT", "0")
    seen = []
    original = Trainer._milestones

    def watched(self, step):
        original(self, step)
        if step == 5:
            seen.append(scrape(tmp_path / "run"))

    monkeypatch.setattr(Trainer, "_milestones", watched)
    recipe = Recipe.model_validate(small_recipe(workers=0))
    Trainer(recipe, str(write_dataset(tmp_path / "dataset")), str(tmp_path / "run")).run()
    (values,) = seen
    assert values["foundry_training_step", ("part", ""), ("recipe", "small")] == 5
    assert values["foundry_training_loss", ("part", ""), ("recipe", "small")] > 0
    assert not (tmp_path / "run/prometheus.txt").exists()


@pytest.mark.parametrize("text", ["x", "-1", "70000"])
def test_wrong_ports_are_one_line(text, tmp_path, monkeypatch):
    monkeypatch.setenv("FOUNDRY_METRICS_PORT", text)
    with pytest.raises(UserError, match="expected a port number"):
        ServedMetrics.from_environment("small", tmp_path)
