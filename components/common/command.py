"""The command line of a step: ``python -m components.STEP --params params.yaml --input NAME=URL ... --output DIR``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.common.processes import kill_descendants
from components.common.step import Step
from foundry.errors import UserError, run_command
from foundry.lifetime import die_with_launcher
from foundry.settings import Settings

if TYPE_CHECKING:
    from pydantic import BaseModel


def main_for(step: Step, argv: list[str] | None = None) -> int:
    """Run the command line of ``step``; returns the exit status (see :func:`foundry.errors.run_command`).

    Where ``FOUNDRY_WATCH_PROCESS`` names a process (one that runs the whole line), this one ends with it.
    """
    die_with_launcher(before_exit=kill_descendants)
    return run_command(lambda arguments: _main(step, arguments), argv)


def _main(step: Step, argv: list[str]) -> int:
    arguments = _parser(step).parse_args(argv)
    from components.common.execution import execute
    from components.common.params import load_params
    from components.common.store import Store

    params = load_params(arguments.params, arguments.overrides)
    inputs = parse_inputs(step, arguments.inputs)
    if arguments.inputs_from_params:
        if params.inputs.teacher:
            raise UserError(
                "inputs.teacher: the stages of dvc.yaml train a teacher of their own; use `python -m pipelines run`, "
                "which adopts the one that is named"
            )
        named = {spec.name: getattr(params.inputs, spec.name, "") for spec in step.inputs}
        inputs = {**{name: value for name, value in named.items() if value}, **inputs}
    outcome = execute(
        step,
        getattr(params, step.name),
        inputs,
        arguments.output,
        store=Store(arguments.store),
    )
    where = arguments.output or outcome.path
    print(f"{step.name}: {where} (digest {outcome.digest[:12]}…)")
    for name, value in outcome.metrics.items():
        print(f"  {name}: {value if isinstance(value, str) else json.dumps(value)}")
    return 0


def parse_inputs(step: Step, arguments: Sequence[str]) -> dict[str, str]:
    """``NAME=URL`` arguments as a mapping. Raises :class:`UserError` for another form or an unknown name."""
    inputs: dict[str, str] = {}
    for argument in arguments:
        name, separator, url = argument.partition("=")
        if not separator:
            raise UserError(f"--input {argument}: write it as NAME=URL")
        step.input(name)
        if name in inputs:
            raise UserError(f"--input {argument}: '{name}' is given twice")
        inputs[name] = url
    return inputs


def _parser(step: Step) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m components.{step.name}",
        description=step.summary,
        epilog="\n".join(_epilog(step)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--params", type=Path, metavar="FILE", help="settings (default: params.yaml here)")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="a.b=c", help="change a setting of that file"
    )
    parser.add_argument(
        "--input", dest="inputs", action="append", default=[], metavar="NAME=URL", help="one of the inputs below"
    )
    parser.add_argument(
        "--inputs-from-params",
        action="store_true",
        help="take inputs that are not given from the section 'inputs' of params.yaml, where it has them by that name",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder that shows the result (links to the store)")
    parser.add_argument("--store", metavar="DIR", help="step store (default: FOUNDRY_STORE, else .foundry/store)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _epilog(step: Step) -> Iterator[str]:
    yield "inputs:"
    for spec in step.inputs:
        yield f"  {spec.name:<14} {spec.description}{'' if spec.required else ' (optional)'}"
    if not step.inputs:
        yield "  none"
    yield ""
    yield f"settings (section '{step.name}' of params.yaml; --set {step.name}.NAME=VALUE):"
    yield from describe_settings(step.config)


def describe_settings(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Lines with the name, type, default and description of every setting of ``cls``, nested ones by dotted name."""
    for name, field in cls.model_fields.items():
        nested = field.annotation if isinstance(field.annotation, type) else None
        if nested is not None and issubclass(nested, Settings):
            yield from describe_settings(nested, f"{prefix}{name}.")
            continue
        default = _plain(field.get_default(call_default_factory=True))
        shown = "required" if field.is_required() else json.dumps(default)
        yield f"  {prefix}{name}: {type_name(field.annotation)} = {shown}"
        if field.description:
            yield f"      {' '.join(field.description.split())}"


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def type_name(annotation: Any) -> str:
    """A type as people write it: 'int', 'str | None', "'cpu' | 'cuda'"."""
    import types
    import typing

    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is typing.Literal:
        return " | ".join(repr(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_name(argument) for argument in arguments)
    if annotation is type(None):
        return "None"
    if origin is not None:
        inner = ", ".join("..." if argument is Ellipsis else type_name(argument) for argument in arguments)
        return f"{origin.__name__}[{inner}]"
    return getattr(annotation, "__name__", str(annotation))
