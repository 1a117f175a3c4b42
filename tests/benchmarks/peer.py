"""Training steps a second against LightlyTrain: the same network, crops and batch, one process, in turns.

    python tests/benchmarks/peer.py --peer PYTHON --images DIR [--objective dino] [--precision fp32] [--rounds 10]

``PYTHON`` is the interpreter of an environment made from tests/benchmarks/peer.txt; LightlyTrain is a black box here.
``DIR`` holds small JPEG images. DINO: ViT-Ti of patch 4, head 2048-256-1024, batch 64. DINOv2: ViT-S of
patch 4, one head 2048-256-65536, batch 16. Both with 2 crops of 32 pixels and 6 of 16, softmax centring, no loader
worker, and as many threads as there are cores. The last line is one JSON object: images a second, the median ratio
(ours over theirs) and the interval that holds 95 of 100 medians of resampled rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.benchmarks.ratios import ratio_of_rounds  # noqa: E402

BATCH = {"dino": 64, "dinov2": 16}
PLAIN = {"arch": "vit", "patch_size": 4, "registers": 0, "position": "learned", "position_grid": 8, "key_bias": True}
COMMON = {
    "name": "peer",
    "stage": "pretrain",
    "steps": 1_000_000,
    "crops": {"global_size": 32, "local_size": 16, "local_count": 6},
    "teacher": {"centring": "softmax", "momentum": {"peak": 0.996}, "temperature": {"peak": 0.04}},
    "cadence": {"log": 100, "checkpoint": 1_000_000, "evaluate": 0},
    "workers": 0,
    "device": "cpu",
}
OBJECTIVES = {
    "dino": {
        "model": {**PLAIN, "dim": 192, "depth": 12, "heads": 3, "layer_scale": None},
        "heads": {"dino": {"prototypes": 1024, "hidden": 2048, "bottleneck": 256, "weight_norm": True}},
        "losses": {"ibot": 0.0, "koleo": 0.0},
    },
    "dinov2": {
        "model": {**PLAIN, "dim": 384, "depth": 12, "heads": 6, "layer_scale": 1.0e-5},
        "heads": {
            "shared": True,
            "dino": {"prototypes": 65536, "hidden": 2048, "bottleneck": 256, "weight_norm": True},
        },
        "losses": {"koleo": 0.1, "koleo_group": 16},
    },
}


def curate(images: Path, folder: Path) -> Path:
    """A curated dataset of ``images``."""
    command = [sys.executable, "-m", "components.curation", "--input", f"pool={images}", "--output", str(folder)]
    for setting in ("duplicates.near=false", "filters.min_side=8", "balance.fraction=1"):
        command += ["--set", f"curation.{setting}"]
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    return folder


def train_ours(objective: str, precision: str, dataset: str, out: str, turn: int) -> None:
    """This project's part: an endless training in turns."""
    from tests.benchmarks.turns import Turns
    from training.engine.loop import Trainer
    from training.recipe import load_recipe

    Turns(turn)
    settings = {**COMMON, **OBJECTIVES[objective], "batch": BATCH[objective], "precision": precision}
    settings["optimiser"] = {"learning_rate": {"peak": 1.0e-3}, "reference_batch": BATCH[objective]}
    recipe = Path(f"{out}.yaml")
    recipe.write_text(json.dumps(settings))
    Trainer(load_recipe(recipe), data=dataset, output=out).run()


def turn_of(process: subprocess.Popen[str]) -> float:
    """Seconds of the turn that ``process`` has just had."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("TURN "):
            return float(line.split()[1])
    raise SystemExit(f"{process.args}: ended with status {process.wait()}")


def in_turns(
    commands: dict[str, list[str]], rounds: int, folder: Path, environments: dict[str, dict[str, str]]
) -> dict[str, list[float]]:
    """Seconds of the turns of trainings that are started by ``commands`` and wait for each other.

    Each writes to a log of its own in ``folder`` and has its own additions to the environment.
    """
    common = {**os.environ, "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    running, seconds = {}, {kind: [] for kind in commands}
    for kind, command in commands.items():
        with (folder / f"{kind}.log").open("w") as log:
            running[kind] = subprocess.Popen(
                command,
                env={**common, **environments[kind]},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        turn_of(running[kind])  # warm, and now waiting
    for _ in range(rounds):
        for kind, process in running.items():
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            seconds[kind].append(turn_of(process))
    for process in running.values():
        process.communicate()
    return seconds


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="Python of an environment with lightly-train")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--objective", choices=OBJECTIVES, default="dino")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--turn", type=int, default=2, help="steps of a turn")
    parser.add_argument("--ours", nargs=2, metavar=("DATASET", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.ours:
        train_ours(options.objective, options.precision, *options.ours, options.turn)
        return 0
    batch = BATCH[options.objective]
    chosen = ["--objective", options.objective, "--precision", options.precision, "--turn", str(options.turn)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = curate(options.images, folder / "dataset")
        theirs = [options.peer, str(HERE / "peer_side.py"), "turns", *chosen, "--batch", str(batch)]
        commands = {
            "ours": [sys.executable, __file__, *chosen, "--ours", str(dataset), str(folder / "ours")],
            "theirs": [*theirs, "--images", str(options.images), "--out", str(folder / "theirs")],
        }
        environments = {"ours": {"PYTHONPATH": str(REPOSITORY)}, "theirs": {}}
        seconds = in_turns(commands, options.rounds, folder, environments)
    rates = {kind: options.turn * batch / np.array(each) for kind, each in seconds.items()}
    result = {
        "benchmark": "peer",
        "objective": options.objective,
        "precision": options.precision,
        "rounds": options.rounds,
        "ours_images_per_second": round(float(np.median(rates["ours"])), 2),
        "theirs_images_per_second": round(float(np.median(rates["theirs"])), 2),
        **ratio_of_rounds(rates["ours"], rates["theirs"], digits=3),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
