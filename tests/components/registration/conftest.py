"""Results of a small line, made by hand: a curated dataset, two students by transformers, a report."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from components.common import tracking
from components.common.manifest import InputRow, Manifest, content_digest_of, describe_files, write_manifest
from components.registration.config import RegistrationConfig
from components.registration.step import run
from foundry.images import Preprocessing

FORMATS = ("jpeg", "png", "webp")


def encode(image, kind):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **({"quality": 92} if kind != "png" else {}))
    return buffer.getvalue()


def picture(seed, height=80, width=112):
    """Smooth colours, so that no format changes them much."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    from PIL import Image

    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def publish(folder, step, inputs, **values):
    """Give ``folder`` the manifest that the step store would."""
    files = describe_files(folder)
    manifest = Manifest(
        step=step, fingerprint=f"{step}-fingerprint", digest=content_digest_of(files), files=files, config={},
        inputs=inputs, code_digest="code", environment={}, metrics={}, started="2026-01-01T00:00:00+00:00", seconds=1.0,
        git={"commit": "c" * 40, "dirty_digest": None}, **values,
    )  # fmt: skip
    write_manifest(folder, manifest)
    return InputRow(digest=manifest.digest, url=str(folder), step=step, fingerprint=manifest.fingerprint)


def write_dataset(folder):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    (folder / "shards").mkdir(parents=True)
    rows = []
    with tarfile.open(folder / "shards" / "shard-000000.tar", "w") as tar:
        for index in range(12):
            data = encode(picture(index), FORMATS[index % 3])
            member = tarfile.TarInfo(f"{index:04d}.{FORMATS[index % 3]}")
            member.size = len(data)
            offset = tar.offset + 512
            tar.addfile(member, io.BytesIO(data))
            rows.append(
                {"key": f"{index:04d}", "shard": "shard-000000.tar", "offset": offset, "length": len(data),
                 "ext": FORMATS[index % 3], "cluster": [index // 4, index % 2], "weight": 1.0}
            )  # fmt: skip
    parquet.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    (folder / "dataset.json").write_text(json.dumps({"schema": 1, "digests": {"content": "d" * 64}}))


def write_export(folder, name, seed):
    """A random network of transformers with everything else an export holds."""
    import torch
    from safetensors.torch import save_file
    from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel, DINOv3ViTConfig, DINOv3ViTModel

    torch.manual_seed(seed)
    if name == "vit":
        config = DINOv3ViTConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, patch_size=16,
            num_register_tokens=4, image_size=64,
        )  # fmt: skip
        network = DINOv3ViTModel(config)
    else:
        network = DINOv3ConvNextModel(
            DINOv3ConvNextConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 40], image_size=64)
        )
    network.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(Preprocessing(resize=72, crop=64).to_config()))
    save_file({"dino.mlp.0.weight": torch.zeros(2, 2)}, folder / "heads.safetensors")
    return network


def write_report(folder, students, failed=()):
    gates = {
        name: [
            {"name": "knn_above_random", "measured": 0.5, "bound": 0.4, "comparison": ">", "passed": name not in failed,
             "explanation": f"k-NN top-1 of {name} against random weights"}
        ]
        for name in students
    }  # fmt: skip
    judged = {name: {"passed": name not in failed, "gates": rows} for name, rows in gates.items()}
    verdict = {"schema": 1, "passed": not failed, "summary": "", "protocol": "classification", "teachers": {}}
    (folder / "verdict.json").write_text(json.dumps({**verdict, "students": judged}))
    models, measures = {}, {"raw pixels": {"knn_top1": 0.125}}
    for name in students:
        models[f"student-{name}"] = {"kind": "student", "student": name, "random": f"student-{name}-random"}
        models[f"student-{name}-random"] = {"kind": "random", "student": None, "random": None}
        measures[f"student-{name}"] = {"knn_top1": 0.5, "miou": 0.25}
        measures[f"student-{name}-random"] = {"knn_top1": 0.375, "miou": 0.125}
    (folder / "metrics.json").write_text(json.dumps({"schema": 1, "models": models, "measures": measures}))
    speed = {"megabytes": 1.25, "gflop": 0.5, "images_per_second": 1234.5}
    networks = {f"student-{name}": speed for name in students}
    (folder / "speed.json").write_text(json.dumps({"device": "a machine", "batch": 16, "networks": networks}))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line") / "dataset"
    write_dataset(folder)
    publish(folder, "curation", {"pool": InputRow(digest="p" * 64, url="s3://bucket/pool")})
    return folder


class Line:
    """Makes the inputs of registration; ``seed`` decides the students' weights."""

    def __init__(self, root: Path, dataset: Path) -> None:
        self.root, self.dataset, self.count = root, dataset, 0
        self.networks = {}

    def inputs(self, seed=0, students=("convnext", "vit"), failed=()):
        self.count += 1
        folder = self.root / f"line-{self.count}"
        curated = InputRow(digest=_digest(self.dataset), url="", step="curation", fingerprint="curation-fingerprint")
        pretrained = InputRow(digest="1" * 64, url="", step="pretraining", fingerprint="pretraining-fingerprint")
        (folder / "refined").mkdir(parents=True)
        (folder / "refined" / "recipe.yaml").write_text("name: refined\n")
        refined = publish(folder / "refined", "refinement", {"dataset": curated, "teacher": pretrained})
        for name in students:
            export = folder / "students" / "students" / name / "export"
            self.networks[name, seed] = write_export(export / "step-000000010", name, seed)
            (export / "latest").write_text("step-000000010")
        (folder / "students" / "recipe.yaml").write_text(f"seed: {seed}\n")
        made = publish(folder / "students", "distillation", {"dataset": curated, "teacher": refined})
        (folder / "report").mkdir()
        write_report(folder / "report", students, failed)
        publish(folder / "report", "evaluation", {"dataset": curated, "refined": refined, "students": made})
        return {
            "students": str(folder / "students"), "report": str(folder / "report"), "dataset": str(self.dataset),
            "refined": str(folder / "refined"),
        }  # fmt: skip


def _digest(folder):
    return json.loads((folder / "manifest.json").read_text())["digest"]


@pytest.fixture(scope="session")
def line(tmp_path_factory, dataset):
    return Line(tmp_path_factory.mktemp("lines"), dataset)


def _register(config, inputs, output):
    output.mkdir()
    with tracking.step_run("registration", config={}, lineage={}) as current:
        result = run(config, inputs, output)
    assert json.loads((output / "registration.json").read_text())["students"] == result["students"]
    return result["students"], current.run_id


@pytest.fixture(scope="session")
def register():
    """``register(config, inputs, output)``: run the step as the step store does; (its students, its MLflow run)."""
    return _register


@pytest.fixture(scope="session")
def registered(line, tmp_path_factory):
    """A first registration under the prefix ``shared``: (inputs, registration.json's students, run id)."""
    inputs = line.inputs(seed=1)
    output = tmp_path_factory.mktemp("registered") / "registration"
    return inputs, *_register(RegistrationConfig(prefix="shared", licence="CC0"), inputs, output)


@pytest.fixture(scope="session")
def downloaded(registered, tmp_path_factory):
    """The files of the two shared versions, by student."""
    from components.registration.champions import download_version

    folder = tmp_path_factory.mktemp("downloaded")
    return {name: download_version(f"shared-{name}", "champion", folder) for name in ("convnext", "vit")}
