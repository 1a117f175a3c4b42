"""The embedded line at its real size learns: three seeds, every network against what it must beat (half an hour)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.checkout import PeakMemory, make_checkout

NETWORKS = ("pretrained", "refined", "student-vit", "student-convnext")


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_network_beats_random_weights_raw_pixels_and_colours(seed: int, tmp_path: Path) -> None:
    settings = {name: {"overrides": {"seed": seed}} for name in ("pretraining", "refinement", "distillation")}
    checkout = make_checkout(tmp_path / "line", {"images": "sample:", "evaluation": "auto"}, settings)
    with PeakMemory() as memory:
        run = checkout.run("--no-dvc")
    top1 = {row["network"]: row["measures"]["knn_top1"] for row in run.summary["scores"]}
    random = {row["network"]: top1[row["random"]] for row in run.summary["scores"] if row["network"] in NETWORKS}
    print(f"seed {seed}: {run.summary['seconds']} s, {memory.peak / 2**30:.2f} GiB, {json.dumps(top1)}")
    for network in NETWORKS:
        for name, bar in (
            ("random", random[network]),
            ("raw pixels", top1["raw pixels"]),
            ("colours", top1["colour histogram"]),
        ):
            assert top1[network] > bar, f"{network} {top1[network]:.3f} is not above {name} {bar:.3f}"
    assert run.summary["verdict"]["passed"]
    assert all(model["champion"] == model["version"] for model in run.summary["registered"].values())
    assert memory.peak < 6 << 30
    assert checkout.processes() == []
