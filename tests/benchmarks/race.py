"""A race at equal wall time on cifar10 against LightlyTrain: the same network, crops and core, three seeds.

    FOUNDRY_DATA=... python tests/benchmarks/race.py --peer PYTHON --folder DIR [--epochs 5] [--seeds 0 1 2]

A ViT of 3 x 96 with patches of 8 pixels, 2 crops of 32 and 2 of 16 pixels, the same scales, no blur, no solarisation;
all else as each side has it: here the `laptop` recipe, there method ``dino`` with its warm-ups set to the budget and
what else serves it (see ``peer_side.race``).
``PYTHON``: an environment made from tests/benchmarks/peer.txt; LightlyTrain is a black box. For each seed both train at
the same time, each on one core (cores change with the seed). The peer's time for ``--epochs`` passes is the budget;
the other side gets as many steps as a trial of both says fit into 0.95 of it. Measured by weighted 10-NN of the
embeddings each side gives, with 10,000 training images as bank and 10,000 test images (raw pixels: 0.394). The last
line is one JSON object. A race that was interrupted goes on with the next seed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.benchmarks.laptop import OBJECTIVES, prepare  # noqa: E402

DIM, DEPTH, HEADS = 96, 3, 3
TRIAL_STEPS = 400
MARGIN = 0.95


def ours(dataset: Path, out: Path, seed: int, steps: int, batch: int, objective: str, limit: int) -> list[str]:
    """Command of this project's side."""
    settings = [f"seed={seed}", f"steps={steps}", f"batch={batch}", "cadence.evaluate=0", "cadence.checkpoint=1000000"]
    settings += [f"model.dim={DIM}", f"model.depth={DEPTH}", f"model.heads={HEADS}", "model.patch_size=8"]
    settings += OBJECTIVES[objective]
    command = [sys.executable, __file__, "--ours", str(limit), "--", "--recipe", "laptop", "--data", str(dataset)]
    command += ["--output", str(out)]
    return [*command, *(part for setting in settings for part in ("--set", setting))]


def theirs(
    python: str, images: Path, out: Path, seed: int, epochs: int, batch: int, count: int, limit: int
) -> list[str]:
    """Command of the peer's side."""
    numbers = {"dim": DIM, "depth": DEPTH, "heads": HEADS, "epochs": epochs, "batch": batch, "count": count}
    command = [python, str(HERE / "peer_side.py"), "race", "--images", str(images), "--out", str(out)]
    command += ["--seed", str(seed), "--limit", str(limit)]
    return [*command, *(part for name, value in numbers.items() for part in (f"--{name}", str(value)))]


class Racer:
    """One training on one core, timed by its own optimiser steps."""

    def __init__(self, command: list[str], core: int, log: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        if command[0] != sys.executable:
            del environment["PYTHONPATH"]
        self._log = log.open("w")
        self._process = subprocess.Popen(
            ["taskset", "--cpu-list", str(core), *command],
            env=environment,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.times: list[float] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("STEP "):
                self.times.append(float(line.split()[2]))

    def finish(self) -> None:
        """Wait for the end. Raises :class:`SystemExit` where it failed."""
        self._reader.join()
        status = self._process.wait()
        self._log.close()
        if status:
            raise SystemExit(f"{self._log.name}: a side ended with status {status}")

    @property
    def steps_per_second(self) -> float:
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])

    @property
    def seconds(self) -> float:
        """Of all steps, the first one reckoned as an average one."""
        return len(self.times) / self.steps_per_second


def embeddings_of_ours(run: Path, labelled: Path) -> dict[str, np.ndarray]:
    """Embedding by file name."""
    from training.data.evaluation_set import EvaluationSet
    from training.engine.exports import latest_export
    from training.models.interchange import load_export
    from training.probes.features import Pixels, extract

    evaluation = EvaluationSet.open(str(labelled))
    model, preprocessing = load_export(latest_export(run))
    names = [image.name for split in ("train", "test") for image in evaluation.classification(split)]
    pixels = Pixels.of_files(names, evaluation.read, preprocessing)
    return dict(zip(names, extract(model, pixels, batch=64, device="cpu").cls, strict=True))


def embeddings_of_theirs(python: str, run: Path, labelled: Path, folder: Path) -> dict[str, np.ndarray]:
    """Embedding by file name, by the peer's own command."""
    import torch

    from training.data.evaluation_set import EvaluationSet

    evaluation, images = EvaluationSet.open(str(labelled)), folder / "measured"
    names = [image.name for split in ("train", "test") for image in evaluation.classification(split)]
    if not images.is_dir():
        for name in names:
            (images / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(labelled / name, images / name)
    out = run / "embeddings.pt"
    command = [python, str(HERE / "peer_side.py"), "embed", "--images", str(images), "--out", str(out)]
    subprocess.run([*command, "--checkpoint", str(run / "checkpoints" / "last.ckpt")], check=True, capture_output=True)
    found = torch.load(out, weights_only=True)
    return dict(zip(found["filenames"], found["embeddings"].float().numpy(), strict=True))


def top1(embeddings: dict[str, np.ndarray], labelled: Path) -> float:
    """10-NN top-1."""
    from training.data.evaluation_set import EvaluationSet
    from training.probes.knn import knn

    evaluation = EvaluationSet.open(str(labelled))
    rows = {split: evaluation.classification(split) for split in ("train", "test")}
    features = {split: np.stack([embeddings[row.name] for row in rows[split]]) for split in rows}
    labels = {split: np.array([row.label for row in rows[split]]) for split in rows}
    found = knn(features["train"], labels["train"], features["test"], labels["test"], ks=(10,))
    return round(found.top1[10], 4)


def both(commands: dict[str, list[str]], folder: Path, turned: bool) -> dict[str, Racer]:
    """Both sides at the same time to their end, each on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if turned:
        cores.reverse()
    folder.mkdir(parents=True, exist_ok=True)
    sides = zip(commands.items(), cores, strict=True)
    racers = {side: Racer(command, core, folder / f"{side}.log") for (side, command), core in sides}
    for racer in racers.values():
        racer.finish()
    return racers


def race(options: argparse.Namespace) -> dict[str, object]:
    """All seeds."""
    folder: Path = options.folder
    dataset, labelled = prepare(folder)
    images = labelled / "train"
    count = sum(1 for _ in images.rglob("*.*"))
    epochs, batches = options.epochs, {"ours": options.batch, "theirs": options.peer_batch}
    name = f"race-{options.objective}-{epochs}-{batches['ours']}-{batches['theirs']}"
    rates_file = folder / name / "rates.json"
    if not rates_file.is_file():
        out = folder / name / "trial"
        shutil.rmtree(out, ignore_errors=True)
        commands = {
            "ours": ours(dataset, out / "ours", 0, 100_000, batches["ours"], options.objective, TRIAL_STEPS),
            "theirs": theirs(options.peer, images, out / "theirs", 0, epochs, batches["theirs"], count, TRIAL_STEPS),
        }
        racers = both(commands, out, turned=False)
        rates_file.write_text(json.dumps({side: racer.steps_per_second for side, racer in racers.items()}))
    rates = json.loads(rates_file.read_text())
    budget = epochs * (count // batches["theirs"]) / rates["theirs"]
    steps = int(MARGIN * budget * rates["ours"])
    rows = []
    for seed in options.seeds:
        out = folder / name / f"seed-{seed}"
        result = out / "result.json"
        if not result.is_file():
            shutil.rmtree(out, ignore_errors=True)
            commands = {
                "ours": ours(dataset, out / "ours", seed, steps, batches["ours"], options.objective, 0),
                "theirs": theirs(options.peer, images, out / "theirs", seed, epochs, batches["theirs"], count, 0),
            }
            racers = both(commands, out, turned=bool(seed % 2))
            row = {
                "seed": seed,
                "minutes": {side: round(racer.seconds / 60, 2) for side, racer in racers.items()},
                "epochs": {side: round(len(racer.times) * batches[side] / count, 2) for side, racer in racers.items()},
                "knn": {
                    "ours": top1(embeddings_of_ours(out / "ours", labelled), labelled),
                    "theirs": top1(embeddings_of_theirs(options.peer, out / "theirs", labelled, folder), labelled),
                },
            }
            result.write_text(json.dumps(row))
        rows.append(json.loads(result.read_text()))
    differences = np.array([row["knn"]["ours"] - row["knn"]["theirs"] for row in rows])
    error = float(differences.std(ddof=1) / np.sqrt(len(rows))) if len(rows) > 1 else float("nan")
    found = {"difference": round(float(differences.mean()), 4), "standard_error": round(error, 4)}
    return {"benchmark": "race", "objective": options.objective, "batches": batches, "rows": rows, **found}


def train_ours(limit: int, arguments: list[str]) -> int:
    """This project's side, in a process of its own."""
    from tests.benchmarks.turns import report_steps
    from training.__main__ import main as training

    report_steps(limit)
    return training(arguments)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--ours"]:
        return train_ours(int(arguments[1]), arguments[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="Python of an environment with lightly-train")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--objective", choices=OBJECTIVES, default="dinov2", help="of this project's side")
    parser.add_argument("--epochs", type=int, default=5, help="passes of the peer over the 50,000 images")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--peer-batch", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    print(json.dumps(race(parser.parse_args(arguments))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
