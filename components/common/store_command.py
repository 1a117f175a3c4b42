"""``python -m components.common.store list | gc | check``."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from pathlib import Path

from components.common.manifest import find_damage
from components.common.retention import deletable, used_by_links, used_by_runs
from components.common.store import Store, delete, set_aside, size_of
from foundry.errors import UserError
from foundry.home import REPOSITORY
from foundry.progress import Progress


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    store = Store(arguments.store)
    if arguments.command == "list":
        _list(store, arguments.step)
    elif arguments.command == "check":
        _check(store, arguments.set_aside)
    else:
        _collect(store, arguments)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m components.common.store", description="Show, trim and check the store of step results."
    )
    parser.add_argument("--store", metavar="DIR", help="the store (default: FOUNDRY_STORE, else .foundry/store)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("list", help="results and unfinished work, with sizes")
    show.add_argument("--step", help="of this step only")
    trim = commands.add_parser("gc", help="what no recent run uses; deletes it only with --delete")
    trim.add_argument("--delete", action="store_true", help="delete (without it: only say what would go)")
    trim.add_argument("--keep-runs", type=int, default=5, metavar="N", help="keep what the last N runs used (5)")
    trim.add_argument(
        "--older-than", type=float, default=7.0, metavar="DAYS", help="keep what was used within DAYS days (7)"
    )
    trim.add_argument("--runs", type=Path, default=REPOSITORY / "runs", metavar="DIR", help="folder of the runs")
    check = commands.add_parser("check", help="compare every file with its manifest (reads everything)")
    check.add_argument("--set-aside", action="store_true", help="set damaged results aside, so that they are made anew")
    return parser


def _list(store: Store, step: str | None) -> None:
    total = 0
    for result in store.results():
        manifest = result.manifest
        if step and manifest.step != step:
            continue
        total += manifest.size()
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(result.path.stat().st_mtime))
        print(f"{manifest.step:<14} {result.path.name:<32} {_size(manifest.size()):>10}  last used {used}")
    for folder, state in store.leftovers():
        if step and folder.parent.name != step:
            continue
        size = size_of(folder)
        total += size
        print(f"{folder.parent.name:<14} {folder.stem:<32} {_size(size):>10}  {state}")
    print(f"{store.root}: {_size(total)}")


def _check(store: Store, aside: bool) -> None:
    results = list(store.results())
    damaged = 0
    with Progress("checking", len(results), "results") as progress:
        for result in results:
            damage = find_damage(result.path, result.manifest, thorough=True)
            if damage is not None:
                damaged += 1
                print(f"{result.path}: {damage}", flush=True)
                if aside:
                    set_aside(result.path)
            progress.advance()
    if damaged and not aside:
        raise UserError(f"{store.root}: {damaged} of {len(results)} results are damaged; set them aside: --set-aside")
    print(f"{store.root}: {len(results) - damaged} results are as their manifests say")


def _collect(store: Store, arguments: argparse.Namespace) -> None:
    used = used_by_runs(arguments.runs, arguments.keep_runs) | used_by_links(REPOSITORY / "artifacts")
    freed = 0
    for candidate in deletable(store, used, arguments.older_than):
        freed += candidate.bytes
        folder = candidate.folder
        print(f"{folder.parent.name:<14} {folder.name:<40} {_size(candidate.bytes):>10}  {candidate.reason}")
        if arguments.delete:
            delete(folder)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(folder.with_suffix(".owner"))
    if arguments.delete:
        print(f"{store.root}: {_size(freed)} deleted")
    else:
        print(f"{store.root}: {_size(freed)} could go (nothing was deleted; add --delete)")


def _size(count: int) -> str:
    for unit, step in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count} B"
