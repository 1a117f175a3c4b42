from __future__ import annotations

from pathlib import Path

import pytest

from components.common import accelerator
from components.common.accelerator import accelerator_name, default_device


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a CUDA build of PyTorch and two GPUs, as the driver describes them."""
    for number, name in enumerate(["NVIDIA H200", "NVIDIA L4"]):
        folder = tmp_path / f"0000:0{number}:00.0"
        folder.mkdir()
        (folder / "information").write_text(f"Model: \t\t {name}\nIRQ:   \t\t 16\n")
    monkeypatch.setattr(accelerator, "_DRIVER", tmp_path)
    monkeypatch.setattr(accelerator.importlib.metadata, "version", lambda name: "2.13.0+cu130")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def test_the_first_gpu_is_named(driver: Path) -> None:
    assert accelerator_name() == "NVIDIA H200" and default_device() == "cuda"


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_do_not_count(driver: Path, monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert accelerator_name() is None and default_device() == "cpu"


def test_a_cpu_build_uses_no_gpu(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator.importlib.metadata, "version", lambda name: "2.13.0+cpu")
    assert default_device() == "cpu"


def test_what_it_finds_is_what_torch_finds() -> None:
    import torch

    assert default_device() == ("cuda" if torch.cuda.is_available() else "cpu")
