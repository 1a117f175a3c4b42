"""Classification of images by frozen embeddings: k-NN, linear, logistic, few-shot, and k-NN under corruptions."""

from __future__ import annotations

import numpy as np

from training.probes.corruptions import CORRUPTIONS, corrupt
from training.probes.few_shot import few_shot
from training.probes.knn import knn
from training.probes.linear import linear_probe
from training.probes.logistic import logistic_regression
from training.probes.material import Material, Task, spread
from training.probes.options import ProbeOptions
from training.probes.outcome import Items, Outcome
from training.probes.passes import ImageList, Passes, Request
from training.probes.protocols.base import Protocol


class _Classification(Protocol):
    layers = 1

    def __init__(self, options: ProbeOptions, task: Task) -> None:
        self.options, self.task, self.prefix = options, task, task.prefix
        self.labels, self.truth = task.train.truth, task.test.truth

    def requests(self) -> tuple[Request, ...]:
        return tuple(Request(split.images, layers=self.layers) for split in (self.task.train, self.task.test))

    def right(self, predictions: np.ndarray) -> Items:
        return Items.of_mean(predictions == self.truth)


class Knn(_Classification):
    """``knn_top1``; in the details other k and the recall of each class."""

    def measure(self, passes: Passes) -> Outcome:
        train, test = (passes.features(request.images).cls for request in self.requests())
        ks = list(dict.fromkeys([self.options.neighbours, *self.options.further_neighbours]))
        near = knn(train, self.labels, test, self.truth, ks=ks)
        recall = {
            name: float((near.predictions[self.truth == label] == label).mean())
            for label, name in enumerate(self.task.classes)
            if (self.truth == label).any()
        }
        return Outcome(
            measures={"knn_top1": next(iter(near.top1.values()))},
            items={"knn_top1": self.right(near.predictions)},
            details={"knn": {str(k): {"top1": near.top1[k], "top5": near.top5[k]} for k in near.top1}},
            shown={"per_class": recall},
        )


class Linear(_Classification):
    """``linear_top1``: of the last embedding, those of more layers, and these with the mean patch, what does best."""

    def __init__(self, options: ProbeOptions, task: Task) -> None:
        super().__init__(options, task)
        self.layers = options.linear_layers

    def measure(self, passes: Passes) -> Outcome:
        variants = []
        for request in self.requests():
            features = passes.features(request.images)
            own = {"cls": features.cls}
            if features.mean_patch.shape[1]:
                own["cls+patches"] = np.concatenate([features.cls, features.mean_patch], axis=1)
            if len({id(layer) for layer in features.layers}) > 1:
                deep = np.concatenate(features.layers[-self.layers :], axis=1)
                own[f"cls of {len(features.layers)} layers"] = deep
            variants.append(own)
        options = self.options
        steps, seed = options.linear_steps, options.seed
        found = linear_probe(variants[0], self.labels, variants[1], self.truth, steps=steps, seed=seed)
        return Outcome(
            measures={"linear_top1": found.top1},
            items={"linear_top1": self.right(found.predictions)},
            details={
                "linear": {
                    "features": found.variant,
                    "learning_rate": found.learning_rate,
                    "held_out_top1": found.validation,
                }
            },
        )


class Logistic(_Classification):
    """``logistic_top1``."""

    def measure(self, passes: Passes) -> Outcome:
        train, test = (passes.features(request.images).cls for request in self.requests())
        found = logistic_regression(train, self.labels, test, self.truth, seed=self.options.seed)
        return Outcome(
            measures={"logistic_top1": found.top1},
            items={"logistic_top1": self.right(found.predictions)},
            details={"logistic": {"strength": found.strength, "mean_per_class": found.mean_per_class}},
        )


class FewShot(_Classification):
    """``few_shot_top1`` of the most images a class; the others in the details."""

    def measure(self, passes: Passes) -> Outcome:
        train, test = (passes.features(request.images).cls for request in self.requests())
        chosen = self.options.few_shot
        found = few_shot(
            train, self.labels, test, self.truth, shots=chosen.shots, tries=chosen.tries, seed=self.options.seed
        )
        last = chosen.shots[-1]
        return Outcome(
            measures={"few_shot_top1": found.mean[last]},
            items={"few_shot_top1": Items.of_mean(found.hits[last].mean(0))},
            details={
                "few_shot": {str(each): {"mean": found.mean[each], "std": found.std[each]} for each in chosen.shots}
            },
        )


class Robustness(_Classification):
    """``robust_top1``; in the details each corruption's accuracy at each severity.

    Every corruption of every severity is a list of images of its own, so it is a pass of its own too.
    """

    def __init__(self, options: ProbeOptions, task: Task, material: Material) -> None:
        super().__init__(options, task)
        chosen = np.array(spread(range(len(task.test.names)), options.robustness.images))
        self.truth = task.test.truth[chosen]
        self._lists: dict[tuple[str, int], str] = {}
        for name in CORRUPTIONS:
            for severity in options.robustness.severities:
                key = f"{task.test.images}/{name}-{severity}"

                def load(index: int, name: str = name, severity: int = severity) -> np.ndarray:
                    image = material.read(task.test.images, int(chosen[index]))
                    return corrupt(image, name, severity, seed=options.seed + index)

                material.lists[key] = ImageList(len(chosen), load)
                self._lists[name, severity] = key

    def requests(self) -> tuple[Request, ...]:
        return (Request(self.task.train.images), *(Request(images) for images in self._lists.values()))

    def measure(self, passes: Passes) -> Outcome:
        bank = passes.features(self.task.train.images).cls
        hits: list[np.ndarray] = []
        details: dict[str, dict[str, float]] = {}
        for (name, severity), images in self._lists.items():
            near = knn(bank, self.labels, passes.features(images).cls, self.truth, ks=[self.options.neighbours])
            hits.append(near.predictions == self.truth)
            details.setdefault(name, {})[str(severity)] = float(hits[-1].mean())
        mean = np.mean(hits, axis=0)
        return Outcome(
            measures={"robust_top1": float(mean.mean())},
            items={"robust_top1": Items.of_mean(mean)},
            details={"robustness": details},
        )
