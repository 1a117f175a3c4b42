"""The benchmark of a training step on a GPU, on a CPU: its count of the work, its parts, its last line."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foundry.errors import UserError
from tests.benchmarks.gpu import PARTS, REST, Marks, SingleSteps, main, measured_recipe, needed_work
from tests.training.small_runs import HEADS, MODEL, write_recipe
from training.recipe import Recipe

BATCH = 8


@pytest.fixture
def small(tmp_path: Path) -> Recipe:
    """A recipe with stochastic depth, and no matrix product in its losses and targets."""
    path = write_recipe(tmp_path / "recipe.yaml", losses={"koleo": 0.0}, teacher={"centring": "softmax"})
    return measured_recipe(str(path), BATCH, "cpu", [])


def test_work_is_that_of_a_real_step(small: Recipe, tmp_path: Path) -> None:
    steps = SingleSteps(small, tmp_path)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        steps()
    assert sum(needed_work(small, steps.batch).values()) == counter.get_total_flops()


def test_work_is_that_of_the_formula(small: Recipe, tmp_path: Path) -> None:
    """Two operations for each weight and token, and for each pair of tokens and channel in both products of attention.

    A backward pass is two forward passes, but for the pixels, which need no gradient.
    """
    batch = SingleSteps(small, tmp_path).batch
    width, layers, patch, prefix = 32, 2, 8, 2
    wanted = {"dim": width, "depth": layers, "patch_size": patch, "registers": prefix - 1, "drop_path": 0.3}
    assert wanted.items() <= MODEL.items()
    masked = len(batch.masked)
    patches = [(2 * BATCH, 16), (2 * BATCH, 4)]  # crops of 32 and of 16 pixels, and the patches of each

    def embedding(groups: list[tuple[int, int]]) -> int:
        return sum(2 * 3 * patch**2 * width * crops * count for crops, count in groups)

    def blocks(groups: list[tuple[int, int]], kept: float) -> int:
        weights = (3 + 1 + 4 + 4) * width**2
        tokens = [(int(crops * kept), count + prefix) for crops, count in groups]
        return layers * sum(crops * (2 * weights * count + 4 * width * count**2) for crops, count in tokens)

    def heads(rows: int) -> int:
        head = HEADS["dino"]
        hidden, bottleneck = head["hidden"], head["bottleneck"]
        return 2 * rows * (width * hidden + hidden**2 + hidden * bottleneck + bottleneck * head["prototypes"])

    student = blocks(patches, 0.7) + heads(4 * BATCH + masked)
    assert needed_work(small, batch) == {
        "teacher": embedding(patches[:1]) + blocks(patches[:1], 1.0) + heads(2 * BATCH + masked),
        "forward": embedding(patches) + student,
        "backward": embedding(patches) + 2 * student,
    }


def test_parts_add_up_to_a_step(small: Recipe, tmp_path: Path) -> None:
    steps = SingleSteps(small.model_copy(update={"distort_on": "device"}), tmp_path)
    steps()
    marks = Marks(steps.device)
    with marks.placed():
        begun = time.perf_counter()
        spent = marks.step(steps)
        whole = time.perf_counter() - begun
    assert list(spent) == [*PARTS, REST] and all(seconds > 0 for seconds, _ in spent.values())
    assert sum(seconds for seconds, _ in spent.values()) == pytest.approx(whole, rel=0.2)


def test_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", precision="bf16")
    arguments = ["--recipe", str(recipe), "--device", "cpu", "--batch", str(BATCH), "--rounds", "2", "--turn", "1"]
    assert main([*arguments, "--warm-up", "1", "--set", "crops.local_count=3"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert [line.split()[0] for line in table] == ["part", *found["parts"]]
    assert (found["benchmark"], found["batch"], found["crops"]) == ("gpu", BATCH, "2x32 + 3x16")
    assert found["device"] and found["date"] and found["torch"] and found["settings"] == ["crops.local_count=3"]
    assert found["peak_memory_bytes"] is found["cuda"] is found["driver"] is None
    for name in ("images_per_second", "step_seconds", "model_tflops", "product_tflops"):
        low, high = found[name]["interval"]
        assert 0 < low <= found[name]["median"] <= high
    reached = found["gflop_per_image"]["whole"] * found["images_per_second"]["median"] / 1000
    assert found["model_tflops"]["median"] == pytest.approx(reached, rel=1e-3)
    assert set(found["utilisation"]) == {"ratio", "interval"}


def test_refuses_what_starts_from_an_earlier_run() -> None:
    with pytest.raises(UserError, match="only a pretraining from random weights"):
        measured_recipe("dinov3_vit7b16_gram", 2048, "cpu", [])
