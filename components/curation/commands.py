"""Commands on curated datasets beside the step itself: delete."""

from __future__ import annotations

import argparse
from pathlib import Path

from foundry.errors import UserError, run_command

PROGRAM = "python -m components.curation"
COMMANDS = ("delete",)
HELP = f"""commands on curated datasets ({PROGRAM} COMMAND --help):
  delete    delete an image and its copies from a dataset, for good

without a command, the step:
"""


def run_dataset_command(argv: list[str] | None = None) -> int:
    """Run one of :data:`COMMANDS` (default: the process's arguments); returns the exit status."""
    return run_command(_main, argv)


def _main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Change a curated dataset.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "delete",
        help="delete an image and its copies from a dataset, for good",
        description="Write a dataset without an image and its copies. A tombstone says when and why it was deleted, "
        "and keeps it out of datasets that are made with this one as previous. The dataset that is read stays as it "
        "is, unless --output names it too.",
    )
    command.add_argument("--dataset", required=True, metavar="URL", help="curated dataset: folder, URL, PATH@REVISION")
    command.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder that shows the new dataset")
    command.add_argument("--key", action="append", default=[], metavar="KEY", help="key or sha256 of an image in it")
    command.add_argument("--image", default="", metavar="URL", help="the image itself or a copy, or a pool of images")
    command.add_argument("--reason", required=True, help="why; kept in the tombstone")
    command.add_argument(
        "--digests-only", action="store_true", help="keep no thumbnail; near copies are not told later"
    )
    command.add_argument("--store", metavar="DIR", help="step store (default: FOUNDRY_STORE, else .foundry/store)")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    _delete(parser.parse_args(argv))
    return 0


def _delete(arguments: argparse.Namespace) -> None:
    if not (arguments.key or arguments.image):
        raise UserError("delete: name the image by --key KEY or --image FILE")
    if not arguments.reason.strip():
        raise UserError("delete: --reason must say why")
    from components.common.execution import execute
    from components.common.store import Store
    from components.curation.deletion import STEP, DeletionConfig

    config = DeletionConfig(
        keys=tuple(sorted(set(arguments.key))), reason=arguments.reason.strip(), digests_only=arguments.digests_only
    )
    inputs = {"dataset": arguments.dataset, "image": arguments.image}
    outcome = execute(STEP, config, inputs, arguments.output, store=Store(arguments.store))
    found = outcome.metrics
    print(
        f"deleted {found['deleted_samples']} samples ({found['deleted_files']} files of the pool); "
        f"{arguments.output}: {found['samples']} samples, content {found['digest'][:12]}…"
    )
    print(
        f"the images still lie in the pool and in earlier datasets (content {found['previous'][:12]}…): "
        "remove these from the step store and DVC's caches where they must go from there too"
    )
