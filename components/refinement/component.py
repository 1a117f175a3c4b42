"""The KFP face of refinement."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output, component

from components.common.image import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def refine(
    config: dict,
    dataset: Input[Dataset],
    teacher: Input[Model],
    evaluation: str,
    refined: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Continue a backbone's training with Gram anchoring, for better dense features.

    Args:
        config: Section 'refinement' of params.yaml; what is left out has its default.
        dataset: The curated dataset.
        teacher: The training run it starts from.
        evaluation: Labelled images (URL), 'auto' or 'none'.
        refined: The run folder of the backbone with better dense features.
        metrics: The last figures of the run.
    """
    from components.common.kfp_face import run_step

    inputs = {"dataset": dataset, "teacher": teacher, "evaluation": evaluation}
    run_step("refinement", config, inputs, refined, metrics)
