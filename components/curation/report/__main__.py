"""``python -m components.curation.report DATASET``: the page of a curated dataset, made again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from foundry.errors import UserError, run_command


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    from components.common.manifest import read_manifest
    from components.curation.pool import Pool, open_pool
    from components.curation.report import write_report

    made = read_manifest(arguments.dataset)
    known = made.inputs.get("pool") if made else None
    url = arguments.pool or (known.url if known else "")
    pool: Pool | None = None
    try:
        pool = open_pool(url) if url else None
    except UserError:
        if arguments.pool:
            raise
    write_report(arguments.dataset, arguments.output, pool=pool, url=url, made=made)
    print(arguments.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m components.curation.report",
        description="Write the page of a curated dataset, with when and how fast it was made where a manifest tells.",
    )
    parser.add_argument("dataset", type=Path, help="folder of a curated dataset")
    parser.add_argument("--output", type=Path, default=Path("curation.html"), help="the page (default: curation.html)")
    parser.add_argument("--pool", help="pool that it was made from, for pictures of rejected files (default: if known)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
