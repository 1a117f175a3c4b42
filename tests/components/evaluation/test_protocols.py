"""Every protocol in one evaluation, over one pass of each list of images."""

import json
from collections import Counter

import numpy as np
import pytest

from components.evaluation.compare import open_sets
from components.evaluation.config import EvaluationConfig
from components.evaluation.measure import MEASURES, Examiner
from components.evaluation.step import STEP
from foundry.images import Preprocessing
from tests.components.evaluation.small_line import VIT, write_benchmarks, write_labelled_set, write_line
from tests.components.pages import assert_shown
from training.data.evaluation_set import EvaluationSet
from training.models.build import build_backbone
from training.probes.knn import knn
from training.probes.material import Material
from training.probes.options import FewShotOptions, ProbeOptions, ProtocolName, RobustnessOptions
from training.probes.outcome import Items
from training.probes.passes import NetworkPasses
from training.probes.protocols.base import run
from training.probes.protocols.registry import MAKERS, make

ALL = EvaluationConfig(
    protocols=tuple(MAKERS),
    neighbours=5,
    further_neighbours=(1,),
    linear_steps=20,
    linear_layers=2,
    few_shot=FewShotOptions(shots=(1, 3), tries=2),
    segmentation_steps=10,
    depth={"steps": 10, "farthest": 6.0},
    tracking={"grid": 4, "context": 2, "radius": 3},
    discovery_grid=5,
    correspondence_grid=5,
    robustness=RobustnessOptions(images=6, severities=(3,)),
    unlabelled_images=16,
    pictures=2,
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    urls = {"evaluation": str(write_labelled_set(folder / "set")), **write_benchmarks(folder / "benchmarks")}
    return urls


@pytest.fixture(scope="module")
def material(sets):
    images = [np.random.default_rng(seed).integers(0, 256, (40, 48, 3)).astype(np.uint8) for seed in range(6)]
    opened = {name: EvaluationSet.open(url) for name, url in sets.items()}
    return Material(ALL, images, opened)


class Counting:
    """A network that counts the images it is shown."""

    def __init__(self, model):
        self.model, self.images, self.config, self.blocks = model, 0, model.config, model.blocks

    def __call__(self, pixels):
        self.images += len(pixels)
        return self.model(pixels)

    def intermediate_layers(self, pixels, layers):
        self.images += len(pixels)
        return self.model.intermediate_layers(pixels, layers)


def test_settings_name_what_there_is():
    assert set(MAKERS) == set(ProtocolName.__args__)
    assert set(ProbeOptions().protocols) <= set(MAKERS)


def test_every_list_goes_through_the_network_once_a_view(material):
    network = Counting(build_backbone(VIT).eval())
    examiner = Examiner(ALL, material, "cpu")
    found = examiner.examine(network, Preprocessing(resize=32, crop=32))
    material.views(32)
    protocols = make(ALL.protocols, material)
    distinct = {(request.images, request.view) for each in protocols for request in each.requests()}
    asked = Counter(request.images for each in protocols for request in each.requests())
    once = sum(material.lists[images].count for images, _ in distinct)
    assert network.images == found.forwards == once
    assert sum(material.lists[name].count * times for name, times in asked.items()) > 2 * once  # what sharing saves
    assert set(found.measures) == {
        *MEASURES,
        *(f"more/{name}_top1" for name in ("knn", "linear", "logistic", "few_shot", "robust")),
    }
    assert MEASURES["more/knn_top1"].title == "k-NN top-1 (more)" and "else/knn_top1" in MEASURES
    with pytest.raises(KeyError):
        MEASURES["more/nonsense"]


def test_parts_of_measures_make_them_up(material):
    examiner = Examiner(ALL, material, "cpu")
    found = examiner.examine(build_backbone(VIT).eval(), Preprocessing(resize=32, crop=32))
    without = {"feature_rank"}
    assert set(found.items) == set(found.measures) - without
    for name, parts in found.items.items():
        assert isinstance(parts, Items) and len(parts) > 0
        assert parts.measure()[0] == pytest.approx(found.measures[name], abs=1e-9), name


def test_what_a_protocol_measures_is_what_it_says(material):
    """k-NN by hand, from features that are extracted by hand."""
    model, preprocessing = build_backbone(VIT).eval(), Preprocessing(resize=32, crop=32)
    task = material.classification[0]
    import torch

    vectors = []
    for split in (task.train, task.test):
        pixels = np.stack([preprocessing(image) for image in material.lists[split.images]])
        with torch.inference_mode():
            vectors.append(model(torch.from_numpy(pixels))["cls"].numpy())
    expected = knn(vectors[0], task.train.truth, vectors[1], task.test.truth, ks=[5]).top1[5]
    found = Examiner(ALL, material, "cpu").examine(model, preprocessing)
    assert found.measures["knn_top1"] == expected


def test_a_protocol_sees_the_same_alone_and_among_others(material):
    model, preprocessing = build_backbone(VIT).eval(), Preprocessing(resize=32, crop=32)
    together = Examiner(ALL, material, "cpu").examine(model, preprocessing)
    for name in ("segmentation", "depth", "retrieval", "tracking", "correspondence", "discovery"):
        protocols = make([name], material)
        passes = NetworkPasses(
            model, preprocessing, material.lists, [request for each in protocols for request in each.requests()]
        )
        alone = run(protocols, passes)
        assert alone.measures
        for measure, value in alone.measures.items():
            assert value == pytest.approx(together.measures[measure], abs=1e-6), measure


def test_baselines_leave_out_what_they_cannot_show(material):
    found = Examiner(ALL, material, "cpu").examine_baseline("raw pixels", Preprocessing(resize=32, crop=32), 8)
    assert {"knn_top1", "miou", "depth_rmse", "retrieval_map", "warp_pck"} <= set(found.measures)
    assert not {"tracking_jf", "corloc", "pck", "planted_corloc"} & set(found.measures)


def test_the_step_measures_all_of_them_and_peers(sets, tmp_path):
    from transformers import ViTConfig, ViTModel

    inputs = write_line(tmp_path / "line")
    peer = tmp_path / "peer"
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    ViTModel(ViTConfig(**shape, image_size=32, patch_size=8)).save_pretrained(peer)
    statistics = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"size": {"height": 32, "width": 32}, "do_resize": True, "do_normalize": True, "do_rescale": True}
    document = {
        **statistics,
        **size,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "image_processor_type": "ViTImageProcessor",
    }
    (peer / "preprocessor_config.json").write_text(json.dumps(document))
    output = tmp_path / "report"
    output.mkdir()
    inputs |= {"evaluation": sets["evaluation"], "peers.other": str(peer)}
    inputs |= {f"benchmarks.{name}": url for name, url in sets.items() if name not in ("evaluation", "more")}
    few = tuple(name for name in ALL.protocols if name not in ("robustness", "logistic", "few_shot"))
    STEP.run(ALL.model_copy(update={"protocols": few}), inputs, output)
    metrics = json.loads((output / "metrics.json").read_text())
    assert {each["name"] for each in metrics["sets"]} == {"evaluation", *sets} - {"more"}
    assert metrics["models"]["peer-other"]["architecture"] == "ViT 2x24, patch 8"
    assert {"depth_rmse", "tracking_jf", "retrieval_map", "corloc", "pck"} <= set(metrics["measures"]["peer-other"])
    page = (output / "report.html").read_text()
    for title in ("Depth RMSE", "Tracking J&amp;F", "Retrieval mAP", "Discovery CorLoc", "Corresp. PCK", "other"):
        assert title in page
    assert_shown(output / "report.html")
    words = json.loads((output / "verdict.json").read_text())
    assert set(words["students"]) == {"vit", "convnext"}


def test_sets_come_by_name(sets):
    found = open_sets({"dataset": "x", "benchmarks.rooms": sets["rooms"], "evaluation": sets["evaluation"]})
    assert list(found) == ["evaluation", "rooms"]
