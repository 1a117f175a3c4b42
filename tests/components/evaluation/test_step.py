import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.evaluation.config import EvaluationConfig, GateSettings
from components.evaluation.curated import read_facts
from components.evaluation.curves import read_curves
from components.evaluation.measure import material_of
from components.evaluation.report import dataset_section
from components.evaluation.step import STEP
from foundry.errors import UserError
from tests.components.evaluation.small_line import write_labelled_set, write_line
from tests.components.pages import assert_self_contained, read_page
from training.data.evaluation_set import EvaluationSet
from training.data.shards import ShardDataset

SMALL = EvaluationConfig(
    neighbours=5,
    further_neighbours=(1,),
    linear_steps=30,
    segmentation_steps=20,
    unlabelled_images=20,
    pictures=3,
    gates=GateSettings(rank_bound=1.5),
)
RANDOM_NAMES = {"pretrained-random", "student-convnext-random", "student-vit-random"}
NETWORKS = {"pretrained", "refined", "student-convnext", "student-vit", *RANDOM_NAMES}
BASELINES = {"raw pixels", "colour histogram"}
LABEL_FREE = {"copy_retrieval", "feature_rank", "patch_coherence"}


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    return write_line(tmp_path_factory.mktemp("line"))


@pytest.fixture(scope="module")
def labelled(line, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    evaluation = write_labelled_set(folder / "set")
    output = folder / "report"
    output.mkdir()
    figures = STEP.run(SMALL, {**line, "evaluation": str(evaluation)}, output)
    return output, figures, evaluation


@pytest.fixture(scope="module")
def unlabelled(line, tmp_path_factory):
    output = tmp_path_factory.mktemp("unlabelled")
    return output, STEP.run(SMALL, line, output)


def load(folder, name):
    return json.loads((folder / name).read_text())


def test_all_networks_and_baselines_in_one_table(labelled):
    output, figures, evaluation = labelled
    metrics = load(output, "metrics.json")
    assert metrics["schema"] == 1 and metrics["protocol"] == "classification"
    assert set(metrics["measures"]) == NETWORKS | BASELINES and set(metrics["models"]) == NETWORKS
    for measures in metrics["measures"].values():
        assert set(measures) == {"knn_top1", "linear_top1", "miou"} | LABEL_FREE
    for measures in metrics["per_class"].values():
        assert set(measures) == {"stripes", "dots", "waves"}
    assert metrics["dataset"] == {"kept": 24, "rejected": {"duplicate": 2, "truncated": 1}}
    assert metrics["sets"][0]["train"] == 36 and metrics["sets"][0]["test"] == 18
    assert metrics["details"]["refined"]["linear"]["features"] in ("cls", "cls+patches")
    assert figures["refined/knn_top1"] == pytest.approx(metrics["measures"]["refined"]["knn_top1"], abs=1e-6)
    assert figures["colour_histogram/miou"] > 0
    for name in NETWORKS | BASELINES:
        recall = np.mean(list(metrics["per_class"][name].values()))  # classes are of equal size
        assert recall == pytest.approx(metrics["measures"][name]["knn_top1"])


def test_size_and_speed_of_every_trained_network(labelled):
    output, _, _ = labelled
    speeds, metrics = load(output, "speed.json"), load(output, "metrics.json")
    assert set(speeds["networks"]) == NETWORKS - RANDOM_NAMES and speeds["device"] == "CPU, one core"
    _, words = read_page(output)
    for name, speed in speeds["networks"].items():
        assert speed["megabytes"] == pytest.approx(4e-6 * metrics["models"][name]["parameters"], rel=0.02)
        assert f"{speed['images_per_second']:,.0f}" in words and f"{speed['gflop']:.3g}" in words


def test_a_network_that_sees_nothing_is_at_chance(labelled):
    metrics = load(labelled[0], "metrics.json")
    for name in RANDOM_NAMES:
        measures = metrics["measures"][name]
        assert measures["knn_top1"] == pytest.approx(1 / 3)
        assert measures["copy_retrieval"] <= 1 / 20 + 1e-9
        assert measures["feature_rank"] == pytest.approx(1, abs=0.01)
        assert measures["patch_coherence"] < 0.6  # it still knows where in its view a patch lies


def test_verdict_agrees_with_the_figures(labelled):
    output, figures, _ = labelled
    verdict, metrics = load(output, "verdict.json"), load(output, "metrics.json")
    assert set(verdict["students"]) == {"vit", "convnext"} and set(verdict["teachers"]) == {"pretrained", "refined"}
    for group, prefix in (("teachers", ""), ("students", "student-")):
        for name, judgement in verdict[group].items():
            own = metrics["measures"][prefix + name]["knn_top1"]
            for gate in judgement["gates"]:
                if gate["name"].startswith("knn_above"):
                    assert gate["measured"] == own and gate["passed"] == (own > gate["bound"])
            assert judgement["passed"] == all(gate["passed"] for gate in judgement["gates"])
    assert verdict["passed"] == all(
        judgement["passed"] for group in ("teachers", "students") for judgement in verdict[group].values()
    )
    assert (figures["passed"], figures["summary"]) == (verdict["passed"], verdict["summary"])
    assert figures["promotable"] == [name for name, each in verdict["students"].items() if each["passed"]]


def test_report_is_one_self_contained_file(labelled):
    page, words = read_page(labelled[0])
    assert_self_contained(page, (labelled[0] / "report.html").read_text(encoding="utf-8"))
    assert all(link.startswith("#") for link in page.links)
    assert page.images and all(image["src"].startswith("data:image/") for image in page.images)
    for heading in ("Results", "Gates", "Training", "Nearest neighbours", "Classes", "Dataset", "Lineage"):
        assert heading in words


def test_report_leads_to_the_page_of_the_dataset(line, tmp_path):
    folder = Path(shutil.copytree(line["dataset"], tmp_path / "dataset"))
    assert read_facts(folder).page is None
    (folder / "report.html").write_text("<p>the page")
    facts = read_facts(folder)
    assert facts.page == folder / "report.html" and facts.curated is None
    html = dataset_section(facts, None)
    assert '<a href="curation.html">' in html
    facts = replace(facts, curated=(65.0, 120.4))
    assert "Curated in 1 min 05 s, 120 files decoded a second." in dataset_section(facts, None)


def test_report_says_what_was_measured(labelled):
    output, figures, evaluation = labelled
    _, words = read_page(output)
    metrics = load(output, "metrics.json")
    assert figures["summary"] in words
    assert "Labelled protocols were used" in words
    assert f"{100 * metrics['measures']['refined']['knn_top1']:.1f}" in words
    assert metrics["models"]["refined"]["sha256"] in words and metrics["sets"][0]["digest"] in words
    assert "Rejected: duplicate 2" in words and "Files in the pool 27" in words and "12ab" * 16 in words
    assert "ab" * 32 in words and "0123abc" in words


def test_plots_are_pictures(labelled):
    names = {path.name for path in (labelled[0] / "plots").iterdir()}
    assert {"clusters.png", "headline.png", "pca.png", "segmentation.png"} <= names
    assert {"curves-pretraining.png", "curves-refinement.png", "curves-distillation.png"} <= names
    assert {f"neighbours-{name}.png" for name in NETWORKS} <= names
    for path in (labelled[0] / "plots").iterdir():
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            assert image.format == "PNG" and min(image.size) > 50
            assert np.asarray(image.convert("L")).std() > 5, path.name


def test_repeating_gives_the_same_bytes(labelled, line, tmp_path):
    output, _, evaluation = labelled
    (tmp_path / "verdict.json").write_text("left by a killed run")
    STEP.run(SMALL, {**line, "evaluation": str(evaluation)}, tmp_path)

    def contents(folder):
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        del files["speed.json"]
        before, _, after = files["report.html"].partition(b'<h2 id="speed">')
        files["report.html"] = before + after[after.index(b"<h2 ") :]
        return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}

    assert contents(tmp_path) == contents(output)


def test_without_labels_the_line_ends_with_label_free_gates(unlabelled):
    output, figures = unlabelled
    metrics, verdict = load(output, "metrics.json"), load(output, "verdict.json")
    assert metrics["protocol"] == verdict["protocol"] == "label-free" and metrics["sets"] == []
    assert all(set(measures) == LABEL_FREE for measures in metrics["measures"].values())
    assert figures["passed"] is True, figures["summary"]  # any network is better than a blind one
    assert figures["promotable"] == ["convnext", "vit"]
    _, words = read_page(output)
    assert "No labels were given: only label-free protocols were used." in words
    assert "k-NN top-1" not in words.replace("k-NN top-1 (%)", "")


def test_masks_alone(line, tmp_path):
    evaluation = write_labelled_set(tmp_path / "set", labels=False)
    output = tmp_path / "report"
    output.mkdir()
    figures = STEP.run(SMALL, {**line, "evaluation": str(evaluation)}, output)
    assert figures["protocol"] == "segmentation"
    assert "refined/miou" in figures and "refined/knn_top1" not in figures
    gates = [gate["name"] for gate in load(output, "verdict.json")["students"]["vit"]["gates"]]
    assert gates[0] == "miou_above_random" and "feature_rank" in gates


def test_a_teacher_that_did_not_learn_is_said_in_one_sentence(tmp_path):
    line = write_line(tmp_path, blind=False)
    export = tmp_path / "refined/export"
    (export / "latest").write_text("step-000000000\n")
    output = tmp_path / "report"
    output.mkdir()
    figures = STEP.run(SMALL, line, output)
    verdict = load(output, "verdict.json")
    assert verdict["passed"] is False and figures["promotable"] == []
    assert verdict["teachers"]["refined"]["passed"] is False
    assert "teacher did not learn: its" in verdict["summary"] and verdict["summary"].count(". ") == 1
    page, words = read_page(output)
    assert "Not passed" in words and verdict["summary"] in words


def test_a_champion_is_measured_in_the_same_table(line, tmp_path):
    path = f"{line['students']}/students/vit/export/step-000000040"
    champion = {"vit": {"model": "foundry-vit", "version": "7", "digest": "d7", "path": path}}
    output = tmp_path / "report"
    output.mkdir()
    figures = STEP.run(SMALL, {**line, "champion": json.dumps(champion)}, output)
    metrics, verdict = load(output, "metrics.json"), load(output, "verdict.json")
    assert metrics["measures"]["student-vit-champion"] == metrics["measures"]["student-vit"]
    assert metrics["champions"] == {"vit": {"model": "foundry-vit", "version": "7", "digest": "d7"}}
    gate = next(gate for gate in verdict["students"]["vit"]["gates"] if gate["name"].startswith("non_inferior"))
    assert gate["passed"] and gate["difference"] == 0.0 and gate["images"] == 20  # the same network
    assert figures["passed"] is True
    assert "Champion foundry-vit v7" in read_page(output)[1]


def test_a_bad_labelled_set_is_a_plain_error(line, tmp_path):
    (tmp_path / "labels.csv").write_text("filename,label\na.png,x\n")
    with pytest.raises(UserError, match="has no column 'split'"):
        STEP.run(SMALL, {**line, "evaluation": str(tmp_path)}, tmp_path)


def test_curves_leave_out_what_is_not_a_number(tmp_path):
    rows = '{"step": 0, "time": 1.0, "loss": 3.5}\n{"step": 5, "time": 2.0, "loss": null, "vit/ibot": 2}\n{"step": 9'
    (tmp_path / "metrics.jsonl").write_text(rows)
    assert read_curves(tmp_path) == {"loss": ([0], [3.5]), "vit/ibot": ([5], [2.0])}
    assert read_curves(tmp_path / "nowhere") == {}


def test_large_images_and_masks_are_kept_small(line, tmp_path, monkeypatch):
    monkeypatch.setattr("components.evaluation.measure.LONGEST_SIDE", 16)
    monkeypatch.setattr("training.probes.segmentation.LONGEST_SIDE", 16)
    evaluation = EvaluationSet.open(str(write_labelled_set(tmp_path / "set")))
    material = material_of(SMALL, ShardDataset(line["dataset"]), {"set": evaluation})
    assert all(min(image.shape[:2]) == 16 for image in material.images)
    for split in ("train", "test"):
        masks = getattr(material.segmentation[0], split).truth
        for row, mask in zip(evaluation.segmentation(split), masks, strict=True):
            whole = evaluation.read_mask(row)
            assert mask.shape == (13, 13) and whole.shape == (40, 40)
            assert (mask == whole[1::3, 1::3]).all()


def test_limits_spread_over_the_table(line, tmp_path):
    evaluation = EvaluationSet.open(str(write_labelled_set(tmp_path / "set")))
    small = SMALL.model_copy(update={"train_limit": 9, "test_limit": 3, "mask_limit": 2})
    material = material_of(small, ShardDataset(line["dataset"]), {"set": evaluation})
    task, scenes = material.classification[0], material.segmentation[0]
    assert np.bincount(task.train.truth).tolist() == [3, 3, 3] and len(set(task.train.names)) == 9
    assert task.test.truth.tolist() == [0, 1, 2]
    assert (len(scenes.train.truth), len(scenes.test.truth)) == (2, 2)
