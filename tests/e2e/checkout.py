"""A checkout of its own with a shrunken line, images that the tests cut themselves, and runs of the line there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = (
    "foundry",
    "training",
    "serving",
    "components",
    "pipelines",
    "params.yaml",
    "dvc.yaml",
    ".dvcignore",
    ".gitignore",
)
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "brick", "gravel")

CROPS = {"global_size": 32, "local_size": 16, "local_count": 2}
HEADS = {name: {"prototypes": 64, "hidden": 32, "bottleneck": 16} for name in ("dino", "ibot")}
SMALL = {
    "pretraining": {
        "overrides": {
            "steps": 16,
            "batch": 16,
            "model": {"arch": "vit", "dim": 32, "depth": 2, "heads": 2, "patch_size": 8, "registers": 1},
            "crops": CROPS,
            "heads": HEADS,
            "cadence": {"log": 2, "checkpoint": 2, "evaluate": 8},
        }
    },
    "refinement": {
        "overrides": {
            "steps": 3,
            "batch": 16,
            "crops": {**CROPS, "gram_size": 64},
            "heads": HEADS,
            "cadence": {"log": 1, "checkpoint": 2, "evaluate": 0},
        }
    },
    "distillation": {
        "overrides": {
            "steps": 3,
            "batch": 16,
            "students": [
                {
                    "name": "vit",
                    "model": {"arch": "vit", "dim": 16, "depth": 1, "heads": 2, "patch_size": 8, "registers": 0},
                },
                {"name": "convnext", "model": {"arch": "convnext", "depths": [1, 1, 1, 1], "dims": [4, 8, 16, 32]}},
            ],
            "crops": CROPS,
            "heads": HEADS,
            "cadence": {"log": 1, "checkpoint": 2, "evaluate": 0},
        }
    },
    "evaluation": {"linear_steps": 20, "segmentation_steps": 10, "unlabelled_images": 24, "pictures": 2},
    "registration": {"golden_images": 2},
}


PURE = ("curation", "pretraining", "refinement", "distillation", "evaluation")
ACTING = ("registration", "deployment")


@dataclass(frozen=True)
class Run:
    """A run that ended well."""

    printed: str
    summary: dict[str, Any]

    def step(self, name: str) -> dict[str, Any]:
        """What the summary says of one step."""
        (found,) = (step for step in self.summary["steps"] if step["step"] == name)
        return found

    def made(self) -> set[str]:
        """The steps that were not reused."""
        return {step["step"] for step in self.summary["steps"] if not step["reused"]}


@dataclass(frozen=True)
class Checkout:
    """A copy of the sources in Git, with settings of its own."""

    folder: Path
    environment: Mapping[str, str]

    @property
    def home(self) -> Path:
        return self.folder / ".foundry"

    def python(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """``python -m arguments`` in the checkout."""
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.folder,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
        )

    def run(self, *arguments: str) -> Run:
        """``python -m pipelines run``, which must end with status 0."""
        before = set(self.folder.glob("runs/*"))
        done = self.python("pipelines", "run", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        (folder,) = set(self.folder.glob("runs/*")) - before
        return Run(done.stdout, json.loads((folder / "summary.json").read_text()))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The same in a process group of its own, not waited for."""
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def processes(self) -> list[str]:
        """Command lines of all processes that belong to this checkout's environment."""
        mark = f"FOUNDRY_HOME={self.home}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
        return found


def make_checkout(folder: Path, inputs: Mapping[str, str], settings: Mapping[str, Any] = SMALL) -> Checkout:
    """Copy the sources to ``folder`` and commit them there; ``inputs`` and ``settings`` go into its params.yaml."""
    folder.mkdir(parents=True)
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "build"))
        else:
            shutil.copy(source, folder / name)
    (folder / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(REPOSITORY / ".dvc" / name, folder / ".dvc" / name)
    document = yaml.safe_load((folder / "params.yaml").read_text())
    document["inputs"] = dict(inputs)
    for section, values in settings.items():
        document[section].update(values)
    (folder / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    identity = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-q", "-m", "sources")):
        subprocess.run(["git", *command], cwd=folder, check=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "FOUNDRY_"))}
    for name in ("FOUNDRY_TRITON", "FOUNDRY_SERVING_ENV"):
        environment[name] = os.environ[name]
    return Checkout(
        folder, {**environment, "FOUNDRY_HOME": str(folder / ".foundry"), "MLFLOW_DISABLE_TELEMETRY": "true"}
    )


def cut_images(folder: Path, names: Sequence[str], each: int, *, lower_half: bool) -> list[tuple[str, str]]:
    """Crops of photographs that scikit-image carries, from one half of each; returns (file name, label) rows."""
    import numpy as np
    import skimage.data
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names:
        picture = np.asarray(Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize((400, 400)))
        half = picture[200:] if lower_half else picture[:200]
        for number in range(each):
            top, left = (37 * number) % 120, (61 * number) % 320
            file = f"{name}-{'low' if lower_half else 'up'}-{number:02d}.png"
            Image.fromarray(half[top : top + 80, left : left + 80]).save(folder / file)
            rows.append((file, name))
    return rows


class PeakMemory:
    """The largest memory (proportional set size, bytes) that this process's children had together."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.5):
            total = 0
            for child in me.children(recursive=True):
                try:
                    total += child.memory_full_info().pss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
