"""The line as a Kubeflow pipeline: curation, training in three stages, evaluation, registration, deployment.

The same graph runs on this machine (``pipelines.local_run``) and, compiled, on a cluster (``pipelines.compilation``).
What a step does is not here: each node is the component of a step's folder. Importing this module imports kfp (3 s).
"""

# No `from __future__ import annotations` here: kfp reads the annotations of the pipeline function as they are.

from typing import Any

from kfp import dsl, kubernetes

from components.common.params import Params
from components.curation.component import curate, embed
from components.deployment.component import deploy
from components.distillation.component import distil
from components.evaluation.component import evaluate
from components.pretraining.component import pretrain
from components.refinement.component import refine
from components.registration.component import register, resolve_champions
from foundry.errors import UserError
from foundry.settings import Settings
from pipelines.stations import station

NAME = "dino-foundry-line"

WORKSPACE_MOUNT = "/foundry"
"""Where the pods of a cluster see the shared volume; FOUNDRY_HOME there."""

SETTINGS_MAP = "dino-foundry"
"""Name of an optional ConfigMap whose entries become environment variables of every step on a cluster."""

CLUSTER_VARIABLES = ("FOUNDRY_HOME", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")
"""Keys read from that ConfigMap, under the same names."""


def line_pipeline(params: Params, pods: int = 0) -> Any:
    """The pipeline, with ``params`` as the defaults of its parameters. ``pods``: that embed the pool side by side.

    Returns a KFP graph component: call it to run it locally, or give it to the compiler.
    """
    section = {name: as_struct(getattr(params, name), name) for name in type(params).model_fields}

    @dsl.pipeline(name=NAME, display_name="DINO Foundry: from images to a served backbone")
    def line(
        images: str = params.inputs.images,
        labels: str = params.inputs.evaluation,
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
        """From a bucket of unlabelled images to a served vision backbone.

        Curates the images (broken files, duplicates, balance), trains a teacher by self-distillation, refines its
        dense features, distils students from it, measures all of them, registers the students in MLflow and deploys
        those that the verdict made champion. To start with your own images set `images` to a URL that every pod can
        read (s3://bucket/folder, a .tar, a Parquet file of images). No labels are needed; where you have some, name
        them in `labels`. Every other parameter is a section of params.yaml: leave it as it is, or change single
        values in its JSON. What was computed before with the same settings is found on the shared volume and reused.

        Args:
            images: Folder, archive or fsspec URL of unlabelled images; 'sample:' is the embedded sample.
            labels: Labelled images to measure with (URL); 'none', or 'auto' for the sample's own.
            backbone: Network whose embeddings tell concepts apart (folder or models:/NAME@ALIAS); may be empty.
            embeddings: Folder of embeddings in place of a backbone; may be empty.
            seeds: Images whose like are retrieved from the images (URL, or NAME=URL;NAME=URL); may be empty.
            raw: Datasets that are taken as they are (URL, or NAME=URL;NAME=URL); may be empty.
            previous: Curated dataset to add to what the pool has gained (URL); 'none' to curate the whole pool.
            curation: Settings of curation (section 'curation' of params.yaml).
            pretraining: Settings of pretraining: recipe, processes, overrides.
            refinement: Settings of refinement: recipe, processes, overrides.
            distillation: Settings of distillation: recipe, processes, overrides.
            evaluation: Settings of evaluation: protocols and the gates of the verdict.
            registration: Settings of registration: prefix of model names, golden images.
            deployment: Settings of deployment: which server, which gate.
            volume: Name of the ReadWriteMany volume claim that the steps share on a cluster.
        """
        sources = {"pool": images, "evaluation": labels, "backbone": backbone, "embeddings": embeddings}
        sources |= {"seeds": seeds, "raw": raw, "previous": previous}
        if pods:
            with dsl.ParallelFor(list(range(pods)), name="embed-the-pool") as part:
                share = embed(config=curation, pool=images, backbone=backbone, part=part, parts=pods)
                _settle(share, volume)
            sources["embedded"] = dsl.Collected(share.output)
        curated = curate(config=curation, **sources)
        teacher = pretrain(config=pretraining, dataset=curated.outputs["dataset"], evaluation=labels)
        refined = refine(
            config=refinement,
            dataset=curated.outputs["dataset"],
            teacher=teacher.outputs["teacher"],
            evaluation=labels,
        )
        distilled = distil(
            config=distillation,
            dataset=curated.outputs["dataset"],
            teacher=refined.outputs["refined"],
            evaluation=labels,
        )
        champions = resolve_champions(config=registration, students=distilled.outputs["students"])
        evaluated = evaluate(
            config=evaluation,
            dataset=curated.outputs["dataset"],
            pretrained=teacher.outputs["teacher"],
            refined=refined.outputs["refined"],
            students=distilled.outputs["students"],
            evaluation=labels,
            champion=champions.output,
        )
        registered = register(
            config=registration,
            students=distilled.outputs["students"],
            report=evaluated.outputs["report"],
            dataset=curated.outputs["dataset"],
            refined=refined.outputs["refined"],
        )
        deployed = deploy(config=deployment, registration=registered.outputs["registration"])

        for task in (curated, teacher, refined, distilled, champions, evaluated, registered, deployed):
            _settle(task, volume)

    return line


def as_struct(settings: Settings, name: str) -> dict[str, Any]:
    """``settings`` as a KFP parameter, which has no null: a setting that is null by default is left out.

    Raises :class:`UserError` where a null says something.
    """
    struct: dict[str, Any] = {}
    for key, field in type(settings).model_fields.items():
        value = getattr(settings, key)
        if isinstance(value, Settings):
            struct[key] = as_struct(value, f"{name}.{key}")
        elif value is None and not field.is_required() and field.get_default(call_default_factory=True) is None:
            continue
        else:
            struct[key] = settings.model_dump(mode="json", include={key})[key]
            if _has_null(struct[key]):
                raise UserError(
                    f"{name}.{key}: a null cannot be handed through Kubeflow Pipelines; leave the setting out"
                )
    return struct


def _has_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_null, value.values()))
    return any(map(_has_null, value)) if isinstance(value, list) else value is None


def _settle(task: Any, volume: Any) -> None:
    """What every task needs beside its inputs; all but the caching concerns a cluster only."""
    known = station(task.name)
    task.set_display_name(known.title)
    task.set_caching_options(False)  # the step store knows better what a result depends on
    task.set_cpu_request(known.cpu)
    task.set_memory_request(known.memory)
    kubernetes.mount_pvc(task, pvc_name=volume, mount_path=WORKSPACE_MOUNT)
    kubernetes.use_config_map_as_env(task, SETTINGS_MAP, {name: name for name in CLUSTER_VARIABLES}, optional=True)
