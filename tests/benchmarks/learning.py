"""What the embedded recipes learn on another division of the photographs than the one that the sample reports.

    python tests/benchmarks/learning.py --folder DIR [--fold 0] [--seed 0] [--recipe STAGE=FILE --name NAME]

The sample's test ground is fold 1 of three (`SampleSettings.fold`). Folds 0 and 2 are where recipes are compared, so
that the figures of `make run` and `make test-slow` rest on images that chose nothing. Builds that sample and its
curated dataset (reused if there), trains pretraining, refinement and distillation one after the other in one process
on one core, and measures every network by weighted 10-NN as the evaluation step does. One JSON object is the last line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

STAGES = {"pretraining": "embedded", "refinement": "embedded_gram", "distillation": "embedded_distillation"}


def dataset_of(folder: Path, fold: int, test_per_class: int) -> Path:
    """Curated dataset below ``folder``; the labelled set lies beside it under ``sample/evaluation``."""
    from components.curation.sample_pool import SampleSettings, build

    if not (folder / "dataset" / "dataset.json").is_file():
        settings = SampleSettings(fold=fold, test_per_class=test_per_class, train_mosaics=0, test_mosaics=0)
        build(folder / "sample", settings)
        command = [sys.executable, "-m", "components.curation", "--input", f"pool={folder / 'sample' / 'pool'}"]
        subprocess.run([*command, "--output", str(folder / "dataset")], cwd=REPOSITORY, check=True)
    return folder / "dataset"


def train(dataset: Path, runs: Path, seed: int, recipes: dict[str, str], labelled: Path) -> None:
    """The three stages into ``runs``; a finished or unfinished one goes on."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    teacher: list[str] = []
    for stage, recipe in recipes.items():
        command = [sys.executable, "-m", "training", "--recipe", recipe, "--data", str(dataset)]
        command += ["--output", str(runs / stage), "--set", f"seed={seed}", "--set", "workers=0"]
        command += ["--set", "cadence.evaluate=0", "--evaluation", str(labelled), *teacher]
        subprocess.run(command, cwd=REPOSITORY, check=True, env=environment)
        teacher = ["--teacher", str(runs / stage)]


def measure(runs: Path, labelled: Path) -> dict[str, float]:
    """10-NN top-1 by network name."""
    import numpy as np
    import torch

    from components.evaluation.subjects import find_subjects
    from foundry.images import decode_image
    from training.data.evaluation_set import EvaluationSet
    from training.models.interchange import load_export
    from training.probes.baselines import BASELINES
    from training.probes.knn import KnnProbe, knn

    torch.set_num_threads(1)
    found: dict[str, float] = {}
    names = ("pretrained", "refined", "students")
    inputs = {name: str(runs / stage) for name, stage in zip(names, STAGES, strict=True)}
    evaluation = EvaluationSet.open(str(labelled))
    for subject in find_subjects(inputs, {}):
        model, preprocessing = load_export(subject.export)
        found[subject.name] = round(KnnProbe(evaluation, preprocessing)(model)["knn_top1"], 4)
    rows = {split: evaluation.classification(split) for split in ("train", "test")}
    images = {split: [decode_image(evaluation.read(row.name)) for row in rows[split]] for split in rows}
    labels = {split: np.array([row.label for row in rows[split]]) for split in rows}
    for name, feature in BASELINES.items():
        vectors = {split: np.stack([feature(image) for image in images[split]]) for split in images}
        result = knn(vectors["train"], labels["train"], vectors["test"], labels["test"], ks=(10,))
        found[name] = round(result.top1[10], 4)
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--fold", type=int, default=0, choices=(0, 1, 2))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-per-class", type=int, default=100)
    parser.add_argument("--recipe", action="append", default=[], metavar="STAGE=FILE")
    parser.add_argument("--name", default="shipped", help="of this set of recipes; its runs are kept under it")
    options = parser.parse_args(arguments)
    recipes = {**STAGES, **dict(item.split("=", 1) for item in options.recipe)}
    folder = options.folder / f"fold-{options.fold}"
    dataset = dataset_of(folder, options.fold, options.test_per_class)
    labelled, runs = folder / "sample" / "evaluation", folder / f"{options.name}-{options.seed}"
    start = time.monotonic()
    train(dataset, runs, options.seed, recipes, labelled)
    seconds = round(time.monotonic() - start, 1)
    result = {"benchmark": "learning", "fold": options.fold, "seed": options.seed, "recipes": options.name}
    print(json.dumps({**result, "seconds": seconds, "knn_top1": measure(runs, labelled)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
