"""The release owner's commands on registered models: promote, rollback, history, resolve."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.errors import run_command

if TYPE_CHECKING:
    from components.registration.registry import Move

PROGRAM = "python -m components.registration"


def run_registry_command(argv: list[str] | None = None) -> int:
    """Run one of :data:`COMMANDS` (default: the process's arguments); returns the exit status."""
    return run_command(_main, argv)


def commands_help() -> str:
    """A few lines for ``--help``."""
    rows = "\n".join(f"  {name:<9} {help_text}" for name, (help_text, _, _) in COMMANDS.items())
    return f"commands on registered models ({PROGRAM} COMMAND --help):\n{rows}\n\nwithout a command, the step:\n"


def _main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Move and look at champions in the MLflow registry.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (help_text, add_arguments, action) in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(action=action)
    arguments = parser.parse_args(argv)
    return int(arguments.action(arguments) or 0)


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="registered model, for example dino-foundry-vit")


def _add_why(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--why", default="", help="reason, kept in the history")


def _promote_arguments(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument("version", metavar="VERSION", help="number, or an alias such as challenger")
    parser.add_argument("--anyway", action="store_true", help="even if its verdict failed; needs --why")
    _add_why(parser)


def _promote(arguments: argparse.Namespace) -> None:
    from components.registration.promotion import promote_by_hand
    from components.registration.registry import ModelRegistry

    registry = ModelRegistry()
    move = promote_by_hand(registry, arguments.name, arguments.version, arguments.why, arguments.anyway)
    if move is None:
        print(f"{arguments.name}: version {registry.champion(arguments.name)} is the champion already")
        return
    if move.overruled:
        print(f"{arguments.name}: promoted in spite of its verdict: {move.overruled}")
    _tell(arguments.name, move)


def _rollback_arguments(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    _add_why(parser)


def _rollback(arguments: argparse.Namespace) -> None:
    from components.registration.registry import ModelRegistry

    _tell(arguments.name, ModelRegistry().rollback(arguments.name, arguments.why or "rolled back by hand"))


def _tell(name: str, move: Move) -> None:
    before = f", before: version {move.previous}" if move.previous else ""
    print(f"{name}: champion is version {move.version} (verdict {move.verdict}{before})")
    print("the server follows at the next deployment, or at once where `components.deployment watch` runs")


def _history_arguments(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def _history(arguments: argparse.Namespace) -> None:
    from components.registration.registry import ModelRegistry

    registry = ModelRegistry()
    moves = registry.history(arguments.name)
    if arguments.json:
        from dataclasses import asdict

        print(json.dumps([asdict(move) for move in moves]))
        return
    if not moves:
        print(f"{arguments.name}: no version was champion yet")
        return
    rows = [("when (UTC)", "champion", "before", "moved by", "verdict", "why")]
    rows += [
        (move.time[:19].replace("T", " "), move.version, move.previous or "-", _moved_by(move), move.verdict, move.why)
        for move in moves
    ]
    print(_table(rows))
    for move in moves:
        if move.overruled:
            print(f"version {move.version} was promoted in spite of its verdict: {move.overruled}")


def _moved_by(move: Move) -> str:
    return f"{move.action} --anyway" if move.overruled else move.action


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _resolve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("students", nargs="*", metavar="STUDENT", help="names of students (default: all registered)")
    parser.add_argument("--prefix", default=None, help="of the registered models (default: the setting's default)")
    parser.add_argument(
        "--for",
        dest="distillation",
        type=Path,
        metavar="DIR",
        help="distillation result whose students are judged: one that is champion itself gets the one it replaced",
    )
    parser.add_argument(
        "--destination", type=Path, metavar="DIR", help="where the files go (default: .foundry/cache/champions)"
    )


def _resolve(arguments: argparse.Namespace) -> None:
    from components.registration.champions import default_destination, resolve_champions
    from components.registration.config import RegistrationConfig
    from components.registration.registry import ModelRegistry
    from components.registration.students import export_digests

    registry = ModelRegistry()
    prefix = arguments.prefix or RegistrationConfig().prefix
    students: Sequence[str] | dict[str, str] = arguments.students
    if arguments.distillation:
        digests = export_digests(arguments.distillation)
        students = {
            name: digest for name, digest in digests.items() if name in arguments.students or not arguments.students
        }
    elif not students:
        names = registry.model_names()
        students = [name.removeprefix(f"{prefix}-") for name in names if name.startswith(f"{prefix}-")]
    destination = arguments.destination or default_destination()
    print(json.dumps(resolve_champions(prefix, students, destination, registry=registry), sort_keys=True))


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]]] = {
    "promote": ("Make a version the champion.", _promote_arguments, _promote),
    "rollback": ("Make the champion before this one the champion again.", _rollback_arguments, _rollback),
    "history": ("Show how the champion changed.", _history_arguments, _history),
    "resolve": ("Download the champions and print them as JSON.", _resolve_arguments, _resolve),
}
