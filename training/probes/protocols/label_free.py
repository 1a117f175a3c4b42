"""Protocols that need no labels: augmented copies, health of features, known warps, planted objects."""

from __future__ import annotations

from training.probes.health import health
from training.probes.label_free import Views, coherence_items, copy_hits, copy_retrieval, feature_rank, patch_coherence
from training.probes.material import FIRST, SECOND
from training.probes.outcome import Items, Outcome
from training.probes.passes import Passes, Request
from training.probes.protocols.base import Protocol


class Copies(Protocol):
    """``copy_retrieval``, ``feature_rank`` and ``patch_coherence`` on two views of unlabelled images."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def requests(self) -> tuple[Request, ...]:
        return Request(FIRST, patches=True), Request(SECOND, patches=True)

    def measure(self, passes: Passes) -> Outcome:
        first, second = passes.features(FIRST), passes.features(SECOND)
        assert first.patches is not None and second.patches is not None
        places = coherence_items(first.patches, second.patches, self.views.to_second)
        return Outcome(
            measures={
                "copy_retrieval": copy_retrieval(first.cls, second.cls),
                "feature_rank": feature_rank(first.cls),
                "patch_coherence": patch_coherence(first.patches, second.patches, self.views.to_second),
            },
            items={"copy_retrieval": Items.of_mean(copy_hits(first.cls, second.cls)), "patch_coherence": places},
            details={"patch_grid": first.grid},
        )


class Health(Protocol):
    """No measure of the table: isotropy, spectrum, norms and outliers of the features, in the details."""

    def requests(self) -> tuple[Request, ...]:
        return (Request(FIRST, patches=True),)

    def measure(self, passes: Passes) -> Outcome:
        seen = passes.features(FIRST)
        return Outcome(details={"health": health(seen.cls, seen.patches).measures()})
