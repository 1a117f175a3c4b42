"""How often the gates against a champion are right: samples from known truths, judged as in an evaluation.

    python tests/benchmarks/gates.py [--images 2000] [--discordant 0.2] [--repeats 200] [--coverage 400]

Networks answer each test image right or wrong; a share of the images is answered right by one of the two only. Gates at
a certainty of 95 %: how often a challenger that is no better passes superiority (5 % is promised), and one that is 3
points better (its power); how often one that is as good passes non-inferiority with the default margin, and one that is
worse by the whole margin does (5 % is promised). Then how often the one-sided bound misses the truth, on either side,
for accuracies, root mean squares and mIoU with rare classes. Two minutes on one core. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from components.evaluation.bootstrap import compare  # noqa: E402
from components.evaluation.config import GateSettings  # noqa: E402
from components.evaluation.gates import judge  # noqa: E402
from components.evaluation.subjects import Subject  # noqa: E402
from training.probes.outcome import Items  # noqa: E402

Pair = tuple[Items, Items]
SUBJECTS = [
    Subject("random", "", "random", Path()),
    Subject("champion", "", "champion", Path(), "vit"),
    Subject("student", "", "student", Path(), "vit", "random", "champion"),
]


def discordant_pair(generator: np.random.Generator, images: int, discordant: float, gain: float) -> Pair:
    """Answers of a challenger and a champion: right by one alone in ``discordant``, true accuracies ``gain`` apart."""
    only_one, only_other = (discordant + gain) / 2, (discordant - gain) / 2
    both = 0.6 - discordant / 2
    kind = generator.choice(4, images, p=[only_one, only_other, both, 1 - discordant - both])
    return Items.of_mean((kind == 0) | (kind == 2)), Items.of_mean((kind == 1) | (kind == 2))


def passes(pair: Pair, settings: GateSettings, name: str) -> bool:
    """Whether the gate ``name`` of a verdict on this pair passed."""
    values = {"random": 0.0, "raw pixels": 0.0, "colour histogram": 0.0}
    values |= {"student": float(pair[0].measure()[0]), "champion": float(pair[1].measure()[0])}
    found = {network: {"knn_top1": value} for network, value in values.items()}
    items = {"student": {"knn_top1": pair[0]}, "champion": {"knn_top1": pair[1]}}
    gates = judge(SUBJECTS, found, "classification", settings, items).students["vit"].gates
    return next(gate.passed for gate in gates if gate.name == name)


def superiority_rate(images: int, discordant: float, gain: float, *, repeats: int, seed: int) -> float:
    """Share of ``repeats`` in which a challenger that is better by ``gain`` passes a gate of superiority."""
    generator = np.random.default_rng(seed)
    settings = GateSettings(superiority="headline", non_inferiority={})
    pairs = (discordant_pair(generator, images, discordant, gain) for _ in range(repeats))
    return sum(passes(pair, settings, "superior_knn_top1") for pair in pairs) / repeats


def non_inferiority_rate(images: int, discordant: float, gain: float, *, repeats: int, seed: int) -> float:
    """The same for the gate of non-inferiority with the default margin."""
    generator = np.random.default_rng(seed)
    pairs = (discordant_pair(generator, images, discordant, gain) for _ in range(repeats))
    return sum(passes(pair, GateSettings(), "non_inferior_knn_top1") for pair in pairs) / repeats


def errors_pair(generator: np.random.Generator, images: int) -> Pair:
    """Root mean squares of two equal networks: squared errors over 50 pixels, a few images much worse than the rest."""
    base = generator.lognormal(0, 1, images)
    pixels = np.full(images, 50.0)

    def one() -> Items:
        squares = 50 * base * generator.lognormal(0, 0.5, images)
        return Items(np.stack([squares, pixels], axis=-1)[:, None, :], root=True)

    return one(), one()


def classes_pair(generator: np.random.Generator, images: int) -> Pair:
    """IoU of two equal networks in ten classes, which 80 to 3 % of the images show."""
    shown = generator.random((images, 10)) < np.geomspace(0.8, 0.03, 10)
    size = generator.lognormal(3, 1, shown.shape) * shown
    ease = generator.beta(4, 2, shown.shape)

    def one() -> Items:
        share = np.clip(ease + generator.normal(0, 0.15, shown.shape), 0, 1)
        return Items(np.stack([size * share, size], axis=-1))

    return one(), one()


def missed(draw: Callable[[np.random.Generator], Pair], repeats: int, seed: int) -> float:
    """Share of one-sided 95 % bounds, one from each side, that miss the true difference, which is none."""
    generator = np.random.default_rng(seed)
    wrong = 0
    for index in range(repeats):
        one, other = draw(generator)
        low, high = compare(one, other, certainty=0.9, resamples=1000, seed=index).interval
        wrong += (low > 1e-12) + (high < -1e-12)
    return wrong / (2 * repeats)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--discordant", type=float, default=0.2)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--coverage", type=int, default=400, help="samples for each coverage figure; 0: none")
    options = parser.parse_args()
    images, discordant, repeats = options.images, options.discordant, options.repeats
    margin = GateSettings().non_inferiority["headline"]
    rates = {
        "no_better_passes_superiority": superiority_rate(images, discordant, 0.0, repeats=repeats, seed=1),
        "three_points_better_passes_superiority": superiority_rate(images, discordant, 0.03, repeats=repeats, seed=2),
        "worse_by_the_margin_passes_non_inferiority": non_inferiority_rate(
            images, discordant, -margin, repeats=repeats, seed=3
        ),
        "as_good_passes_non_inferiority": non_inferiority_rate(images, discordant, 0.0, repeats=repeats, seed=4),
        "as_good_passes_non_inferiority_on_400_images": non_inferiority_rate(
            400, discordant, 0.0, repeats=repeats, seed=5
        ),
        "as_good_passes_non_inferiority_on_400_images_half_as_discordant": non_inferiority_rate(
            400, discordant / 2, 0.0, repeats=repeats, seed=6
        ),
    }
    for name, value in rates.items():
        print(f"{name}: {100 * value:.1f} %", flush=True)
    coverage = {}
    for name, draw in {
        "accuracy, 30 images": lambda generator: discordant_pair(generator, 30, 0.2, 0.0),
        "accuracy, 400 images": lambda generator: discordant_pair(generator, 400, 0.2, 0.0),
        "accuracy, 400 images, 1 % discordant": lambda generator: discordant_pair(generator, 400, 0.01, 0.0),
        "root mean square, 30 images": lambda generator: errors_pair(generator, 30),
        "root mean square, 100 images": lambda generator: errors_pair(generator, 100),
        "mIoU, 60 images": lambda generator: classes_pair(generator, 60),
        "mIoU, 200 images": lambda generator: classes_pair(generator, 200),
    }.items():
        if options.coverage:
            coverage[name] = missed(draw, options.coverage, seed=7)
            print(f"bounds that miss, {name}: {100 * coverage[name]:.1f} % (5 % is promised)", flush=True)
    settings = {"images": images, "discordant": discordant, "repeats": repeats, "margin": margin}
    print(json.dumps({**settings, **rates, "missed": coverage}))


if __name__ == "__main__":
    main()
