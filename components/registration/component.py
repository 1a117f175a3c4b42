"""The KFP faces of registration: the step, and the look-up of the champions that the evaluation compares with."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output, component

from components.common.image import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def resolve_champions(config: dict, students: Input[Model]) -> str:
    """Find the champions that these students are to be judged against.

    Args:
        config: Section 'registration' of params.yaml; what is left out has its default.
        students: The run folder of the students.

    Returns:
        JSON: for each student with a champion its model, version, digest and the path of its network.
    """
    from components.common.kfp_face import plain_failure
    from components.registration.champions import champions_for_students

    with plain_failure("resolve-champions"):
        return champions_for_students(config, students.path)


@component(base_image=IMAGE, install_kfp_package=False)
def register(
    config: dict,
    students: Input[Model],
    report: Input[Artifact],
    dataset: Input[Dataset],
    refined: Input[Model],
    registration: Output[Artifact],
    metrics: Output[Metrics],
) -> None:
    """Register the students in MLflow; the verdict of the report moves the champion.

    Args:
        config: Section 'registration' of params.yaml; what is left out has its default.
        students: The run folder of the students.
        report: The verdict and the scores of these students.
        dataset: The curated dataset, which the golden images come from.
        refined: The teacher that the students learnt from.
        registration: registration.json: model, version and aliases of each student.
        metrics: Versions and parameters of each student.
    """
    from components.common.kfp_face import run_step

    inputs = {"students": students, "report": report, "dataset": dataset, "refined": refined}
    run_step("registration", config, inputs, registration, metrics)
