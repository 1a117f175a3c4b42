"""One file of a pool, and how it is read: bounded in bytes, its failures kept as a reason instead of raised."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

AHEAD_BYTES = 64 << 20
"""Bytes that are read ahead at most, where reading ahead pays (object stores, the web)."""
AHEAD_FILES = 32
"""Files that are read ahead at most."""


@dataclass(frozen=True)
class PoolFile:
    """One file of a pool: its encoded bytes, or why they could not be had."""

    path: str
    """Name within the pool (relative path, ``archive/member``, URL or row); printable, not necessarily unique."""
    data: bytes | None
    """The file's bytes, or None."""
    reason: str = ""
    """Slug of why ``data`` is None: ``unreadable`` or ``too-many-bytes``."""
    detail: str = ""
    """One line for a person."""


class Problem(Exception):
    """A file of the pool that cannot be had: ``reason`` (slug) and ``detail`` (one line)."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Member:
    """A file that is listed but not read yet.

    ``read(limit)`` returns at most ``limit`` bytes and may raise anything a damaged or absent file raises. Members of
    a stream (``independent`` false) must be read, or left, before the next one is asked for.
    """

    path: str
    size: int | None
    read: Callable[[int], bytes]
    independent: bool = False


def printable(name: str | bytes) -> str:
    """``name`` as valid UTF-8 text: bytes that are none appear as ``\\xNN``."""
    if isinstance(name, str) and name.isascii():
        return name
    raw = name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "backslashreplace")


def one_line(error: BaseException) -> str:
    """What an exception says, on one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def load(member: Member, max_bytes: int) -> PoolFile:
    """Read a member of at most ``max_bytes``; every failure becomes the file's ``reason``."""
    try:
        if member.size is not None and member.size > max_bytes:
            raise Problem("too-many-bytes", f"{member.size} bytes, the limit is {max_bytes}")
        listed = max_bytes if member.size is None else member.size
        data = member.read(listed + 1)  # a reader may set aside all the memory that it is asked for
        if listed < len(data) <= max_bytes and member.independent:
            data = member.read(max_bytes + 1)  # it has grown
        if len(data) > max_bytes:
            raise Problem("too-many-bytes", f"more than {max_bytes} bytes")
    except Problem as problem:
        return PoolFile(member.path, None, problem.reason, problem.detail)
    except Exception as error:  # noqa: BLE001 - whatever a store, a codec or a disk raises costs this file only
        return PoolFile(member.path, None, "unreadable", one_line(error))
    return PoolFile(member.path, data)


def load_all(members: Iterable[Member], max_bytes: int, start: int = 0, threads: int = 1) -> Iterator[PoolFile]:
    """Read ``members`` in order, without the first ``start``; independent ones ahead of time by ``threads``."""
    if threads <= 1:
        for number, member in enumerate(members):
            if number >= start:
                yield load(member, max_bytes)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="pool-read") as executor:
        waiting: deque[tuple[int, Callable[[], PoolFile]]] = deque()
        held = 0
        try:
            for number, member in enumerate(members):
                if number < start:
                    continue
                if member.independent:
                    size = min(member.size if member.size is not None else 1 << 20, max_bytes)
                    waiting.append((size, executor.submit(load, member, max_bytes).result))
                    held += size
                    while held > AHEAD_BYTES or len(waiting) > AHEAD_FILES:
                        size, result = waiting.popleft()
                        held -= size
                        yield result()
                else:
                    while waiting:
                        yield waiting.popleft()[1]()
                    held = 0
                    yield load(member, max_bytes)
            while waiting:
                yield waiting.popleft()[1]()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
