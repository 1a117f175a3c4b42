"""``python -m pipelines``: run the line here, show what it would do, or hand it to Kubeflow Pipelines."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.errors import run_command

if TYPE_CHECKING:
    from components.common.params import Params


def main(argv: list[str]) -> int:
    """Run the command line ``argv``; see ``--help``."""
    arguments = _parser().parse_args(argv)
    return int(arguments.action(arguments) or 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = _command(
        commands,
        "run",
        "the whole line (or, with --teacher, a family of students) on this machine; ends with a summary",
        _run,
    )
    run.add_argument("--no-dvc", action="store_true", help="do not put the curated dataset under DVC at the end")

    _command(commands, "plan", "what `run` would do here: which results are there, which would be made", _plan)

    compiled = _command(commands, "compile", "write the pipeline YAML for the Kubeflow UI", _compile)
    compiled.add_argument("path", nargs="?", type=Path, help="file to write (default: in pipelines/build)")
    compiled.add_argument("--image", help="container image of the steps, best by digest (default: FOUNDRY_IMAGE)")

    submit = _command(commands, "submit", "start a run on a Kubeflow Pipelines server", _submit)
    submit.add_argument("--host", help="URL of the KFP API (default: KFP_HOST); a token is read from KFP_TOKEN")
    submit.add_argument("--namespace", help="profile namespace of a multi-user Kubeflow (default: KFP_NAMESPACE)")
    submit.add_argument("--experiment", default="dino-foundry", help="experiment of the run (default: %(default)s)")
    submit.add_argument("--run-name", help="name of the run (default: made up by KFP)")
    submit.add_argument("--service-account", help="Kubernetes service account of the pods")
    submit.add_argument("--image", help="container image of the steps, best by digest (default: FOUNDRY_IMAGE)")
    return parser


def _command(commands: argparse._SubParsersAction, name: str, summary: str, action: object) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:]
    )
    parser.set_defaults(action=action)
    parser.add_argument("--params", type=Path, metavar="FILE", help="settings (default: params.yaml here)")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="a.b=c", help="change a setting of that file"
    )
    parser.add_argument(
        "--images", metavar="URL", help="unlabelled images: folder, archive or fsspec URL (inputs.images)"
    )
    parser.add_argument(
        "--teacher",
        metavar="NETWORK",
        help="folder or models:/NAME@ALIAS to distil from in place of training a teacher (inputs.teacher)",
    )
    parser.add_argument("--evaluation", metavar="URL", help="labelled images to measure with (inputs.evaluation)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _params(arguments: argparse.Namespace) -> Params:
    """The settings of a command line, its inputs checked before anything costly is imported."""
    from pipelines.inputs import check_images, check_labels, check_teacher

    if arguments.images:
        check_images(arguments.images, "--images ")
    check_labels(arguments.evaluation or "", "--evaluation ")

    from components.common.params import load_params

    params = load_params(arguments.params, [*arguments.overrides])
    given = {"images": arguments.images, "evaluation": arguments.evaluation, "teacher": arguments.teacher}
    changed = {name: value for name, value in given.items() if value is not None}
    params = params.model_copy(update={"inputs": params.inputs.model_copy(update=changed)})
    if arguments.action in (_run, _plan):
        check_images(params.inputs.images, "inputs.images=")
        check_labels(params.inputs.evaluation, "inputs.evaluation=")
        check_teacher(params.inputs.teacher)
        _check_generations(params)
    return params


def _check_generations(params: Params) -> None:
    """A student that becomes champion under the name of its teacher's alias would teach the next run."""
    from foundry.errors import UserError

    teacher = params.inputs.teacher
    models = {params.registration.model_name(each.name) for each in params.distillation.resolved_recipe().students}
    for model in sorted(models):
        if teacher.startswith(f"models:/{model}@"):
            raise UserError(
                f"inputs.teacher={teacher}: a student of this run gets the same name, and as champion would be the "
                "teacher of the next; set registration.prefix, or name a version (models:/NAME/VERSION)"
            )


def _run(arguments: argparse.Namespace) -> int:
    params = _params(arguments)
    from pipelines.local_run import run_line

    return run_line(params, version_data=not arguments.no_dvc)


def _plan(arguments: argparse.Namespace) -> int:
    params = _params(arguments)
    from pipelines.plan import describe, plan_line

    print("\n".join(describe(plan_line(params))))
    return 0


def _compile(arguments: argparse.Namespace) -> int:
    params = _params(arguments)
    from pipelines.compilation import compile_line, default_path

    print(compile_line(params, arguments.path or default_path(params), arguments.image))
    return 0


def _submit(arguments: argparse.Namespace) -> int:
    params = _params(arguments)
    from pipelines.submission import Destination, submit_line

    destination = Destination(
        host=arguments.host,
        namespace=arguments.namespace,
        experiment=arguments.experiment,
        run_name=arguments.run_name,
        service_account=arguments.service_account,
    )
    print(submit_line(params, destination, arguments.image))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
