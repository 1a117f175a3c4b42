"""``torchrun ... -m training --recipe FILE_OR_NAME --set a.b=c --data DIR --output DIR``: one training run."""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import Any

from foundry.errors import ERROR_FILE_VARIABLE, UserError, run_command
from foundry.lifetime import follow_parents
from foundry.settings import apply_overrides


def _parser() -> argparse.ArgumentParser:
    from training.recipe import recipe_names

    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Train a DINO-family backbone on a curated dataset. A restart with the same --output resumes.",
        epilog=f"recipes here: {', '.join(recipe_names())}",
    )
    parser.add_argument("--recipe", required=True, help="name of a recipe in training/recipes, or a YAML file")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="a.b=c", help="change a setting"
    )
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="[NAME=]URL",
        help="curated dataset: folder or fsspec URL; several with names where the recipe has a mixture",
    )
    parser.add_argument("--output", required=True, help="run folder; resumes what is in it")
    parser.add_argument("--start", help="backbone of a warm start: Hugging Face folder, official file or run folder")
    parser.add_argument(
        "--teacher",
        help="run folder to continue (stage gram); run folder, Hugging Face folder or official file to distil from",
    )
    parser.add_argument("--evaluation", help="labelled set for the periodic k-NN: folder, archive or URL")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _datasets(given: list[str]) -> str | dict[str, str]:
    """One URL, or URLs by name."""
    if len(given) == 1 and not re.match(r"^[A-Za-z0-9_-]+=", given[0]):
        return given[0]
    named = {name: url for name, equals, url in (item.partition("=") for item in given) if equals}
    if len(named) != len(given):
        raise UserError("--data: give each of several datasets its own name, --data NAME=URL")
    return named


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    follow_parents()
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and (told := _recorded()):
        raise UserError(told)  # starting again mends no error of a person
    from training.recipe import load_recipe

    changes: dict[str, Any] = apply_overrides({}, arguments.overrides)
    recipe = load_recipe(arguments.recipe, changes)
    from training.engine.loop import Trainer, teacher_with_heads
    from training.engine.process import process_group

    with process_group(recipe.device):
        data = _datasets(arguments.data)
        Trainer(
            recipe,
            data=data,
            output=arguments.output,
            teacher=teacher_with_heads(recipe, data, arguments.output, arguments.teacher),
            evaluation=arguments.evaluation,
            start=arguments.start,
        ).run()
    return 0


def _recorded() -> str:
    """The error that an earlier start left for the launcher; empty where there is none."""
    path = os.environ.get(ERROR_FILE_VARIABLE)
    if not path or not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8") as file:
        return file.read().strip()


def _record_user_error(argv: list[str]) -> int:
    """Ends like every command; under torchrun the one-line error is also left where the launcher finds it."""

    def recorded(arguments: list[str]) -> int:
        try:
            return main(arguments)
        except UserError as error:
            path = os.environ.get(ERROR_FILE_VARIABLE)
            if path and os.environ.get("RANK", "0") == "0":
                with open(path, "w", encoding="utf-8") as file:
                    file.write(" ".join(str(error).split()))
            raise

    return run_command(recorded, argv)


if __name__ == "__main__":
    sys.exit(_record_user_error(sys.argv[1:]))
