"""A checkout of its own with a shrunken line, and images that the tests cut themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
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


def make_checkout(folder: Path, inputs: Mapping[str, str]) -> Checkout:
    """Copy the sources to ``folder`` and commit them there; ``inputs`` are its images and labels."""
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
    settings = yaml.safe_load((folder / "params.yaml").read_text())
    settings["inputs"] = dict(inputs)
    for section, values in SMALL.items():
        settings[section].update(values)
    (folder / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
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


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 images without labels, an exact copy of one of them and a broken file."""
    folder = tmp_path_factory.mktemp("pool")
    rows = cut_images(folder, PHOTOGRAPHS, 12, lower_half=False)
    shutil.copy(folder / rows[0][0], folder / "copy.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    return folder


@pytest.fixture(scope="session")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled images: train from the upper halves of the photographs, test from the lower ones."""
    folder = tmp_path_factory.mktemp("labels")
    train = cut_images(folder, PHOTOGRAPHS, 4, lower_half=False)
    test = cut_images(folder, PHOTOGRAPHS, 3, lower_half=True)
    lines = [f"{file},{label},train" for file, label in train] + [f"{file},{label},test" for file, label in test]
    (folder / "labels.csv").write_text("filename,label,split\n" + "\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def checkout(pool: Path, labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    made = make_checkout(tmp_path_factory.mktemp("line") / "checkout", {"images": str(pool), "evaluation": str(labels)})
    yield made
    made.python("serving", "stop")
    assert made.processes() == []
