"""The KFP face of distillation."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output, component

from components.common.image import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def distil(
    config: dict,
    dataset: Input[Dataset],
    teacher: Input[Model],
    evaluation: str,
    students: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Train small students from one shared pass of the frozen teacher.

    Args:
        config: Section 'distillation' of params.yaml; what is left out has its default.
        dataset: The curated dataset.
        teacher: The training run, or the adopted network, that they learn from.
        evaluation: Labelled images (URL), 'auto' or 'none'.
        students: The run folder of the students.
        metrics: The last figures of the run.
    """
    from components.common.kfp_face import run_step

    inputs = {"dataset": dataset, "teacher": teacher, "evaluation": evaluation}
    run_step("distillation", config, inputs, students, metrics)
