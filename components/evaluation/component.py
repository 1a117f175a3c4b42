"""The KFP face of evaluation."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output, component

from components.common.image import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    config: dict,
    dataset: Input[Dataset],
    pretrained: Input[Model],
    refined: Input[Model],
    students: Input[Model],
    evaluation: str,
    champion: str,
    report: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Measure teacher and students beside untrained networks and baselines; write a report and a verdict.

    Args:
        config: Section 'evaluation' of params.yaml; what is left out has its default.
        dataset: The curated dataset.
        pretrained: The training run of pretraining.
        refined: The training run of refinement.
        students: The training run of distillation.
        evaluation: Labelled images or masks (URL), 'auto' or 'none'.
        champion: JSON of the registered champions, or empty.
        report: report.html, verdict.json, metrics.json and plots.
        metrics: The main figures of every network.
    """
    from components.common.kfp_face import run_step

    inputs = {
        "dataset": dataset,
        "pretrained": pretrained,
        "refined": refined,
        "students": students,
        "evaluation": evaluation,
        "champion": champion,
    }
    run_step("evaluation", config, inputs, report, metrics)
