from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.common import launcher
from components.curation.bootstrap import fitted_recipe
from components.curation.config import BootstrapConfig, CurationConfig
from components.curation.dataset import CuratedDataset
from components.curation.step import STEP, run
from foundry.errors import UserError
from foundry.home import REPOSITORY
from foundry.images import Preprocessing
from tests.components.curation.pictures import write_pool
from tests.training.small_runs import small_recipe

SMALL = {key: value for key, value in small_recipe().items() if key not in ("name", "stage")}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder, 20)
    return folder


def curate(output: Path, inputs: dict[str, str], **values: Any) -> CuratedDataset:
    output.mkdir()
    settings = {"decode": {"workers": 1}, "balance": {"fraction": 0.5}, **values}
    run(CurationConfig.model_validate(settings), inputs, output)
    return CuratedDataset.open(output)


@pytest.mark.usefixtures("fresh_home")
def test_a_backbone_decides_the_clusters_whoever_computes_its_embeddings(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.models.build import build_backbone
    from training.models.interchange import save_export

    network = tmp_path / "network"
    model = build_backbone({"arch": "vit", "dim": 24, "depth": 1, "heads": 2, "patch_size": 8}, seed=1)
    save_export(model.eval(), network, Preprocessing(resize=32, crop=32))
    seeds = {"seeds.few": str(pool / "0")}
    inputs = {"pool": str(pool), "backbone": str(network), **seeds}
    two = curate(tmp_path / "two", inputs, embedding={"processes": 2})
    made = two.description["curation"]["embedding"]
    assert made["kind"] == "backbone" and made["dtype"] == "float16" and len(made["network"]) == 64
    plain = curate(tmp_path / "plain", {"pool": str(pool), **seeds})
    assert plain.description["digests"]["content"] != two.description["digests"]["content"]

    command = [sys.executable, "-m", "components.curation.embed", "--pool", str(pool), "--backbone", str(network)]
    monkeypatch.setenv("FOUNDRY_HOME", str(tmp_path / "other home"))
    subprocess.run([*command, "--output", str(tmp_path / "given")], cwd=REPOSITORY, check=True, capture_output=True)
    given = {"pool": str(pool), "embeddings": str(tmp_path / "given"), **seeds}
    again = curate(tmp_path / "again", given)
    assert again.description["curation"]["embedding"]["kind"] == "given"
    assert again.description["digests"]["content"] == two.description["digests"]["content"]
    with pytest.raises(UserError, match="leave one of them out"):
        curate(tmp_path / "both", {**given, "backbone": str(network)})


def test_crops_and_patches_of_the_bootstrap_grow_with_the_images() -> None:
    config = BootstrapConfig()
    for side, crop in {20: 32, 60: 32, 64: 32, 128: 64, 255: 64, 256: 128, 4000: 128}.items():
        recipe = fitted_recipe(config, np.array([side, side, 9000]), seed=5)
        assert recipe.model is not None
        sizes = (recipe.crops.global_size, recipe.crops.local_size, recipe.model["patch_size"])
        assert sizes == (crop, crop // 2, crop // 8), side
        assert recipe.seed == 5 and recipe.cadence.evaluate == 0
    own = BootstrapConfig(overrides={"crops": {"global_size": 48, "local_size": 16}, "steps": 7})
    recipe = fitted_recipe(own, np.array([500]), seed=0)
    assert (recipe.crops.global_size, recipe.steps) == (48, 7)


@pytest.mark.usefixtures("fresh_home")
def test_a_backbone_trained_on_the_pool_itself(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = {**SMALL, "steps": 4, "workers": 0, "model": {**SMALL["model"], "patch_size": 8}}
    bootstrap = {"enabled": True, "overrides": overrides}
    settings: dict[str, Any] = {"embedding": {"bootstrap": bootstrap, "processes": 1}}
    first = curate(tmp_path / "first", {"pool": str(pool)}, **settings)
    kept = {path.relative_to(tmp_path / "first").as_posix() for path in (tmp_path / "first" / "bootstrap").rglob("*.*")}
    exported = {f"bootstrap/export/step-000000004/{name}" for name in ("config.json", "model.safetensors")}
    assert exported <= kept and not any("checkpoint" in name or "step-000000000" in name for name in kept)
    assert {f"bootstrap/{name}" for name in ("recipe.yaml", "metrics.jsonl", "events.jsonl")} <= kept
    assert {name for name in STEP.records if name.startswith("bootstrap/")} <= kept
    made = json.loads((tmp_path / "first" / "dataset.json").read_text())["curation"]["embedding"]
    assert made["kind"] == "bootstrap"

    by_it = curate(
        tmp_path / "by it", {"pool": str(pool), "backbone": str(tmp_path / "first/bootstrap/export/step-000000004")}
    )
    assert by_it.description["curation"]["embedding"]["network"] == made["network"]
    assert by_it.description["digests"]["content"] == first.description["digests"]["content"]

    def not_again(*_: object, **__: object) -> None:
        raise AssertionError("it was trained already")

    monkeypatch.setattr(launcher, "launch_training", not_again)
    config = CurationConfig.model_validate({"decode": {"workers": 1}, "balance": {"fraction": 0.5}, **settings})
    run(config, {"pool": str(pool)}, tmp_path / "first")
    again = CuratedDataset.open(tmp_path / "first")
    assert again.description == first.description
