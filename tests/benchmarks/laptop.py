"""k-NN against training time of the `laptop` recipe on cifar10, for the objectives of the three generations.

    FOUNDRY_DATA=... python tests/benchmarks/laptop.py --folder DIR [--objective dinov2] [--seed 0] [--set a.b=c ...]

Curates the 50,000 training images once, without labels, trains with two processes of one core each, and measures every
export by weighted 10-NN with the first 1,000 images of each class as bank and all 10,000 test images, the protocol of
the raw-pixel floor 0.394. Time is the clock's, from the first step to the export. One JSON object is the last line.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import os
import subprocess
import sys
import tarfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

OBJECTIVES = {
    "dino": [
        "losses.ibot=0.0",
        "losses.koleo=0.0",
        "teacher.centring=softmax",
        "teacher.momentum.peak=0.99",  # a teacher that outruns the running centre ends on one prototype
        "heads.dino.trainable_gain=false",
    ],
    "dinov2": [],
    "dinov3": ["heads.dino.weight_norm=false", "heads.ibot.weight_norm=false"],
}
"""Changes of the recipe, whose own objective is DINOv2's: Sinkhorn-Knopp, iBOT, KoLeo, prototypes of unit norm."""


def prepare(folder: Path) -> tuple[Path, Path]:
    """(curated dataset, labelled set) below ``folder``."""
    source = Path(os.environ["FOUNDRY_DATA"]) / "cifar10"
    labelled, dataset = folder / "labelled", folder / "dataset"
    if not (labelled / "labels.csv").is_file():
        for part in ("train", "test"):
            with tarfile.open(source / f"cifar10_{part}.tar.gz") as archive:
                archive.extractall(labelled, filter="data")
        with gzip.open(source / "labels.csv.gz", "rt", newline="") as file:
            rows = list(csv.DictReader(file))
        with (labelled / "labels.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("filename", "label", "split"))
            for row in rows:
                if row["split"] == "test" or int(Path(row["filename"]).stem) < 1000:
                    writer.writerow((row["filename"], row["label"], row["split"]))
    if not (dataset / "dataset.json").is_file():
        command = [sys.executable, "-m", "components.curation", "--input", f"pool={source / 'cifar10_train.tar.gz'}"]
        for setting in ("duplicates.near=false", "filters.min_side=8", "balance.fraction=1"):
            command += ["--set", f"curation.{setting}"]
        subprocess.run([*command, "--output", str(dataset)], cwd=REPOSITORY, check=True)
    return dataset, labelled


def train(dataset: Path, run: Path, settings: list[str], processes: int) -> None:
    """The run, resumed where it is unfinished."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, "-m", "training", "--recipe", "laptop", "--data", str(dataset), "--output", str(run)]
    for setting in settings:
        command += ["--set", setting]
    subprocess.run(command, cwd=REPOSITORY, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def minutes(run: Path) -> dict[int, float]:
    """Minutes of training after so many steps, times between a kill and its resumption left out."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = [(row["step"] + 1, row["time"]) for row in rows if "loss" in row]
    found: dict[int, float] = {0: 0.0}
    starts = [event for event in events if event["event"] in ("started", "resumed")]
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        before = found[max(step for step in found if step <= start["step"])]
        last = following["step"] if following else math.inf
        found |= {s: before + (t - start["time"]) / 60 for s, t in times if start["step"] < s <= last}
    return found


def curve(run: Path, labelled: Path) -> list[tuple[int, float, float]]:
    """(steps, minutes, top-1) of every export."""
    from training.data.evaluation_set import EvaluationSet
    from training.models.interchange import load_export
    from training.probes.knn import KnnProbe

    clock = minutes(run)
    found, probe = [], None
    for export in sorted((run / "export").glob("step-*")):
        model, preprocessing = load_export(export)
        probe = probe or KnnProbe(EvaluationSet.open(str(labelled)), preprocessing)
        done = int(export.name.removeprefix("step-"))
        found.append((done, round(clock.get(done, 0.0), 2), round(probe(model)["knn_top1"], 4)))
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--objective", choices=OBJECTIVES, default="dinov2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="a.b=c")
    parser.add_argument("--name", default="", help="of the run's folder; objective and seed by default")
    options = parser.parse_args(arguments)
    dataset, labelled = prepare(options.folder)
    run = options.folder / (options.name or f"{options.objective}-{options.seed}")
    settings = [f"seed={options.seed}", *OBJECTIVES[options.objective], *options.settings]
    train(dataset, run, settings, options.processes)
    result = {"benchmark": "laptop", "objective": options.objective, "seed": options.seed}
    print(json.dumps({**result, "steps_minutes_knn": curve(run, labelled)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
