"""What protects a run: skipped non-finite steps, and measures of collapse."""

from __future__ import annotations

import math

import torch

from foundry.errors import UserError
from training.engine.journal import Journal
from training.recipe import Guards

ONE_PROTOTYPE = 1.5
"""Perplexity of the mean target below which, however few prototypes there are, all images have the same one."""


@torch.no_grad()
def collapse_measures(targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two numbers in [0, 1] of ``targets`` (n, K), a teacher's probabilities.

    ``target_entropy``: mean entropy of a target over ln K (0: one prototype each, 1: uniform). ``prototype_use``:
    perplexity of the mean target over K, which falls when a network collapses.
    """
    prototypes = targets.shape[1]
    entropy = -torch.special.xlogy(targets, targets).sum(dim=1).mean() / math.log(prototypes)
    mean = targets.mean(dim=0)
    use = torch.exp(-torch.special.xlogy(mean, mean).sum()) / prototypes
    return {"target_entropy": entropy, "prototype_use": use}


@torch.no_grad()
def feature_rank(features: torch.Tensor) -> torch.Tensor:
    """Effective rank of centred ``features`` (n, D), exp of the entropy of the normalised singular values (Roy and
    Vetterli 2007); it falls when a network collapses."""
    features = features.float()
    singular = torch.linalg.svdvals(features - features.mean(dim=0))
    shares = singular / singular.sum().clamp(min=1e-12)
    return torch.exp(-torch.special.xlogy(shares, shares).sum())


class Watch:
    """Counts non-finite steps and raises the collapse alarm, by the limits of the recipe."""

    def __init__(self, guards: Guards, journal: Journal) -> None:
        self.guards, self.journal = guards, journal
        self.consecutive = 0
        self.skipped = 0
        self._alarmed = False

    def finite(self, step: int, finite: bool, loss: float) -> bool:
        """Whether ``step`` may be applied. Raises :class:`UserError` after too many bad ones in a row."""
        if finite:
            self.consecutive = 0
            return True
        self.consecutive += 1
        self.skipped += 1
        self.journal.event(
            "skipped-step", step, "loss or gradient is not finite; the step was not applied", loss=str(loss)
        )
        if self.consecutive >= self.guards.nonfinite_limit:
            raise UserError(
                f"training stopped at step {step}: {self.consecutive} steps in a row had a non-finite loss; "
                "lower optimiser.learning_rate.peak or use precision: fp32"
            )
        return False

    def collapse(self, step: int, measures: dict[str, float], prototypes: int, attainable: float = 1.0) -> None:
        """Record an alarm when features or targets collapse (once until they recover), by :class:`Guards`.

        ``prototypes``: how many there are. ``attainable``: the largest share of them that a batch of this size can use.
        """
        guards, found = self.guards, []
        if measures["feature_rank"] < guards.collapse_rank:
            found.append(f"feature rank {measures['feature_rank']:.2f} is below {guards.collapse_rank}")
        if step >= guards.grace_steps and "target_entropy" in measures:
            if measures["target_entropy"] > guards.collapse_entropy:
                found.append(f"targets are uniform (entropy {measures['target_entropy']:.4f} of ln K)")
            if measures["prototype_use"] < max(guards.collapse_use * attainable, ONE_PROTOTYPE / prototypes):
                used = measures["prototype_use"] * prototypes
                found.append(f"targets use {used:.1f} of {prototypes} prototypes")
        if found and not self._alarmed:
            message = "; ".join(found)
            self.journal.event("collapse-alarm", step, message, **measures)
            if guards.stop_on_collapse:
                raise UserError(f"training stopped at step {step}: the network has collapsed ({message})")
        self._alarmed = bool(found)
