"""However a batch is divided (processes, parts, shards) and blocks are run, the first steps are the same."""

import numpy as np
import pytest

from tests.training.small_runs import rows, train, write_recipe

STEPS = 20
NAMES = ("loss", "dino_global", "dino_local", "ibot", "koleo")


def losses(run):
    return np.array([[row[name] for name in NAMES] for row in rows(run) if "loss" in row])


def run(data, folder, processes, **changes):
    changes = {"steps": STEPS, "workers": 0, "cadence": {"log": 1, "checkpoint": STEPS, "evaluate": 0}, **changes}
    train(processes, write_recipe(folder / "recipe.yaml", **changes), data, folder / "run")
    return losses(folder / "run")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Losses of one process that takes the whole batch at once."""
    found = run(data, tmp_path_factory.mktemp("whole"), 1)
    assert found.shape == (STEPS, len(NAMES)) and np.isfinite(found).all()
    return found


@pytest.mark.parametrize(
    ("processes", "changes"),
    [
        (2, {}),
        (4, {}),
        (1, {"accumulate": 2}),  # KoLeo groups of 4 lie within the parts of 4
        (1, {"accumulate": 4}),  # and reach over parts of 2
        (2, {"accumulate": 2}),  # and over parts of 2 of processes of 4
        (3, {}),  # 3, 3 and 2 images; KoLeo groups reach over processes
        (3, {"accumulate": 2}),  # parts of 2, 1, 2, 1, 1 and 1
        (3, {"parallel": "fsdp"}),
        (2, {"parallel": "fsdp"}),
        (2, {"parallel": "fsdp", "accumulate": 2}),
        (1, {"recompute": "full"}),
        (1, {"recompute": "selective"}),
    ],
    ids=str,
)
def test_division_never_changes_the_losses(data, whole, tmp_path, processes, changes):
    np.testing.assert_allclose(run(data, tmp_path, processes, **changes), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("processes", "changes"), [(2, {}), (2, {"parallel": "fsdp"})], ids=str)
def test_division_changes_little_in_bfloat16(data, tmp_path, processes, changes):
    one = run(data, subfolder(tmp_path, "one"), 1, precision="bf16-emulated", steps=6)
    found = run(data, subfolder(tmp_path, "divided"), processes, precision="bf16-emulated", steps=6, **changes)
    np.testing.assert_allclose(found, one, rtol=2e-2, atol=2e-2)


def test_colours_by_the_device(data, whole, tmp_path):
    one = run(data, subfolder(tmp_path, "one"), 1, distort_on="device", steps=6)
    divided = run(data, subfolder(tmp_path, "divided"), 2, distort_on="device", accumulate=2, steps=6)
    np.testing.assert_allclose(divided, one, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one[:3], whole[:3], rtol=1e-2, atol=1e-2)  # a few levels of 255 are different


def test_compiled_blocks_compute_the_same(data, whole, tmp_path):
    found = run(data, tmp_path, 1, compile=True, steps=4)
    np.testing.assert_allclose(found[:3], whole[:3], rtol=1e-4, atol=1e-6)  # another learning rate at the last step


def test_a_running_centre_is_one_of_the_whole_batch(data, tmp_path):
    teacher = {"centring": "softmax", "momentum": {"peak": 0.9}, "temperature": {"peak": 0.07}}
    one = run(data, subfolder(tmp_path, "one"), 1, teacher=teacher)
    two = run(data, subfolder(tmp_path, "two"), 2, teacher=teacher, accumulate=2)
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)


def subfolder(tmp_path, name):
    (tmp_path / name).mkdir()
    return tmp_path / name
