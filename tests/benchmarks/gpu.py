"""One training step on a GPU: images a second, use of the card's arithmetic, memory, and the time of each part.

    python tests/benchmarks/gpu.py [--recipe dinov3_vitl16] [--batch 64] [--rounds 10] [--device cuda] [--set a.b=c ...]

One process and the trainer's own step, on a made batch in page-locked memory, so that no loader is measured. A round is
a large matrix product, then ``--turn`` steps: both rates, and the utilisation as their ratio, are of the same moment.
Warming up (compilation) comes before and is timed apart; steps that write a log line are left out. On a CPU it runs to
be tested: nothing there says what a GPU does.

Work is what the model needs: floating-point operations of matrix products, attention and convolutions, a
multiplication and an addition counting two, in the student's forward and backward pass over all crops and the teacher's
forward pass over the global crops, both with their heads. Of stochastic depth only the images that take a branch count.
What is computed again (activations, attention's scores in a fused backward pass) does not count, nor do losses,
Sinkhorn-Knopp, the optimiser and the average. Utilisation is that work over what the card does of one product of 8192^3
in the recipe's precision, not over the number on its data sheet.

Parts are timed in rounds of their own, by marks in the card's queue (on a CPU by the clock) wherever one part ends:
nothing waits for a mark, and time in which the card has nothing to do belongs to the part that leaves it so. ``host``
is the time that Python spends in the part, waiting for the card included. Memory is the peak of PyTorch's allocations
in steps after the warm-up, null on a CPU. The last line, after a table of the parts for people, is one JSON object;
intervals hold 95 of 100 medians of resampled rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import importlib
import itertools
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from foundry.errors import UserError, run_command  # noqa: E402
from foundry.settings import apply_overrides, merge  # noqa: E402
from tests.benchmarks.ratios import median_of_rounds, ratio_of_rounds, significant  # noqa: E402
from training.data.loader import Batch, colours_by_device  # noqa: E402
from training.engine.learner import Learner  # noqa: E402
from training.engine.loop import Trainer  # noqa: E402
from training.recipe import Recipe, load_recipe  # noqa: E402

SIDE = {"cuda": 8192, "cpu": 512}
"""Of the matrices of the product."""
PRODUCTS = {"cuda": 50, "cpu": 2}
"""In a round."""
REST = "rest"
PARTS = {
    "copy": ("training.data.loader:Batch.parts", "training.data.loader:Batch.to"),
    "colours": ("training.engine.views:distort_batch",),
    "views": (
        "training.engine.views:Views.__init__",
        "training.engine.views:Views.global_crops",
        "training.engine.views:Views.local_crops",
    ),
    "draws": (
        "training.models.draws:StepDraws.for_images",
        "training.models.blocks:Packing.kept",
    ),
    "teacher": ("training.engine.teaching:Teacher.targets",),
    "forward": ("training.engine.learner:Learner.losses",),
    "backward": ("training.engine.learner:Learner.backward",),
    "clipping": ("training.engine.learner:Learner.clip",),
    "optimiser": ("training.engine.learner:Learner.update",),
    "average": ("training.engine.learner:move_average",),
}
"""The functions whose time is a part's, less that of other parts called inside them. ``forward`` includes the losses,
``draws`` is the choice of the crops that take a branch; everything else of a step is the rest."""


class SingleSteps(Trainer):
    """A trainer whose steps are taken one at a time on a made batch; it exports and logs nothing."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        from tests.training.curated import write_dataset

        super().__init__(recipe, data=str(write_dataset(folder / "dataset")), output=str(folder / "run"))
        self.batch = made_batch(self.recipe, self.slots, self.stride, colours_by_device(self.recipe, self.device))
        if self.device.type == "cuda":
            self.batch = self.batch.pin_memory()
        self._numbers = itertools.count()

    def __call__(self) -> None:
        """Take the next step. Raises :class:`UserError` where it was skipped, its gradient not being finite."""
        number = next(self._numbers)
        self._step(number, self.batch)
        if self.watch.skipped:
            raise UserError(f"step {number}: its gradient is not finite, and a skipped step is no measurement")

    def _untrained(self, learner: Learner) -> None:
        pass

    def _due(self, step: int, every: int) -> bool:
        return False


def made_batch(recipe: Recipe, slots: range, stride: int, by_device: bool) -> Batch:
    """What the loader would give of noise: crops of the recipe's sizes, masks of its step 0."""
    from training.data.augment import Views
    from training.data.distortion import COLUMNS, Distortion
    from training.data.loader import Collate, sizes_at

    rng, sizes = np.random.default_rng(0), sizes_at(recipe, 0)

    def crops(count: int, side: int) -> np.ndarray:
        return rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)

    def views() -> Views:
        rows = [each.row() for each in Distortion.draw_all(recipe.crops, rng)]
        distortions = np.stack(rows) if by_device else np.zeros((0, COLUMNS), np.float32)
        return Views(
            crops(2, sizes.global_size), crops(recipe.crops.local_count, sizes.local_size), crops(0, 1), distortions
        )

    return Collate(recipe, slots, stride)([(0, views(), []) for _ in slots])


def needed_work(recipe: Recipe, batch: Batch) -> dict[str, int]:
    """Floating-point operations of one step on ``batch``, by part, counted on networks without weights."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from training.engine.learner import build_network
    from training.engine.views import Views
    from training.models.architectures import architecture
    from training.models.draws import StepDraws

    assert recipe.model is not None
    network = build_network(architecture(recipe.model), recipe.heads, recipe.seed, "meta")
    views = Views(batch.to(torch.device("meta")), recipe.crops, scale=1)
    masks, masked = (views.batch.masks, views.batch.masked) if recipe.losses.ibot else (None, None)
    crops = [views.global_crops(), *([views.local_crops()] if recipe.crops.local_count else [])]
    draws = StepDraws.for_images(recipe.seed, 0, range(recipe.batch), recipe.batch, (2, recipe.crops.local_count))
    work = {}
    with sdpa_kernel(SDPBackend.MATH):  # in plain products, whose backward pass computes nothing again
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.eval()(crops[:1], None, masked)
        work["teacher"] = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            output = network.train()(crops, [masks, None][: len(crops)], masked, draws)
        work["forward"] = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            sum(scores.sum() for scores in (output.cls, output.patches) if scores is not None).backward()
        work["backward"] = counter.get_total_flops()
    return work


def product(recipe: Recipe, device: torch.device) -> tuple[Callable[[], object], int]:
    """(a matrix product in the precision of ``recipe``, its floating-point operations)."""
    side, dtype = SIDE[device.type], torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    result = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=result), 2 * side**3


def synchronise(device: torch.device) -> None:
    """Wait until ``device`` has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Seconds of one ``work`` of as many as ``times`` in a row."""
    synchronise(device)
    begun = time.perf_counter()
    for _ in range(times):
        work()
    synchronise(device)
    return (time.perf_counter() - begun) / times


class Marks:
    """Marks in the queue of ``device`` where the work of one part ends and another's begins."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._running = device, [REST]
        self._marks: list[tuple[str, float, Any]] = []

    @contextlib.contextmanager
    def placed(self) -> Iterator[None]:
        """Inside it, the functions of :data:`PARTS` set marks."""
        with contextlib.ExitStack() as stack:
            for part, places in PARTS.items():
                for place in places:
                    module, _, path = place.partition(":")
                    owner: Any = importlib.import_module(module)
                    *classes, name = path.split(".")
                    for each in classes:
                        owner = getattr(owner, each)
                    stack.enter_context(mock.patch.object(owner, name, self._marked(part, owner.__dict__[name])))
            yield

    def step(self, take: Callable[[], object]) -> dict[str, tuple[float, float]]:
        """(seconds of the device, of the host) by part of one step that ``take`` takes inside :meth:`placed`."""
        synchronise(self.device)
        self._marks = []
        self._mark()
        take()
        self._mark()
        synchronise(self.device)
        spent = {part: (0.0, 0.0) for part in (*PARTS, REST)}
        for (part, host, event), (_, host_end, event_end) in itertools.pairwise(self._marks):
            on_host = host_end - host
            on_device = on_host if event is None else event.elapsed_time(event_end) / 1000
            spent[part] = spent[part][0] + on_device, spent[part][1] + on_host
        return spent

    def _mark(self) -> None:
        event = None
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        self._marks.append((self._running[-1], time.perf_counter(), event))

    def _marked(self, part: str, function: Any) -> Any:
        if isinstance(function, classmethod):
            return classmethod(self._marked(part, function.__func__))

        @functools.wraps(function)
        def marked(*arguments: Any, **named: Any) -> Any:
            self._running.append(part)
            self._mark()
            try:
                return function(*arguments, **named)
            finally:
                self._running.pop()
                self._mark()

        return marked


def table_of_parts(steps: SingleSteps, rounds: int, work: dict[str, int]) -> dict[str, dict[str, float]]:
    """Medians over ``rounds`` steps: seconds, their share of the step and the host's seconds of every part."""
    marks = Marks(steps.device)
    with marks.placed():
        found = [marks.step(steps) for _ in range(rounds)]
    spent = {part: np.median([each[part] for each in found], axis=0) for part in found[0]}
    whole = sum(seconds for seconds, _ in spent.values())
    table = {}
    for part, (seconds, host) in spent.items():
        table[part] = {"seconds": significant(seconds), "share": round(seconds / whole, 3), "host": significant(host)}
        if part in work:
            table[part]["tflops"] = significant(work[part] / seconds / 1e12)
    return table


def machine(device: torch.device) -> dict[str, object]:
    """What was measured on, with what and when."""
    driver = None
    if device.type == "cuda" and shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(command, capture_output=True, text=True, check=False).stdout.partition("\n")[0]
    on_card = device.type == "cuda"
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if on_card else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_card else None,
        "driver": driver,
    }


def measured_recipe(name: str, batch: int, device: str, settings: list[str]) -> Recipe:
    """The recipe, with no probe to prepare. Raises :class:`UserError` for one that starts from an earlier run."""
    own = {"batch": batch, "device": device, "workers": 0, "cadence": {"evaluate": 0, "coherence_images": 0}}
    recipe = load_recipe(name, merge(own, apply_overrides({}, settings)))
    if recipe.stage != "pretrain" or recipe.warm_start or recipe.mixture or recipe.crops.mixture:
        raise UserError(
            f"--recipe {recipe.name}: only a pretraining from random weights is measured here, "
            "on one dataset with one combination of crop sizes"
        )
    return recipe


def measure(recipe: Recipe, folder: Path, rounds: int, turn: int, warm_up: int) -> dict[str, Any]:
    """Everything that is measured of ``recipe``; ``folder`` takes what a trainer writes."""
    steps = SingleSteps(recipe, folder)
    device = steps.device
    work = needed_work(recipe, steps.batch)
    warming = warm_up * seconds_of(steps, warm_up, device)
    peak = None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        seconds_of(steps, turn, device)
        peak = torch.cuda.max_memory_allocated(device)
    multiply, operations = product(recipe, device)
    seconds_of(multiply, PRODUCTS[device.type], device)
    products, taken = [], []
    for _ in range(rounds):
        products.append(seconds_of(multiply, PRODUCTS[device.type], device))
        taken.append(seconds_of(steps, turn, device))
    seconds = np.array(taken)
    reached, attainable = sum(work.values()) / seconds / 1e12, operations / np.array(products) / 1e12
    gigaflops = {part: significant(count / recipe.batch / 1e9, 6) for part, count in work.items()}
    return {
        **machine(device),
        "warm_up_seconds": round(warming, 2),
        "gflop_per_image": gigaflops | {"whole": significant(sum(work.values()) / recipe.batch / 1e9, 6)},
        "images_per_second": median_of_rounds(recipe.batch / seconds),
        "step_seconds": median_of_rounds(seconds),
        "model_tflops": median_of_rounds(reached),
        "product_side": SIDE[device.type],
        "product_tflops": median_of_rounds(attainable),
        "utilisation": ratio_of_rounds(reached, attainable, digits=3),
        "peak_memory_bytes": peak,
        "parts": table_of_parts(steps, rounds, work),
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="dinov3_vitl16")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--turn", type=int, default=4, help="steps of a round")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before the first round")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="a.b=c")
    options = parser.parse_args(arguments)
    recipe = measured_recipe(options.recipe, options.batch, options.device, options.settings)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(recipe, Path(folder), options.rounds, options.turn, options.warm_up)
    sizes = recipe.crops.sizes()[0]
    result = {
        "benchmark": "gpu",
        "recipe": recipe.name,
        "settings": options.settings,
        "crops": f"2x{sizes.global_size} + {recipe.crops.local_count}x{sizes.local_size}",
        "batch": recipe.batch,
        "precision": recipe.precision,
        "compile": recipe.compile,
        "recompute": recipe.recompute,
        "rounds": options.rounds,
        "turn": options.turn,
        **found,
    }
    print("part          ms  per cent  host ms  TFLOP/s")
    for part, row in found["parts"].items():
        rate = f"{row['tflops']:9.4g}" if "tflops" in row else ""
        print(f"{part:9}{1e3 * row['seconds']:7.1f}{100 * row['share']:10.1f}{1e3 * row['host']:9.1f}{rate}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
