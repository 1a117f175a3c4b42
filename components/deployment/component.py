"""The KFP face of deployment."""

from kfp.dsl import Artifact, Input, Metrics, Output, component

from components.common.image import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def deploy(
    config: dict,
    registration: Input[Artifact],
    deployment: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Serve the champions by Triton, each only if it reproduces its golden images.

    Args:
        config: Section 'deployment' of params.yaml; what is left out has its default.
        registration: The registered students.
        deployment: What is served where, and how to ask it.
        metrics: Versions and golden differences.
    """
    from components.common.kfp_face import run_step

    run_step("deployment", config, {"registration": registration}, deployment, metrics)
