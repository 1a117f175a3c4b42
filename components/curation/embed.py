"""Embeddings of a pool by a backbone, in parts of a fixed number of files that any number of processes make.

    python -m components.curation.embed --pool URL --backbone MODEL [--part I --parts N] [--output DIR]

A part is named by the backbone, the files in it and all else that decides its numbers, and lies below
``$FOUNDRY_HOME/cache/embeddings``: what one process or pod has made, curation and every other one find. With ``--parts
N`` this command makes the I-th of N consecutive shares of them, so that N pods make all; with ``--output`` it makes all
and gathers them as a matrix with keys, which curation takes as its input ``embeddings``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.errors import UserError, run_command

if TYPE_CHECKING:
    from components.curation.config import CurationConfig
    from components.curation.embeddings import PoolFiles


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m components.curation.embed", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pool", required=True, metavar="URL", help="the pool, as for components.curation")
    parser.add_argument(
        "--backbone", required=True, metavar="MODEL", help="training run, Hugging Face folder or models:/NAME@ALIAS"
    )
    parser.add_argument("--part", type=int, default=0, metavar="I", help="which share, 0 ... N - 1")
    parser.add_argument("--parts", type=int, default=1, metavar="N", help="shares that the pool is divided into")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the matrix and its keys")
    parser.add_argument("--params", type=Path, metavar="FILE", help="settings (default: params.yaml here)")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="a.b=c", help="change a setting"
    )
    parser.add_argument("--known", type=Path, help=argparse.SUPPRESS)  # what curation has found out of the pool
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    from components.common.execution import sample_folder
    from components.common.model_inputs import network_folder
    from components.common.params import load_params
    from components.common.processes import kill_descendants
    from components.curation.embeddings import PoolFiles
    from foundry.lifetime import die_with_launcher

    arguments = _parser().parse_args(argv)
    die_with_launcher(before_exit=kill_descendants)
    config = load_params(arguments.params, arguments.overrides).curation
    pool = sample_folder(arguments.pool)
    network = network_folder(arguments.backbone)
    if arguments.output is not None:
        if arguments.parts != 1:
            raise UserError("--output: gathers the whole pool; leave --parts out")
        return _gather(config, pool, network, arguments.output)
    known = PoolFiles.read(arguments.known) if arguments.known else None
    made = embed_share(config, pool, network, arguments.part, arguments.parts, known)
    print(f"embed: share {arguments.part} of {arguments.parts}, {made} parts made")
    return 0


def embed_share(
    config: CurationConfig, url: str, network: Path, part: int, parts: int, known: PoolFiles | None = None
) -> int:
    """Make what is missing of share ``part`` of ``parts`` of the pool at ``url``; returns the number of parts made.

    ``known``: a :class:`PoolFiles` of the whole pool, where it was looked through already. Raises :class:`UserError`
    where the pool or the network cannot be read.
    """
    from components.curation import embeddings
    from components.curation.pool import open_pool
    from training.data.sampler import share

    if not 0 <= part < parts:
        raise UserError(f"--part {part}: give one of 0 to {parts - 1}")
    pool = open_pool(url)
    if known is None:
        total = -(-pool.count() // embeddings.PART_FILES)
        own = share(total, part, parts)
        known = embeddings.look_through(pool, config.decode, own)
    else:
        own = share(known.parts, part, parts)
    store = embeddings.Store.of(network, config.embedding)
    return embeddings.make_parts(pool, known, own, network, store, config)


def embed_share_of_line(config: Mapping[str, Any], url: str, backbone: str, part: int, parts: int) -> int:
    """:func:`embed_share` with a line's values: ``config`` is its section ``curation``, ``backbone`` may be empty."""
    from components.common.execution import sample_folder
    from components.common.fingerprint import whole_numbers
    from components.common.model_inputs import network_folder
    from components.curation.config import CurationConfig
    from foundry.settings import load_settings

    if backbone in ("", "none"):
        return 0
    settings = load_settings(CurationConfig, whole_numbers(config), "curation")
    return embed_share(settings, sample_folder(url), network_folder(backbone), part, parts)


def _gather(config: CurationConfig, url: str, network: Path, output: Path) -> int:
    import numpy as np

    from components.curation import embeddings
    from components.curation.pool import open_pool
    from components.curation.shards import key_of

    pool = open_pool(url)
    total = -(-pool.count() // embeddings.PART_FILES)
    known = embeddings.look_through(pool, config.decode, range(total))
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        parts = embeddings.embed_pool(config, pool, network, known, Path(work))
    rows = np.flatnonzero(known.decoded)
    rows = rows[np.sort(np.unique([known.sha256[row] for row in rows.tolist()], return_index=True)[1])]
    embeddings.write_matrix(output, [key_of(known.sha256[row]) for row in rows.tolist()], parts, rows)
    print(f"embed: {len(rows)} images in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
