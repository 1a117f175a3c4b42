"""A network that is there as a teacher."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from components.adoption.config import AdoptionConfig
from components.adoption.step import STEP
from components.common.execution import Outcome, execute
from components.common.manifest import read_manifest
from components.common.store import Store
from foundry.errors import UserError
from foundry.images import Preprocessing
from training.engine.sources import has_heads, load_teacher, trained_architecture
from training.models.build import build_backbone, build_head
from training.models.interchange import load_export, save_export

VIT = {"arch": "vit", "dim": 32, "depth": 2, "heads": 2, "patch_size": 8, "init": "fan_in"}


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A network with heads in the Hugging Face layout, and its terms."""
    folder = tmp_path / "network"
    heads = {name: build_head(32, 16, 8, 12, seed=seed) for seed, name in enumerate(("dino", "ibot"))}
    save_export(build_backbone(VIT, seed=5), folder, Preprocessing(resize=32, crop=32), heads)
    (folder / "LICENSE.md").write_text("ask first")
    return folder


def adopt(network: Path | str, tmp_path: Path, **settings: object) -> Outcome:
    config = AdoptionConfig.model_validate(settings)
    return execute(STEP, config, {"network": str(network)}, store=Store(tmp_path / "store"))


def test_it_lies_like_the_exports_of_a_run(network: Path, tmp_path: Path) -> None:
    path = adopt(network, tmp_path).path
    given, preprocessing = load_export(network)
    teacher = load_teacher(path)
    assert has_heads(path) and trained_architecture(path) == given.config
    for name, weight in given.state_dict().items():
        assert torch.equal(weight, teacher.backbone.state_dict()[name])
    assert (path / "export" / "adopted" / "LICENSE.md").read_text() == "ask first"
    untrained, same = load_export(path / "export" / "step-000000000")
    assert untrained.config == given.config and same == preprocessing
    assert not torch.equal(untrained.blocks[0].attn.qkv.weight, given.blocks[0].attn.qkv.weight)


def test_weights_are_taken_as_they_are(network: Path, tmp_path: Path) -> None:
    learned = tmp_path / "learned"
    spec = {**VIT, "position": "learned", "position_grid": 6, "registers": 0, "key_bias": True, "position_offset": 0.1}
    save_export(build_backbone(spec, seed=5), learned, Preprocessing(resize=48, crop=48))
    document = json.loads((learned / "preprocessor_config.json").read_text())
    document["crop_size"] = {"height": 32, "width": 32}  # public weights are often shown smaller images than they know
    (learned / "preprocessor_config.json").write_text(json.dumps(document))
    for source in (network, learned):
        adopted = adopt(source, tmp_path).path / "export" / "adopted"
        for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
            assert (adopted / name).read_bytes() == (source / name).read_bytes()
    kept, _ = load_export(adopted)
    assert kept.config.position_grid == 6


def test_other_terms_are_another_network(network: Path, tmp_path: Path) -> None:
    first = adopt(network, tmp_path)
    (network / "LICENSE.md").write_text("free for all")
    second = adopt(network, tmp_path)
    assert not second.reused and first.fingerprint != second.fingerprint
    assert (second.path / "export" / "adopted" / "LICENSE.md").read_text() == "free for all"


def test_heads_are_told_apart_and_may_be_left(network: Path, tmp_path: Path) -> None:
    whole = adopt(network, tmp_path)
    assert whole.metrics["heads"] and adopt(network, tmp_path).reused
    anew = adopt(network, tmp_path, heads="anew")
    assert not anew.metrics["heads"] and not has_heads(anew.path)
    (network / "heads.safetensors").unlink()
    without = adopt(network, tmp_path)
    assert not without.reused and not without.metrics["heads"]


def test_a_broken_off_adoption_ends_the_same(network: Path, tmp_path: Path) -> None:
    from components.adoption.adopt import adopt as write

    config = AdoptionConfig()
    write(config, network, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    (tmp_path / "broken" / "export" / "latest").unlink()
    (tmp_path / "broken" / "export" / "adopted" / "model.safetensors").write_bytes(b"half")
    write(config, network, tmp_path / "broken")
    files = [path.relative_to(tmp_path / "whole") for path in sorted((tmp_path / "whole").rglob("*")) if path.is_file()]
    assert len(files) == 9
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "broken" / file).read_bytes()


def test_what_is_no_network_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="adoption: input network=.*neither a training run with an export nor"):
        adopt(tmp_path / "nothing", tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        adopt(tmp_path / "nowhere", tmp_path)


def test_the_component_has_the_steps_inputs(network: Path, tmp_path: Path) -> None:
    from components.adoption.component import adopt as component

    spec = component.component_spec
    assert set(spec.inputs) == {"config", *(given.name for given in STEP.inputs)}
    assert set(spec.outputs) == {"teacher", "metrics"}
    assert spec.description.strip() == STEP.summary
    manifest = read_manifest(adopt(network, tmp_path).path)
    assert manifest is not None and manifest.inputs["network"].url == str(network)
