"""Losses and gradients do not depend on the number of processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).with_name("share_of_losses.py")
ROOT = Path(__file__).resolve().parents[3]


def run(processes: int, folder: Path) -> list[dict[str, torch.Tensor]]:
    """What each of ``processes`` processes computed."""
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    outputs = [folder / f"{rank}.pt" for rank in range(processes)]
    started = [
        subprocess.Popen(
            [sys.executable, PROGRAM, str(rank), str(processes), str(folder / "rendezvous"), str(output)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, output in enumerate(outputs)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, "\n".join(errors)
    return [torch.load(output, weights_only=True) for output in outputs]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return run(1, tmp_path_factory.mktemp("single") / "one")[0]


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_give_the_values_and_gradients_of_one(
    processes: int, one: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    several = run(processes, tmp_path / "several")
    assert {name.split()[1] for name in one if name.startswith("value")} >= {"dino_local", "ibot", "koleo_8", "gram"}
    for name, expected in one.items():
        for result in several:
            assert result[name].shape == expected.shape
            difference = (result[name] - expected).norm() / expected.norm()
            assert difference <= 1e-5, f"{name}: {difference:.2e}"
    assert all(torch.isfinite(tensor).all() and tensor.norm() > 0 for tensor in one.values())
    assert all(torch.equal(several[0][name], other[name]) for name in one for other in several)


def test_koleo_looks_beyond_its_process(one: dict[str, torch.Tensor]) -> None:
    values = [float(one[f"value koleo_{size}"]) for size in (2, 4, 8)]
    assert values == sorted(values)  # larger groups have nearer neighbours
    assert values[2] > values[0] + 0.01
    assert values[0] != pytest.approx(values[1])
