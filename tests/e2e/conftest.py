"""Images, labels and a checkout for the tests of the whole line."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.checkout import PHOTOGRAPHS, Checkout, cut_images, make_checkout


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
