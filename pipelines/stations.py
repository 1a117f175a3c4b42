"""The stations in their order: what each node of a graph is called, shown as and given on a cluster.

A graph has those that it needs: a teacher is pretrained and refined, or adopted.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Station:
    """One node of a graph."""

    task: str
    """Its name in the graph."""
    step: str | None
    """The step it runs: its folder below ``components/``; None for a node that only looks something up."""
    title: str
    """Heading in the console and name in the Kubeflow UI."""
    cpu: str
    """CPU requested on a cluster, for the embedded recipes."""
    memory: str
    """Memory requested on a cluster, for the embedded recipes."""


STATIONS = (
    Station("curate", "curation", "curation: which images, and how many of which", "1", "2G"),
    Station("adopt", "adoption", "adoption: a teacher that is there", "1", "4G"),
    Station("pretrain", "pretraining", "pretraining: a teacher by self-distillation", "2", "4G"),
    Station("refine", "refinement", "refinement: dense features by Gram anchoring", "2", "4G"),
    Station("distil", "distillation", "distillation: small students of the teacher", "2", "4G"),
    Station("resolve-champions", None, "champions: what is served now", "250m", "1G"),
    Station("evaluate", "evaluation", "evaluation: measured, compared, judged", "1", "3G"),
    Station("evaluate-family", "evaluation", "evaluation: measured, compared, judged", "1", "3G"),
    Station("register", "registration", "registration: versions and aliases", "500m", "2G"),
    Station("deploy", "deployment", "deployment: a version on the server, behind its gate", "1", "2G"),
)


EMBED = Station("embed", None, "embedding: a share of the pool", "2", "4G")
"""The node of which there are as many as ``curation.embedding.fan_out`` says; none by default."""


def station(task: str) -> Station:
    """The station whose node in the graph is called ``task``."""
    return next(found for found in (*STATIONS, EMBED) if found.task == task)
