"""A recipe small enough to run many times in a test, and ways to run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from foundry.lifetime import free_port

MODEL = {
    "arch": "vit",
    "dim": 32,
    "depth": 2,
    "heads": 2,
    "patch_size": 8,
    "registers": 1,
    "drop_path": 0.3,
    "layer_scale": 0.5,
}
HEADS = {kind: {"prototypes": 24, "hidden": 32, "bottleneck": 16} for kind in ("dino", "ibot")}


def small_recipe(**changes: object) -> dict[str, object]:
    """A pretraining recipe of seconds, with every source of randomness on; ``changes`` replace top-level settings."""
    return {
        "name": "small",
        "stage": "pretrain",
        "steps": 8,
        "batch": 8,
        "model": MODEL,
        "crops": {"global_size": 32, "local_size": 16, "local_count": 2},
        "heads": HEADS,
        "losses": {"koleo_group": 4},
        "optimiser": {"learning_rate": {"peak": 1e-3, "start": 0.0, "warmup_steps": 4}, "reference_batch": 8},
        "cadence": {"log": 1, "checkpoint": 2, "evaluate": 0},
        "device": "cpu",
        "workers": 2,
        **changes,
    }


def write_recipe(path: Path, **changes: object) -> Path:
    """:func:`small_recipe` as a file."""
    path.write_text(yaml.safe_dump(small_recipe(**changes)))
    return path


def command(processes: int, *arguments: object) -> list[str]:
    """The command line of a run with that many processes."""
    start = [sys.executable, "-m", "training"]
    if processes > 1:
        port = str(free_port())
        launcher = ["torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", port]
        start = [sys.executable, "-m", *launcher, "-m", "training"]
    return [*start, *map(str, arguments)]


def train(processes: int, recipe: Path, data: Path, output: Path, *more: object) -> None:
    """Run to the end; an unexpected exit status is a failed assertion with the output."""
    arguments = ("--recipe", recipe, "--data", data, "--output", output, *more)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command(processes, *arguments), capture_output=True, text=True, env=environment, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def rows(run: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def events(run: Path) -> list[str]:
    """The kinds of a run's events, in order."""
    return [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
