"""The KFP faces of evaluation: of a whole line, and of a family of students of a teacher that was there."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output, component

from components.common.image import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    config: dict,
    dataset: Input[Dataset],
    pretrained: Input[Model],
    refined: Input[Model],
    students: Input[Model],
    evaluation: str,
    benchmarks: str,
    peers: str,
    champion: str,
    report: Output[Artifact],
    page: Output[HTML],
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
        benchmarks: Further labelled sets (URL, or NAME=URL;NAME=URL), or empty.
        peers: Networks to measure beside those of the line, or empty.
        champion: JSON of the registered champions, or empty.
        report: report.html, verdict.json, metrics.json and plots.
        page: The report, as the Kubeflow UI shows it.
        metrics: The main figures of every network.
    """
    from components.common.kfp_face import run_step

    inputs = {
        "dataset": dataset,
        "pretrained": pretrained,
        "refined": refined,
        "students": students,
        "evaluation": evaluation,
        "benchmarks": benchmarks,
        "peers": peers,
        "champion": champion,
    }
    run_step("evaluation", config, inputs, report, metrics, page)


@component(base_image=IMAGE, install_kfp_package=False)
def evaluate_family(
    config: dict,
    dataset: Input[Dataset],
    teacher: Input[Model],
    students: Input[Model],
    evaluation: str,
    benchmarks: str,
    peers: str,
    champion: str,
    report: Output[Artifact],
    page: Output[HTML],
    metrics: Output[Metrics],
) -> None:
    """Measure a teacher and its students beside untrained networks and baselines; write a report and a verdict.

    Args:
        config: Section 'evaluation' of params.yaml; what is left out has its default.
        dataset: The curated dataset.
        teacher: The teacher that was there.
        students: The training run of distillation.
        evaluation: Labelled images or masks (URL), 'auto' or 'none'.
        benchmarks: Further labelled sets (URL, or NAME=URL;NAME=URL), or empty.
        peers: Networks to measure beside those of the line, or empty.
        champion: JSON of the registered champions, or empty.
        report: report.html, verdict.json, metrics.json and plots.
        page: The report, as the Kubeflow UI shows it.
        metrics: The main figures of every network.
    """
    from components.common.kfp_face import run_step

    inputs = {"dataset": dataset, "teacher": teacher, "students": students}
    inputs |= {"evaluation": evaluation, "benchmarks": benchmarks, "peers": peers, "champion": champion}
    run_step("evaluation", config, inputs, report, metrics, page)
