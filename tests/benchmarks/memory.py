"""Memory of a training step by part, measured on this machine and predicted by training.memory.

    python tests/benchmarks/memory.py [--sizes NAME ...] [--batch 4] [--prototypes 65521]

One process, CPU, float32, two steps with 2 crops of 224 and 8 of 96 pixels on made images. State is the storage of the
tensors themselves; scores are the peak of living storage as wide as the prototypes, followed operation by operation.
The last line is one JSON object: bytes by size and part, (measured, predicted, measured / predicted).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))


class LivingScores(TorchDispatchMode):
    """Follows the storage of results whose last dimension is ``width``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.now, self.peak = width, 0, 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.t.default:  # the prototypes themselves, turned round
            return result
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and tensor.shape[-1] == self.width:
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._gone, storage._cdata)
        return result

    def _gone(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


def stored(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the different storages of ``tensors``."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def measure(size: str, batch: int, prototypes: int, folder: Path) -> dict[str, tuple[int, int, float]]:
    """(measured, predicted, ratio) of each part."""
    from tests.training.curated import write_dataset
    from training.engine.loop import Trainer
    from training.memory import memory
    from training.recipe import load_recipe

    changes: dict[str, Any] = {
        "steps": 2,
        "batch": batch,
        "model": {"arch": size},
        "heads": {"dino": {"prototypes": prototypes}},
        "losses": {"koleo_group": batch},
        "teacher": {"centring": "sinkhorn"},
        "cadence": {"log": 100, "checkpoint": 100, "evaluate": 0, "coherence_images": 0},
        **{"precision": "fp32", "parallel": "auto", "workers": 0, "device": "cpu"},
    }
    recipe = load_recipe("dinov2_vitl16_short", changes)
    trainer = Trainer(recipe, data=str(write_dataset(folder / "dataset")), output=str(folder / "run"))
    (learner,) = trainer.learners
    found: dict[str, int] = {}
    masked = []
    update, step = learner.update, trainer._step

    def watched_update(*arguments: Any) -> None:
        found["gradients"] = stored(p.grad for p in learner.network.parameters() if p.grad is not None)
        update(*arguments)

    def watched_step(number: int, given: Any) -> dict[str, float]:
        masked.append(int(given.masks.sum()))
        with LivingScores(prototypes) as living:
            values = step(number, given)
        found["scores"] = max(found.get("scores", 0), living.peak)
        return values

    learner.update, trainer._step = watched_update, watched_step  # type: ignore[method-assign]
    trainer._export = lambda *_, **__: None  # type: ignore[method-assign]
    trainer.run()
    states = learner.optimiser.state.values()
    found["student"] = stored(learner.network.parameters())
    found["average"] = stored(learner.average.parameters())
    found["optimiser"] = stored(state[name] for state in states for name in ("exp_avg", "exp_avg_sq"))
    predicted = memory(recipe, masked=max(masked))
    parts = ("student", "gradients", "optimiser", "average", "scores")
    wanted = {part: getattr(predicted, part) for part in parts}
    return {part: (found[part], wanted[part], round(found[part] / wanted[part], 3)) for part in parts}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--prototypes", type=int, default=65521, help="of no other dimension's size")
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {"benchmark": "memory", "batch": options.batch, "prototypes": options.prototypes}
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            result[size] = measure(size, options.batch, options.prototypes, Path(folder))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
