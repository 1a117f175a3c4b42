"""What later stages add to a pretraining on photographs: more of it, Gram anchoring, high resolution, and a student.

    FOUNDRY_DATA=... python tests/benchmarks/stages.py --folder DIR [--seeds 0 1 2] [--pretraining 800] [--stage 300]

The images are caltech20's training images and the web pool, curated, at their size; a ViT of 4 x 128 with patches of 8
pixels sees crops of 96. From one pretraining of a seed go, with constant rates and equal numbers of steps:

- ``more``: more of the same pretraining;
- ``gram``: the Gram stage, its teacher the network of then at twice the resolution;
- ``high``: two thirds of ``gram``, then Gram anchoring with crops of mixed sizes up to 144 pixels.

And two of a smaller network (3 x 96): ``student``, distilled from that pretraining, and ``alone``, pretrained by itself
for as many seconds as that distillation takes (the ratio of their steps is measured once, in turns). Every network is
measured by 10-NN on caltech20 and a linear probe of the patches on camvid at 192 pixels. Two processes, a core each.
One line a seed, and as the last line one JSON object with means over seeds; what is finished is not made again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

SIZE, SEGMENTED = 96, 192
HEAD = {"prototypes": 256, "hidden": 256, "bottleneck": 64, "weight_norm": True}
CROPS = {"global_size": SIZE, "local_size": 48, "local_count": 2, "blur_sigma": [0.1, 1.0]}
BASE: dict[str, Any] = {
    "batch": 32,
    "heads": {"dino": HEAD, "ibot": HEAD},
    "optimiser": {
        "learning_rate": {"start": 0.0, "peak": 5e-4, "warmup_steps": 60},
        "reference_batch": 32,
        "weight_decay": {"peak": 0.04},
    },
    "teacher": {"momentum": {"peak": 0.99}, "temperature": {"peak": 0.025}},
    "crops": CROPS,
    "export_size": SIZE,
}
MODEL = {"arch": "vit", "dim": 128, "depth": 4, "heads": 2, "patch_size": 8, "registers": 4, "layer_scale": 1.0}
STUDENT = {**MODEL, "dim": 96, "depth": 3}
SAME_CROP = {"dino_same_crop": True}
MIXTURE = [
    {"global_size": 96, "local_size": 48, "gram_size": 144, "probability": 0.5},
    {"global_size": 144, "local_size": 48, "gram_size": 192, "probability": 0.3},
    {"global_size": 144, "local_size": 72, "gram_size": 192, "probability": 0.2},
]


def prepare(folder: Path) -> tuple[Path, Path]:
    """(curated dataset, evaluation set with the labels of caltech20 and the masks of camvid) below ``folder``."""
    data = Path(os.environ["FOUNDRY_DATA"])
    pool, labelled, dataset = folder / "pool", folder / "labelled", folder / "dataset"
    if not (labelled / "masks.csv").is_file():
        for split in ("train", "test"):
            for name in ("caltech20", "camvid"):
                with tarfile.open(data / name / f"{name}_{split}.tar") as archive:
                    archive.extractall(labelled / name, filter="data")
        for name, target, columns in (
            ("caltech20", "labels.csv", {"filename": "filename", "label": "label", "split": "split"}),
            ("camvid", "masks.csv", {"filename": "filename", "mask": "label_file", "split": "split"}),
        ):
            with (data / name / "labels.csv").open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if row["split"] in ("train", "test")]
            with (labelled / target).open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(columns)
                for row in rows:
                    files = {key: f"{name}/{row[columns[key]]}" for key in columns if key in ("filename", "mask")}
                    writer.writerow([files.get(key, row[column]) for key, column in columns.items()])
        shutil.copy(data / "camvid" / "classes.csv", labelled / "classes.csv")
    if not (dataset / "dataset.json").is_file():
        shutil.rmtree(pool, ignore_errors=True)
        pool.mkdir(parents=True)
        for archive in (data / "caltech20" / "caltech20_train.tar", data / "webpool" / "webpool.tar.gz"):
            with tarfile.open(archive) as opened:
                opened.extractall(pool / archive.name.partition(".")[0], filter="data")
        command = [sys.executable, "-m", "components.curation", "--input", f"pool={pool}"]
        command += ["--input", f"evaluation={labelled}", "--set", f"curation.filters.min_side={SIZE}"]
        command += ["--output", str(dataset)]
        subprocess.run(command, cwd=REPOSITORY, check=True)
    return dataset, labelled


def train(run: Path, recipe: Mapping[str, Any], dataset: Path, labelled: Path, teacher: Path | None = None) -> None:
    """A run with two processes, resumed where it is unfinished."""
    run.mkdir(parents=True, exist_ok=True)
    file = run.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**BASE, "name": run.name, **recipe}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "training"]
    command += ["--recipe", str(file), "--data", str(dataset), "--output", str(run), "--evaluation", str(labelled)]
    if teacher is not None:
        command += ["--teacher", str(teacher)]
    with run.with_suffix(".log").open("a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=REPOSITORY, check=True, env=environment, stdout=log, stderr=log)


def finished(run: Path) -> bool:
    """Whether ``run`` is done to its last step."""
    events = run / "events.jsonl"
    return events.is_file() and '"finished"' in events.read_text()


def step_seconds(run: Path) -> float:
    """Median seconds of a step of ``run``."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float(np.median([row["step_seconds"] for row in rows if "step_seconds" in row]))


def pace(folder: Path, teacher: Path, dataset: Path, labelled: Path) -> float:
    """Steps of the student's network alone in the time of one step of its distillation: trials in turns, made once."""
    file = folder / "pace.json"
    if not file.is_file():
        common: dict[str, Any] = {"seed": 0, "steps": 40, "cadence": {"log": 5, "checkpoint": 1000, "evaluate": 0}}
        distilled = {**common, "stage": "distil", "students": [{"name": "vit", "model": STUDENT}], "losses": SAME_CROP}
        ratios = []
        for number in range(2):
            runs = [folder / "pace" / f"{name}-{number}" for name in ("student", "alone")]
            train(runs[0], distilled, dataset, labelled, teacher)
            train(runs[1], {**common, "stage": "pretrain", "model": STUDENT}, dataset, labelled)
            ratios.append(step_seconds(runs[0]) / step_seconds(runs[1]))
        file.write_text(json.dumps({"ratios": ratios}))
    return float(np.mean(json.loads(file.read_text())["ratios"]))


def stages(folder: Path, seed: int, dataset: Path, labelled: Path, pretraining: int, stage: int) -> dict[str, Path]:
    """The finished runs of one seed by name."""
    own = folder / f"seed-{seed}-{pretraining}-{stage}"
    cadence = {"log": 10, "checkpoint": 100, "evaluate": 100}
    first = {"stage": "pretrain", "seed": seed, "model": MODEL, "cadence": cadence}
    later = {"stage": "gram", "seed": seed + 1000, "cadence": cadence}
    gram = {**later, "crops": {**CROPS, "gram_size": 2 * SIZE}, "losses": {"gram": 2.0}}
    high = {**gram, "crops": {**CROPS, "gram_size": 2 * SIZE, "mixture": MIXTURE}}
    students = {"stage": "distil", "seed": seed, "cadence": {**cadence, "evaluate": stage}}
    students |= {"students": [{"name": "vit", "model": STUDENT}], "losses": SAME_CROP}
    head = 2 * stage // 3
    before = own / "pretraining"

    def make(name: str, recipe: Mapping[str, Any], teacher: Path | None = None) -> Path:
        if not finished(own / name):
            train(own / name, recipe, dataset, labelled, teacher)
        return own / name

    make("pretraining", {**first, "steps": pretraining})
    if not finished(own / "more") and not (own / "more").is_dir():
        shutil.copytree(before, own / "more.partial", dirs_exist_ok=True)
        (own / "more.partial" / "events.jsonl").write_text("")
        os.rename(own / "more.partial", own / "more")
    found = {
        "pretraining": before,
        "more": make("more", {**first, "steps": pretraining + stage}),
        "gram": make("gram", {**gram, "steps": stage}, before),
    }
    make("high-before", {**gram, "steps": head}, before)
    found["high"] = make("high", {**high, "steps": stage - head}, own / "high-before")
    student = make("student", {**students, "steps": stage}, before)
    steps = round(stage * pace(folder, before, dataset, labelled))
    alone = {**first, "model": STUDENT, "steps": steps, "cadence": {**cadence, "evaluate": 0}}
    return {**found, "student": student / "students" / "vit", "alone": make("alone", alone)}


def measure(runs: Mapping[str, Path], dataset: Path, labelled: Path) -> dict[str, dict[str, float]]:
    """10-NN on caltech20, mIoU on camvid and coherence of every run's newest network, and of the untrained one."""
    import torch

    from components.evaluation.config import EvaluationConfig
    from components.evaluation.measure import Examiner, material_of
    from training.data.evaluation_set import EvaluationSet
    from training.data.shards import ShardDataset
    from training.engine.exports import latest_export
    from training.models.interchange import load_export

    torch.set_num_threads(1)
    protocols = ("knn", "segmentation", "copies")
    config = EvaluationConfig(protocols=protocols, segmentation_size=SEGMENTED)
    sets = {"photographs": EvaluationSet.open(str(labelled))}
    examiner = Examiner(config, material_of(config, ShardDataset(str(dataset)), sets), "cpu")
    exports = {name: latest_export(run) for name, run in runs.items()}
    exports["untrained"] = runs["pretraining"] / "export" / "step-000000000"
    found = {}
    for name, export in exports.items():
        model, preprocessing = load_export(export)
        measures = examiner.examine(model.eval(), preprocessing).measures
        found[name] = {key: round(measures[key], 4) for key in ("knn_top1", "miou", "patch_coherence")}
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pretraining", type=int, default=800, help="steps")
    parser.add_argument("--stage", type=int, default=300, help="steps of each arm")
    options = parser.parse_args(arguments)
    dataset, labelled = prepare(options.folder)
    rows = []
    for seed in options.seeds:
        runs = stages(options.folder, seed, dataset, labelled, options.pretraining, options.stage)
        minutes = {}
        for name, run in runs.items():
            own = run.parents[1] if name == "student" else run
            recipe = yaml.safe_load((own / "recipe.yaml").read_text())
            minutes[name] = round(recipe["steps"] * step_seconds(own) / 60, 1)
        rows.append({"seed": seed, "minutes": minutes, "measures": measure(runs, dataset, labelled)})
        print(json.dumps(rows[-1]), flush=True)
    names = list(rows[0]["measures"])
    mean = {
        name: {
            key: round(float(np.mean([row["measures"][name][key] for row in rows])), 4)
            for key in rows[0]["measures"]["untrained"]
        }
        for name in names
    }
    steps = {"pretraining": options.pretraining, "stage": options.stage}
    print(json.dumps({"benchmark": "stages", "steps": steps, "seeds": len(rows), "mean": mean, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
