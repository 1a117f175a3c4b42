"""The requests of a bulk run: several under way, patience with the server, one version for all, rows in order."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from foundry.errors import UserError
from serving.client import EmbeddingClient, Embeddings, NotServed, RefusedImage, Unanswered
from serving.image_paths import ImagePaths
from serving.parts import Parts, Row

FIRST_DELAY, LONGEST_DELAY = 0.05, 2.0
"""Seconds before a request is repeated: doubled each time up to the longest; drawn between half of it and all."""
WITHDRAWN = 5.0
"""Seconds for which other versions alone must answer before the run's own counts as withdrawn: a server that starts may
load it last."""
TELL = 3.0
"""Seconds without an answer after which a line says that the run waits."""
_WAYS_ON = "begin anew with --anew, or take both into one output with --allow-change"
_REFUSED = re.compile(r"image (\d+): (.*?)(?:; and \d+ more)?", re.DOTALL)


class Changed(UserError):
    """Another version answers, or other weights under the same number, than the rows that are there came from."""


@dataclass(frozen=True)
class BulkOptions:
    """How a run asks."""

    batch: int = 8
    """Images of a request; fewer where the model takes fewer."""
    concurrency: int = 4
    """Requests under way at once."""
    patience: float = 60.0
    """Seconds without any answer after which the run ends; its rows are kept."""
    version: int | None = None
    """The version to ask; None is the newest at the start, which stays the run's."""
    patch_features: bool = False
    allow_change: bool = False
    """Take the newest version's answer to each request, whatever answered before; each row says which it was."""


def shown(answered: tuple[int, str]) -> str:
    """(version, digest) as a person reads it."""
    return f"version {answered[0]} (digest {answered[1][:12]})"


@dataclass(frozen=True)
class _Item:
    position: int
    data: bytes


class BulkRequests:
    """One run's requests; its greenlets share the version that answers and the time of the last answer."""

    def __init__(
        self, client: EmbeddingClient, images: ImagePaths, options: BulkOptions, parts: Parts, notes: TextIO
    ) -> None:
        self._client, self._images, self._options, self._notes = client, images, options, notes
        self._answered: tuple[int, str] | None = next(reversed(parts.versions), None)
        self._last_answer = 0.0
        self._withdrawn_since: float | None = None
        self._version = options.version
        self._told = False
        served = client.versions()
        if options.version is not None and served and options.version not in served:
            raise NotServed(
                f"{client.url}: model '{client.model}' has no version {options.version} now; "
                f"served: {', '.join(map(str, served))}"
            )
        if not options.allow_change:
            self._version = self._pinned(served, parts)
        try:
            self._batch = min(options.batch, client.largest_request())
        except UserError:  # a server that keeps its configurations to itself
            self._batch = options.batch

    def _pinned(self, served: list[int], parts: Parts) -> int | None:
        """The version that the whole run asks: that of the rows that are there, the one named, or the newest."""
        asked = self._options.version
        if self._answered is None:
            return asked if asked is not None or not served else served[-1]
        if asked not in (None, self._answered[0]):
            raise Changed(
                f"{parts.folder}: its rows are of version {self._answered[0]}, asked for is {asked}; "
                "finish them with that version, or begin anew with --anew"
            )
        return self._answered[0]

    def answers(self, paths: Sequence[str]) -> Iterator[list[Row]]:
        """Rows of ``paths`` in order, those of a request at a time."""
        from gevent.pool import Pool  # type: ignore[import-untyped]

        def ask(chunk: Sequence[str]) -> list[Row] | Exception:
            try:
                return self._rows(chunk)
            except Exception as error:  # what leaves a greenlet is printed with its traceback
                return error

        chunks = (paths[start : start + self._batch] for start in range(0, len(paths), self._batch))
        pool = Pool(self._options.concurrency)
        try:
            # Answers that wait for an earlier one are bounded too.
            for answer in pool.imap(ask, chunks, maxsize=2 * self._options.concurrency):
                if isinstance(answer, Exception):
                    raise answer
                yield answer
        finally:
            pool.kill()

    def _rows(self, paths: Sequence[str]) -> list[Row]:
        import gevent  # type: ignore[import-untyped]

        # On a thread: a slow disk or network folder must not stop the other requests.
        contents = gevent.get_hub().threadpool.apply(self._read, (paths,))
        items = [_Item(position, data) for position, data in enumerate(contents) if isinstance(data, bytes)]
        unreadable = {position: text for position, text in enumerate(contents) if isinstance(text, str)}
        rows = {position: Row(paths[position], error=text) for position, text in unreadable.items()}
        rows |= self._ask(paths, items)
        return [rows[position] for position in range(len(paths))]

    def _read(self, paths: Sequence[str]) -> list[bytes | str]:
        contents: list[bytes | str] = []
        for path in paths:
            try:
                contents.append(self._images.read(path))
            except OSError as error:
                contents.append(f"cannot be read ({(error.strerror or 'error').lower()})")
        return contents

    def _ask(self, paths: Sequence[str], items: list[_Item]) -> dict[int, Row]:
        """A row for each item; when one is refused, the others are asked for again without it."""
        rows: dict[int, Row] = {}
        while items:
            try:
                answer = self._answer([item.data for item in items])
            except RefusedImage as refusal:
                match = _REFUSED.fullmatch(str(refusal))
                index = 0 if len(items) == 1 else int(match[1]) if match else len(items)
                if index >= len(items):  # it does not say which: halves find out
                    middle = len(items) // 2
                    return rows | self._ask(paths, items[:middle]) | self._ask(paths, items[middle:])
                position = items[index].position
                rows[position] = Row(paths[position], error=match[2] if match else str(refusal))
                items = items[:index] + items[index + 1 :]
                continue
            for index, item in enumerate(items):
                rows[item.position] = Row(
                    paths[item.position],
                    answer.embedding[index],
                    None if answer.patch_features is None else answer.patch_features[index],
                    answer.version,
                    answer.digest,
                )
            break
        return rows

    def _answer(self, images: list[bytes]) -> Embeddings:
        """The answer to one request, repeated while the server is away or full."""
        import gevent

        delay, began = FIRST_DELAY, time.monotonic()
        while True:
            try:
                answer = self._client.embed(images, self._options.patch_features, self._version)
            except (NotServed, Unanswered) as error:
                self._look_for_change()
                silent = time.monotonic() - max(began, self._last_answer)
                if silent >= self._options.patience:
                    raise UserError(f"{error}; no answer for {silent:.3g} s (--patience)") from None
                if silent >= TELL and not self._told:
                    self._told = True
                    print(f"note: waits up to {self._options.patience:.0f} s: {error}", file=self._notes)
                gevent.sleep(delay * random.uniform(0.5, 1.0))
                delay = min(2 * delay, LONGEST_DELAY)
                continue
            except RefusedImage:
                self._last_answer = time.monotonic()
                raise
            self._last_answer, self._told = time.monotonic(), False
            self._compare(answer)
            return answer

    def _compare(self, answer: Embeddings) -> None:
        came, before = (answer.version, answer.digest), self._answered
        if before is not None and came != before:
            line = f"{shown(came)} answers now, the rows before are of {shown(before)}"
            if not self._options.allow_change:
                raise Changed(f"model '{answer.model}': {line}; {_WAYS_ON}")
            print(f"note: {line}", file=self._notes)
        self._answered = came

    def _look_for_change(self) -> None:
        """Raise :class:`Changed` where the run's version is gone for good while others answer."""
        if self._version is None or self._options.allow_change:
            return
        try:
            served = self._client.versions()
        except UserError:
            served = []
        if not served or self._version in served:
            self._withdrawn_since = None
        elif self._withdrawn_since is None:
            self._withdrawn_since = time.monotonic()
        elif time.monotonic() - self._withdrawn_since >= WITHDRAWN:
            raise Changed(
                f"model '{self._client.model}': version {self._version}, which this run asks, is not served any more "
                f"(served: {', '.join(map(str, served))}); {_WAYS_ON}"
            )
