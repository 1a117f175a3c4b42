"""A family of students of a teacher that is there, as a Kubeflow pipeline: what :mod:`pipelines.line` is without
pretraining and refinement."""

# No `from __future__ import annotations` here: kfp reads the annotations of the pipeline function as they are.

from typing import Any

from kfp import dsl

from components.adoption.component import adopt
from components.common.params import Params
from components.distillation.component import distil
from components.evaluation.component import evaluate_family
from pipelines.graph import curated_pool, described, published, sections, settle

NAME = "dino-foundry-family"
ABOUT = """From a bucket of unlabelled images and a teacher to a family of served students.

Curates the images (broken files, duplicates, balance), takes the teacher as it is (heads are trained on it first where
it has none, as public weights do), distils students from it, measures all of them, registers the students in MLflow and
deploys those that the verdict made champion."""


def family_pipeline(params: Params, pods: int = 0) -> Any:
    """The pipeline, with ``params`` as the defaults of its parameters. ``pods``: that embed the pool side by side.

    Returns a KFP graph component: call it to run it locally, or give it to the compiler.
    """
    section = sections(params)

    def family(
        teacher: str = params.inputs.teacher,
        images: str = params.inputs.images,
        labels: str = params.inputs.evaluation,
        benchmarks: str = params.inputs.benchmarks,
        peers: str = params.inputs.peers,
        backbone: str = params.inputs.backbone,
        embeddings: str = params.inputs.embeddings,
        seeds: str = params.inputs.seeds,
        raw: str = params.inputs.raw,
        previous: str = params.inputs.previous,
        curation: dict = section["curation"],
        adoption: dict = section["adoption"],
        distillation: dict = section["distillation"],
        evaluation: dict = section["evaluation"],
        registration: dict = section["registration"],
        deployment: dict = section["deployment"],
        volume: str = "dino-foundry",
    ) -> None:
        given = {"backbone": backbone, "embeddings": embeddings, "seeds": seeds, "raw": raw, "previous": previous}
        dataset = curated_pool(curation, volume, pods, pool=images, evaluation=labels, **given).outputs["dataset"]
        adopted = settle(adopt(config=adoption, network=teacher), volume).outputs["teacher"]
        students = settle(
            distil(config=distillation, dataset=dataset, teacher=adopted, evaluation=labels), volume
        ).outputs["students"]

        def judged(champion: Any) -> Any:
            return evaluate_family(
                config=evaluation,
                dataset=dataset,
                teacher=adopted,
                students=students,
                evaluation=labels,
                benchmarks=benchmarks,
                peers=peers,
                champion=champion,
            )

        published(students, adopted, dataset, registration, deployment, volume, judged)

    return dsl.pipeline(name=NAME, display_name="DINO Foundry: a family of students from a teacher")(
        described(ABOUT, family)
    )
