"""The KFP face of adoption."""

from kfp.dsl import Metrics, Model, Output, component

from components.common.image import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def adopt(config: dict, network: str, teacher: Output[Model], metrics: Output[Metrics]) -> None:
    """Take a network that is there as a teacher: a training run, public weights or a registered model.

    Args:
        config: Section 'adoption' of params.yaml; what is left out has its default.
        network: A training run, a folder in the Hugging Face layout or models:/NAME@ALIAS.
        teacher: The network, and the same with random weights, laid out like the exports of a run.
        metrics: Its size.
    """
    from components.common.kfp_face import run_step

    run_step("adoption", config, {"network": network}, teacher, metrics)
