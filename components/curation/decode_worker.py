"""The process that decodes hostile files: limited in memory and processor time, and gone when its parent is.

Reads batches of files from standard input and writes an answer for each batch to standard output:
batch = number of files + their lengths + their contents; answer = lengths of JSON and arrays + JSON (a list, one entry
a file) + the raw arrays of the files that were measured. Nothing that comes back from here is unpickled or executed.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from components.curation.measurement import Sketch
    from foundry.images import DecodeLimits

COUNT = struct.Struct(">I")
ANSWER = struct.Struct(">II")
WALL_FACTOR = 6
"""Wall-clock time allowed, in multiples of the processor time allowed: a busy machine costs nobody a file."""
FIGURES = ("width", "height", "pixels_sha256", "contrast", "hash")
"""Fields of a measurement that an answer holds; the arrays follow it."""
_PR_SET_PDEATHSIG = 1


def serve(options: dict[str, Any]) -> None:
    """Answer until standard input ends. ``options``: limits (fields of DecodeLimits), seconds, memory (bytes), parent
    (process id), closeups (whether close-ups are wanted instead of measurements)."""
    if sys.platform == "linux":  # elsewhere the end of standard input and the timers end it, a little later
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != options["parent"]:
        return  # it died before the line above
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    source = os.fdopen(os.dup(0), "rb")
    target = os.fdopen(os.dup(1), "wb")

    import cv2

    from foundry.images import DecodeLimits

    cv2.setNumThreads(0)
    limits = DecodeLimits(**options["limits"])
    look: Callable[[bytes, DecodeLimits], Any] = _close_look if options["closeups"] else _looked_at
    answers: Callable[[Any], tuple[list[dict[str, Any]], bytes]]
    answers = _close_answers if options["closeups"] else _answers
    answers([look(_blank(), limits)])  # everything is imported and allocated before memory is limited
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # C libraries print there
        os.dup2(nothing, descriptor)
    _limit_memory(options["memory"])
    _answer(target, [], b"")
    while header := source.read(COUNT.size):
        (count,) = COUNT.unpack(header)
        seen: list[Any] = []
        for length in struct.unpack(lengths_format(count), source.read(8 * count)):
            data = source.read(length)
            signal.setitimer(signal.ITIMER_PROF, options["seconds"])
            signal.setitimer(signal.ITIMER_REAL, options["seconds"] * WALL_FACTOR)
            seen.append(look(data, limits))
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
        _answer(target, *answers(seen))


def lengths_format(count: int) -> str:
    """Layout of the lengths of ``count`` files, for :mod:`struct`."""
    return f">{count}Q"


def _looked_at(data: bytes, limits: DecodeLimits) -> tuple[dict[str, Any], Sketch | None]:
    """Digest and extension, or the reason for a refusal; and the sketch of what was decoded."""
    from components.curation.measurement import sketch
    from foundry.images import FORMATS, ImageError, decode_image, sniff

    digest = hashlib.sha256(data).hexdigest()
    try:
        found = sketch(decode_image(data, limits))
    except ImageError as error:
        return {"sha256": digest, "reason": error.reason, "detail": error.detail}, None
    except MemoryError:
        return {"sha256": digest, "reason": "too-costly", "detail": "needs more memory than one file may"}, None
    kind = sniff(data)
    return {"sha256": digest, "extension": FORMATS[kind].extension if kind in FORMATS else "img"}, found


def _answers(seen: Sequence[tuple[dict[str, Any], Sketch | None]]) -> tuple[list[dict[str, Any]], bytes]:
    """The answers for a batch, and the arrays of what was measured."""
    from components.curation.measurement import measurements

    sketches = [found for _, found in seen if found is not None]
    measured = iter(measurements(sketches) if sketches else ())
    arrays = []
    for values, found in seen:
        if found is not None:
            figures = next(measured)
            arrays.append(figures.grey.tobytes() + figures.colour.tobytes())
            values |= {name: getattr(figures, name) for name in FIGURES}
    return [values for values, _ in seen], b"".join(arrays)


def _close_look(data: bytes, limits: DecodeLimits) -> tuple[dict[str, Any], bytes]:
    """The close-up of what was decoded, or the reason for a refusal."""
    from components.curation.closeup import take
    from foundry.images import ImageError, decode_image

    try:
        return {}, take(decode_image(data, limits)).tobytes()
    except (ImageError, MemoryError) as error:
        return {"reason": getattr(error, "reason", "too-costly")}, b""


def _close_answers(seen: Sequence[tuple[dict[str, Any], bytes]]) -> tuple[list[dict[str, Any]], bytes]:
    return [values for values, _ in seen], b"".join(pixels for _, pixels in seen)


def _blank() -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (80, 80)).save(file, "PNG")
    return file.getvalue()


def _limit_memory(extra: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return  # address space cannot be limited there; the limit on pixels still holds
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + extra, now + extra))


def _answer(target: BinaryIO, values: list[dict[str, Any]], arrays: bytes) -> None:
    text = json.dumps(values).encode()
    target.write(ANSWER.pack(len(text), len(arrays)) + text + arrays)
    target.flush()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
