"""The three training steps, run for real on a few small images: two processes, a chain of results."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from components.common.execution import Outcome, execute
from components.common.fingerprint import fingerprint_of
from components.common.manifest import read_manifest
from components.common.step import Step
from components.common.store import Store
from components.common.training_step import (
    TRANSIENT,
    TrainingConfig,
    network_size,
    training_disk_bytes,
    training_environment,
)
from components.distillation.division import RECORD, describe, divided, measure_division
from components.distillation.step import STEP as DISTILLATION
from components.pretraining.step import STEP as PRETRAINING
from components.refinement.step import STEP as REFINEMENT
from foundry.errors import UserError
from foundry.settings import Settings
from training.recipe import load_recipe, recipe_names

TINY_VIT = {"arch": "vit", "dim": 32, "depth": 1, "heads": 2, "patch_size": 16, "registers": 1}
TINY_CONVNEXT = {"arch": "convnext", "depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}
TINY_HEADS = {name: {"prototypes": 32, "hidden": 16, "bottleneck": 8} for name in ("dino", "ibot")}
TINY = {
    "steps": 4,
    "batch": 16,
    "workers": 0,
    "crops": {"global_size": 32, "local_size": 16, "local_count": 2},
    "heads": TINY_HEADS,
    "cadence": {"log": 2, "checkpoint": 2, "evaluate": 0},
}


def write_dataset(config: Settings, inputs: object, output: Path) -> dict[str, int]:
    """A curated dataset of 24 small images, by the contract's words."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet
    from PIL import Image

    rows = []
    draw = np.random.default_rng(0)
    (output / "shards").mkdir()
    with tarfile.open(output / "shards" / "shard-000000.tar", "w") as shard:
        for number in range(24):
            buffer = io.BytesIO()
            Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
            info = tarfile.TarInfo(f"{number:06d}.jpg")
            info.size = buffer.tell()
            offset = shard.offset + 512
            shard.addfile(info, io.BytesIO(buffer.getvalue()))
            rows.append({"key": f"{number:06d}", "shard": "shard-000000.tar", "offset": offset, "length": info.size})
    parquet.write_table(
        arrow.Table.from_pylist([{**row, "weight": 1.0, "width": 64, "height": 64} for row in rows]),
        output / "samples.parquet",
    )
    (output / "dataset.json").write_text(json.dumps({"schema": 1, "digests": {"content": "0" * 64}}))
    return {"images": 24}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("training") / "store")


@pytest.fixture(scope="module")
def dataset(store: Store) -> Outcome:
    step = Step(
        name="curation",
        summary="",
        config=Settings,
        inputs=(),
        run=write_dataset,
        code=("foundry.errors",),
        tracked=False,
    )
    return execute(step, Settings(), {}, store=store)


def train(step: Step, store: Store, inputs: dict[str, str], **overrides: object) -> Outcome:
    config = step.config(processes=2, overrides={**TINY, **overrides})
    return execute(step, config, inputs, store=store)


@pytest.fixture(scope="module")
def pretrained(store: Store, dataset: Outcome) -> Outcome:
    return train(PRETRAINING, store, {"dataset": str(dataset.path)}, model=TINY_VIT)


def test_pretraining_gives_a_run_folder(pretrained: Outcome, dataset: Outcome, store: Store) -> None:
    run = pretrained.path
    assert pretrained.metrics["steps"] == 4 and pretrained.metrics["loss"] > 0
    assert (run / "export" / "latest").read_text().strip() == "step-000000004"
    assert {path.name for path in (run / "export").iterdir()} == {"step-000000000", "step-000000004", "latest"}
    assert [path.name for path in (run / "checkpoints").iterdir() if path.is_dir()] == ["step-000000004"]
    assert {"recipe.yaml", "metrics.jsonl", "events.jsonl"} <= {path.name for path in run.iterdir()}
    assert list((run / "logs").glob("*/ranks/*/attempt_0/1/stderr.log"))
    manifest = read_manifest(run)
    assert manifest.environment["world_size"] == 2 and manifest.environment["recipe"]["steps"] == 4
    again = train(PRETRAINING, store, {"dataset": str(dataset.path)}, model=TINY_VIT, workers=1)
    assert again.reused  # loader workers do not change what is learned


@pytest.mark.slow
def test_refinement_and_distillation_start_from_a_result(pretrained: Outcome, dataset: Outcome, store: Store) -> None:
    inputs = {"dataset": str(dataset.path), "teacher": str(pretrained.path)}
    refined = train(REFINEMENT, store, inputs, crops={**TINY["crops"], "gram_size": 64})
    assert refined.metrics["gram"] >= 0
    students = [{"name": "vit", "model": TINY_VIT}, {"name": "convnext", "model": TINY_CONVNEXT}]
    distilled = train(DISTILLATION, store, {**inputs, "teacher": str(refined.path)}, students=students)
    for name in ("vit", "convnext"):
        assert (distilled.path / "students" / name / "export" / "step-000000004" / "model.safetensors").is_file()
    assert read_manifest(distilled.path).inputs["teacher"].fingerprint == refined.fingerprint


def test_processes_are_divided_by_what_students_cost(pretrained: Outcome, dataset: Outcome, store: Store) -> None:
    students = [{"name": "vit", "model": TINY_VIT}, {"name": "convnext", "model": TINY_CONVNEXT}]
    config = DISTILLATION.config(processes=2, overrides={**TINY, "students": students}, divide=True)
    inputs = {"dataset": str(dataset.path), "teacher": str(pretrained.path)}
    found = execute(DISTILLATION, config, inputs, store=store)
    recipe = load_recipe(found.path / "recipe.yaml")
    assert {student.name: student.processes for student in recipe.students} == {"vit": 1, "convnext": 1}
    assert found.metrics["vit/loss"] > 0 and found.metrics["convnext/loss"] > 0
    measured = json.loads((found.path / RECORD).read_text())
    assert measured["processes"] == {"vit": 1, "convnext": 1} and measured["world_size"] == 2
    with pytest.raises(UserError, match="2 students cannot be divided among 1 processes; raise distillation.processes"):
        DISTILLATION.config(processes=1, overrides={**TINY, "students": students}, divide=True)


def test_a_run_that_goes_on_keeps_its_division(pretrained: Outcome, tmp_path: Path) -> None:
    students = [{"name": "vit", "model": TINY_VIT}, {"name": "convnext", "model": TINY_CONVNEXT}]
    recipe = DISTILLATION.config(overrides={**TINY, "students": students}).resolved_recipe()
    first = divided(recipe, pretrained.path, 3, tmp_path)
    assert sum(student.processes for student in first.students) == 3
    document = json.loads((tmp_path / RECORD).read_text())
    (tmp_path / RECORD).write_text(json.dumps({**document, "processes": {"vit": 4, "convnext": 5}}))
    again = divided(recipe, pretrained.path, 3, tmp_path)
    assert [student.processes for student in again.students] == [4, 5]
    lines = list(describe(document))
    assert len(lines) == 3 and "of 3 processes" in lines[0] and "with all students in turn" in lines[2]
    with pytest.raises(UserError, match="could not be measured: .*recipe.yaml is missing"):
        measure_division(recipe, tmp_path, 3)


@pytest.mark.parametrize("name", recipe_names())
def test_the_disk_estimate_of_every_recipe(name: str, pretrained: Outcome) -> None:
    config = TrainingConfig.model_construct(recipe=name, processes=1, overrides={})
    needed = training_disk_bytes(config, {"teacher": str(pretrained.path)})
    assert (64 << 20) < needed < 10 << 40
    if name == "features":  # no heads of 65,536 prototypes are counted
        assert needed < 3 << 30


@pytest.mark.slow
def test_an_error_of_training_is_the_steps_error(pretrained: Outcome, store: Store, tmp_path: Path) -> None:
    """A result that is no dataset: the training processes say so, in one line."""
    with pytest.raises(UserError, match="dataset.json is missing"):
        train(PRETRAINING, store, {"dataset": str(pretrained.path)}, model=TINY_VIT)


def name_of(config: TrainingConfig) -> str:
    return fingerprint_of(PRETRAINING, config, {}, "code", training_environment(config))


def test_what_names_a_training_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.recipe import dump_recipe, load_recipe

    base = PRETRAINING.config()
    same_words = tmp_path / "copy.yaml"
    same_words.write_text(dump_recipe(load_recipe("embedded")))
    assert name_of(PRETRAINING.config(recipe=str(same_words))) == name_of(base)
    steps = load_recipe("embedded").steps
    for same in ({"steps": steps}, {"steps": float(steps)}, {"workers": 1}, {"about": "x"}):
        assert name_of(PRETRAINING.config(overrides=same)) == name_of(base), same
    for other in ({"steps": steps + 1}, {"seed": 1}, {"precision": "bf16"}, {"optimiser": {"clip": 1.0}}):
        assert name_of(PRETRAINING.config(overrides=other)) != name_of(base), other
    assert name_of(PRETRAINING.config(processes=1)) != name_of(base)
    monkeypatch.setattr("components.common.training_step.accelerator_name", lambda: "NVIDIA X")
    assert name_of(base) != name_of(PRETRAINING.config(overrides={"device": "cpu"}))


@pytest.mark.parametrize("step", [PRETRAINING, REFINEMENT, DISTILLATION], ids=lambda step: step.name)
def test_defaults_name_recipes_that_exist_and_settings_in_the_fingerprint_are_resolved(step: Step) -> None:
    config = step.config()
    recipe = config.resolved_recipe()
    stages = {"pretraining": "pretrain", "refinement": "gram", "distillation": "distil"}
    assert recipe.stage == config.stage == stages[step.name]
    assert set(TRANSIENT) == {"recipe", "overrides"} and step.transient == TRANSIENT
    assert "recipe" in step.environment(config)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"overrides": {"optimizer": {}}}, "unknown setting 'optimizer'; did you mean 'optimiser'"),
        ({"overrides": {"optimiser": {"clipp": 1}}}, "did you mean 'optimiser.clip'"),
        ({"recipe": "embeded"}, "did you mean 'embedded'"),
        ({"recipe": "embedded_gram"}, "recipe embedded_gram: is for stage gram"),
        ({"processes": 500}, "too small for 500"),
    ],
)
def test_a_wrong_recipe_is_refused_when_the_settings_are_loaded(values: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        PRETRAINING.config(**values)


@pytest.mark.parametrize(
    "spec",
    [
        "dinov3_vits16",
        {"arch": "vit", "dim": 128, "depth": 6, "heads": 2, "ffn": "swiglu"},
        {"arch": "convnext", "depths": [3, 3, 9, 3], "dims": [96, 192, 384, 768]},
    ],
    ids=str,
)
def test_the_size_of_a_network_is_about_right(spec) -> None:
    from training.models.architectures import architecture
    from training.models.build import build_backbone, build_head
    from training.recipe import Head

    spec = {"arch": spec} if isinstance(spec, str) else spec
    head = Head(prototypes=4096, hidden=512, bottleneck=128)
    backbone = build_backbone(spec, device="meta")
    real = build_head(architecture(spec).dim, head.hidden, head.bottleneck, head.prototypes, device="meta")
    true = sum(p.numel() for module in (backbone, real) for p in module.parameters())
    assert network_size(spec, [head]) == pytest.approx(true, rel=0.1)


def test_the_disk_estimate_covers_a_run_and_grows_with_the_network(pretrained: Outcome, tmp_path: Path) -> None:
    config = PRETRAINING.config(overrides={**TINY, "model": TINY_VIT})
    estimate = training_disk_bytes(config, {})
    assert read_manifest(pretrained.path).size() < estimate < 200 << 20
    recipe = tmp_path / "large.yaml"
    recipe.write_text("{name: large, stage: pretrain, steps: 10, batch: 64, model: {arch: dinov3_vit7b16}}")
    large = PRETRAINING.config(recipe=str(recipe))
    assert training_disk_bytes(large, {}) > 6.7e9 * 16
    assert training_disk_bytes(REFINEMENT.config(), {"teacher": str(pretrained.path)}) < 200 << 20
