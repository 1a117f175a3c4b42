"""The KFP face of pretraining."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output, component

from components.common.image import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def pretrain(
    config: dict, dataset: Input[Dataset], evaluation: str, teacher: Output[Model], metrics: Output[Metrics]
) -> None:
    """Train a backbone on unlabelled images by self-distillation (DINO, iBOT, KoLeo).

    Args:
        config: Section 'pretraining' of params.yaml; what is left out has its default.
        dataset: The curated dataset.
        evaluation: Labelled images (URL), 'auto' or 'none'.
        teacher: The run folder of the trained backbone.
        metrics: The last figures of the run.
    """
    from components.common.kfp_face import run_step

    inputs = {"dataset": dataset, "evaluation": evaluation}
    run_step("pretraining", config, inputs, teacher, metrics)
