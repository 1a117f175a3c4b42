"""What the graphs share, and which of them a run's settings ask for. Importing this module imports kfp (3 s)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from kfp import dsl, kubernetes

from components.common.params import Params
from components.curation.component import curate, embed
from components.deployment.component import deploy
from components.registration.component import register, resolve_champions
from foundry.errors import UserError
from foundry.settings import Settings
from pipelines.stations import station

WORKSPACE_MOUNT = "/foundry"
"""Where the pods of a cluster see the shared volume; FOUNDRY_HOME there."""

SETTINGS_MAP = "dino-foundry"
"""Name of an optional ConfigMap whose entries become environment variables of every step on a cluster."""

CLUSTER_VARIABLES = ("FOUNDRY_HOME", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")
"""Keys read from that ConfigMap, under the same names."""


PARAMETERS = {
    "images": "Folder, archive or fsspec URL of unlabelled images; 'sample:' is the embedded sample.",
    "labels": "Labelled images to measure with (URL); 'none', or 'auto' for the sample's own.",
    "benchmarks": "Further labelled sets for the report (URL, or NAME=URL;NAME=URL); may be empty.",
    "peers": "Networks to measure beside those of the line (folders, model ids or models:/NAME@ALIAS); may be empty.",
    "teacher": "Network to distil from: a training run, a Hugging Face folder or models:/NAME@ALIAS.",
    "backbone": "Network whose embeddings tell concepts apart (folder or models:/NAME@ALIAS); may be empty.",
    "embeddings": "Folder of embeddings in place of a backbone; may be empty.",
    "seeds": "Images whose like are retrieved from the images (URL, or NAME=URL;NAME=URL); may be empty.",
    "raw": "Datasets that are taken as they are (URL, or NAME=URL;NAME=URL); may be empty.",
    "previous": "Curated dataset to add to what the pool has gained (URL); 'none' to curate the whole pool.",
    "curation": "Settings of curation (section 'curation' of params.yaml).",
    "adoption": "Settings of adoption: whether heads that come with the teacher are used.",
    "pretraining": "Settings of pretraining: recipe, processes, overrides.",
    "refinement": "Settings of refinement: recipe, processes, overrides.",
    "distillation": "Settings of distillation: recipe, processes, overrides.",
    "evaluation": "Settings of evaluation: protocols and the gates of the verdict.",
    "registration": "Settings of registration: prefix of model names, golden images.",
    "deployment": "Settings of deployment: which server, which gate.",
    "volume": "Name of the ReadWriteMany volume claim that the steps share on a cluster.",
}
"""What the parameters of the graphs mean, as the Kubeflow UI shows it."""

HOW_TO = """To start with your own images set `images` to a URL that every pod can read (s3://bucket/folder, a .tar, a
Parquet file of images). No labels are needed; where you have some, name them in `labels`. Every other parameter is a
section of params.yaml: leave it as it is, or change single values in its JSON. What was computed before with the same
settings is found on the shared volume and reused."""


def pipeline_of(params: Params, pods: int = 0) -> Any:
    """The graph that ``params`` ask for: the whole line, or, where ``inputs.teacher`` names a network, a family of its
    students. ``pods``: that embed the pool side by side."""
    if params.inputs.teacher:
        from pipelines.family import family_pipeline

        return family_pipeline(params, pods)
    from pipelines.line import line_pipeline

    return line_pipeline(params, pods)


def described(about: str, function: Callable[..., None]) -> Callable[..., None]:
    """``function`` with a docstring for the Kubeflow UI: ``about``, how to use it, and its parameters."""
    rows = [f"    {name}: {PARAMETERS[name]}" for name in inspect.signature(function).parameters]
    function.__doc__ = "\n".join([about, "", HOW_TO, "", "Args:", *rows])
    return function


def sections(params: Params) -> dict[str, dict[str, Any]]:
    """The sections of ``params`` as parameters of a graph."""
    return {name: as_struct(getattr(params, name), name) for name in type(params).model_fields}


def curated_pool(config: Any, volume: Any, pods: int, **sources: Any) -> Any:
    """The task of curation on ``sources``, its inputs by name, in front of which ``pods`` embed the pool side by side.

    For the body of a pipeline function.
    """
    if pods:
        with dsl.ParallelFor(list(range(pods)), name="embed-the-pool") as part:
            share = embed(config=config, pool=sources["pool"], backbone=sources["backbone"], part=part, parts=pods)
            settle(share, volume)
        sources["embedded"] = dsl.Collected(share.output)
    return settle(curate(config=config, **sources), volume)


def published(
    students: Any,
    teacher: Any,
    dataset: Any,
    registration: Any,
    deployment: Any,
    volume: Any,
    evaluate: Callable[[Any], Any],
) -> None:
    """The tasks that judge, register and deploy ``students``, learnt from ``teacher``: ``evaluate(champion)`` makes the
    task of evaluation. For the body of a pipeline function."""
    champions = settle(resolve_champions(config=registration, students=students), volume)
    evaluated = settle(evaluate(champions.output), volume)
    registered = settle(
        register(
            config=registration,
            students=students,
            report=evaluated.outputs["report"],
            dataset=dataset,
            refined=teacher,
        ),
        volume,
    )
    settle(deploy(config=deployment, registration=registered.outputs["registration"]), volume)


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


def settle(task: Any, volume: Any) -> Any:
    """``task`` with what every task needs beside its inputs; all but the caching concerns a cluster only."""
    known = station(task.name)
    task.set_display_name(known.title)
    task.set_caching_options(False)  # the step store knows better what a result depends on
    task.set_cpu_request(known.cpu)
    task.set_memory_request(known.memory)
    kubernetes.mount_pvc(task, pvc_name=volume, mount_path=WORKSPACE_MOUNT)
    kubernetes.use_config_map_as_env(task, SETTINGS_MAP, {name: name for name in CLUSTER_VARIABLES}, optional=True)
    return task
