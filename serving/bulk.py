"""Embeddings of many images into one output, which a killed run continues and nobody sees half-written."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import TextIO

from foundry.errors import UserError
from foundry.progress import Progress
from serving.bulk_requests import BulkOptions, BulkRequests, Changed, shown
from serving.client import EmbeddingClient
from serving.image_paths import ImagePaths
from serving.parts import Parts, folder_of
from serving.vector_files import check_format, write_json, write_output

QUIET = 32
"""Runs of at most as many images show no progress."""
REFUSED_STATUS = 3
"""Exit status of a run whose output is whole, with reasons in place of some embeddings."""


def embed_files(
    images: ImagePaths, url: str, model: str, options: BulkOptions, output: Path | None, *, anew: bool = False
) -> int:
    """Embed ``images`` into ``output`` (JSON on the standard output without one) and say what came of it.

    0, or :data:`REFUSED_STATUS` where images were refused. Raises what :func:`embed_into` raises; what is done by then
    lies beside ``output``, and the same call goes on from there.
    """
    for name, value in (("batch", options.batch), ("concurrency", options.concurrency)):
        if value < 1:
            raise UserError(f"--{name} {value}: give 1 or more")
    if images.left_out:
        print(f"note: {images.left_out} files of the folders left out: their ending is no image's", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        if output is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="foundry-embed-")))
        else:
            check_format(output)
            folder = folder_of(output)
        description = {
            "schema_version": 1,
            "model": model,
            "images": len(images.paths),
            "paths": images.digest(),
            "patch_features": options.patch_features,
        }
        parts = stack.enter_context(Parts(folder, description, anew=anew))
        kept = parts.done
        if kept:
            print(f"note: goes on after {kept} of {len(images.paths)} images ({folder})", file=sys.stderr)
        try:
            embed_into(parts, images, url, model, options, sys.stderr)
        except UserError as error:
            if not parts.done:
                parts.discard()
            if output is None or isinstance(error, Changed) or not parts.done:
                raise
            raise UserError(
                f"{error}; {parts.done} of {len(images.paths)} images are done, the same command goes on from there"
            ) from None
        if output is None:
            write_json(parts, sys.stdout, model)
        else:
            print(write_output(parts, output, model, options.patch_features))
        answered = ", ".join(shown(key) for key in parts.versions)
        if len(parts.versions) > 1:
            print(
                f"note: several versions answered: {answered}; compare no embedding of one with another's",
                file=sys.stderr,
            )
        parts.discard()
    if parts.first_error is None:
        return 0
    first, where = parts.first_error, output or "the output"
    more = f"the first of {parts.errors}; reasons" if parts.errors > 1 else "reason"
    print(f"refused: {first.path}: {first.error} ({more} in {where})", file=sys.stderr)
    return REFUSED_STATUS


def embed_into(parts: Parts, images: ImagePaths, url: str, model: str, options: BulkOptions, notes: TextIO) -> None:
    """Ask for the embeddings of the images that ``parts`` has no row for, and add a row for each, in order.

    A refused or unreadable image gives a row with its reason. Raises :class:`UserError` where no server with that model
    answers at the start, where none answers for ``options.patience`` seconds later, and :class:`Changed`. Rows that are
    there by then stay.
    """
    with EmbeddingClient(url, model, options.version, concurrency=options.concurrency) as client:
        run = BulkRequests(client, images, options, parts, notes)
        remaining = images.paths[parts.done :]
        if len(remaining) <= QUIET:
            for rows in run.answers(remaining):
                parts.add(rows)
            return
        with Progress("embed", len(images.paths), done=parts.done, stream=notes) as progress:
            for rows in run.answers(remaining):
                parts.add(rows)
                progress.advance(len(rows), f"{parts.errors} refused" if parts.errors else "")
