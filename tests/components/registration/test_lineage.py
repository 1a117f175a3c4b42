import json
import shutil
from pathlib import Path

import pytest
import yaml

from components.common import tracking
from components.registration.lineage import dvc_md5, lineage_tags, read_manifests, record_dataset_revision
from foundry.errors import UserError


def test_the_image_that_ran_is_recorded(registered, monkeypatch):
    inputs = registered[0]
    manifests = read_manifests(inputs)
    assert lineage_tags(manifests, inputs)["image"] is None
    monkeypatch.setenv("FOUNDRY_IMAGE", "registry/python-steps@sha256:abc")
    assert lineage_tags(manifests, inputs)["image"] == "registry/python-steps@sha256:abc"


def test_the_dvc_hash_is_given_only_for_this_very_result(dataset, tmp_path):
    fingerprint = "curation-fingerprint"
    assert dvc_md5("curation", fingerprint, tmp_path) is None
    outs = [{"path": "artifacts/curation", "md5": "abc.dir"}]
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": {"curation": {"cmd": "x", "outs": outs}}}))
    assert dvc_md5("curation", fingerprint, tmp_path) is None, "no such folder"
    (tmp_path / "artifacts").mkdir()
    shutil.copytree(dataset, tmp_path / "artifacts" / "curation")
    assert dvc_md5("curation", fingerprint, tmp_path) == "abc.dir"
    assert dvc_md5("curation", "another", tmp_path) is None
    assert dvc_md5("pretraining", fingerprint, tmp_path) is None
    (tmp_path / "dvc.lock").write_text("a: [")
    assert dvc_md5("curation", fingerprint, tmp_path) is None


def test_a_dvc_hash_known_later_is_added(registered):
    students = registered[1]
    record_dataset_revision(students, "later.dir")
    for row in students.values():
        version = tracking.client().get_model_version(row["model"], row["version"])
        assert version.tags["foundry.dataset_dvc_md5"] == "later.dir"


def test_a_dataset_without_description_is_refused(registered, tmp_path):
    inputs = registered[0]
    copy = tmp_path / "dataset"
    shutil.copytree(inputs["dataset"], copy)
    (copy / "dataset.json").chmod(0o644)
    (copy / "dataset.json").write_text(json.dumps({"schema": 1}))
    manifests = read_manifests(inputs)
    with pytest.raises(UserError, match="dataset.json: not a readable description"):
        lineage_tags(manifests, {**inputs, "dataset": str(Path(copy))})
