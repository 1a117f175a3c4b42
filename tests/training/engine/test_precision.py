"""bf16 is for processors that have it; elsewhere a run says that it uses float32, and does."""

from tests.training.small_runs import events, rows, small_recipe
from training.engine import parallel
from training.engine.loop import Trainer
from training.recipe import Recipe


def losses(data, folder, precision):
    recipe = Recipe.model_validate(small_recipe(precision=precision, steps=2, workers=0))
    Trainer(recipe, str(data), str(folder)).run()
    return [row["loss"] for row in rows(folder) if "loss" in row]


def test_bf16_where_the_processor_has_it(data, tmp_path, monkeypatch):
    found = {}
    for has in (True, False):
        monkeypatch.setattr(parallel, "has_bf16", lambda device, has=has: has)
        for precision in ("fp32", "bf16", "bf16-emulated"):
            folder = tmp_path / f"{precision}-{has}"
            found[precision, has] = losses(data, folder, precision)
            assert ("float32" in events(folder)) == (precision == "bf16" and not has)
    assert found["bf16", False] == found["fp32", False] == found["fp32", True]
    assert found["bf16", True] == found["bf16-emulated", True] == found["bf16-emulated", False]
    assert found["bf16", True] != found["fp32", True]
