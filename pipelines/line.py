"""The line as a Kubeflow pipeline: curation, training in three stages, evaluation, registration, deployment.

The same graph runs on this machine (``pipelines.local_run``) and, compiled, on a cluster (``pipelines.compilation``).
What a step does is not here: each node is the component of a step's folder. Importing this module imports kfp (3 s).
"""

# No `from __future__ import annotations` here: kfp reads the annotations of the pipeline function as they are.

from typing import Any

from kfp import dsl

from components.common.params import Params
from components.distillation.component import distil
from components.evaluation.component import evaluate
from components.pretraining.component import pretrain
from components.refinement.component import refine
from pipelines.graph import curated_pool, described, published, sections, settle

NAME = "dino-foundry-line"
ABOUT = """From a bucket of unlabelled images to a served vision backbone.

Curates the images (broken files, duplicates, balance), trains a teacher by self-distillation, refines its dense
features, distils students from it, measures all of them, registers the students in MLflow and deploys those that the
verdict made champion."""


def line_pipeline(params: Params, pods: int = 0) -> Any:
    """The pipeline, with ``params`` as the defaults of its parameters. ``pods``: that embed the pool side by side.

    Returns a KFP graph component: call it to run it locally, or give it to the compiler.
    """
    section = sections(params)

    def line(
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
        pretraining: dict = section["pretraining"],
        refinement: dict = section["refinement"],
        distillation: dict = section["distillation"],
        evaluation: dict = section["evaluation"],
        registration: dict = section["registration"],
        deployment: dict = section["deployment"],
        volume: str = "dino-foundry",
    ) -> None:
        given = {"backbone": backbone, "embeddings": embeddings, "seeds": seeds, "raw": raw, "previous": previous}
        dataset = curated_pool(curation, volume, pods, pool=images, evaluation=labels, **given).outputs["dataset"]
        pretrained = settle(pretrain(config=pretraining, dataset=dataset, evaluation=labels), volume).outputs["teacher"]
        refined = settle(
            refine(config=refinement, dataset=dataset, teacher=pretrained, evaluation=labels), volume
        ).outputs["refined"]
        students = settle(
            distil(config=distillation, dataset=dataset, teacher=refined, evaluation=labels), volume
        ).outputs["students"]

        def judged(champion: Any) -> Any:
            return evaluate(
                config=evaluation,
                dataset=dataset,
                pretrained=pretrained,
                refined=refined,
                students=students,
                evaluation=labels,
                benchmarks=benchmarks,
                peers=peers,
                champion=champion,
            )

        published(students, refined, dataset, registration, deployment, volume, judged)

    return dsl.pipeline(name=NAME, display_name="DINO Foundry: from images to a served backbone")(
        described(ABOUT, line)
    )
