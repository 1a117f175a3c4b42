"""The process that decodes hostile files: limited in memory and processor time, and gone when its parent is.

Reads files from standard input and writes an answer for each to standard output:
file = 8 bytes length + content; answer = 4 bytes length + JSON + raw arrays of the lengths that the JSON names.
Nothing that comes back from here is unpickled or executed.
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
from typing import Any, BinaryIO

LENGTH = struct.Struct(">Q")
ANSWER = struct.Struct(">II")
WALL_FACTOR = 6
"""Wall-clock time allowed, in multiples of the processor time allowed: a busy machine costs nobody a file."""
_PR_SET_PDEATHSIG = 1


def serve(options: dict[str, Any]) -> None:
    """Answer until standard input ends. ``options``: limits (fields of DecodeLimits), seconds, memory (bytes), parent
    (process id)."""
    if sys.platform == "linux":  # elsewhere the end of standard input and the timers end it, a little later
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != options["parent"]:
        return  # it died before the line above
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    source = os.fdopen(os.dup(0), "rb")
    target = os.fdopen(os.dup(1), "wb")

    from foundry.images import DecodeLimits

    limits = DecodeLimits(**options["limits"])
    _measured(_blank(), limits)  # everything is imported and allocated before memory is limited
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # C libraries print there
        os.dup2(nothing, descriptor)
    _limit_memory(options["memory"])
    _answer(target, {"ready": True})
    while header := source.read(LENGTH.size):
        data = source.read(LENGTH.unpack(header)[0])
        signal.setitimer(signal.ITIMER_PROF, options["seconds"])
        signal.setitimer(signal.ITIMER_REAL, options["seconds"] * WALL_FACTOR)
        answer, arrays = _measured(data, limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _answer(target, answer, arrays)


def _measured(data: bytes, limits: Any) -> tuple[dict[str, Any], bytes]:
    from components.curation.measurement import measure
    from foundry.images import FORMATS, ImageError, decode_image, sniff

    digest = hashlib.sha256(data).hexdigest()
    try:
        found = measure(decode_image(data, limits))
    except ImageError as error:
        return {"sha256": digest, "reason": error.reason, "detail": error.detail}, b""
    except MemoryError:
        return {"sha256": digest, "reason": "too-costly", "detail": "needs more memory than one file may"}, b""
    kind = sniff(data)
    values = {name: getattr(found, name) for name in ("width", "height", "pixels_sha256", "contrast", "hash")}
    extension = FORMATS[kind].extension if kind in FORMATS else "img"
    return {"sha256": digest, "extension": extension, **values}, found.grey.tobytes() + found.colour.tobytes()


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


def _answer(target: BinaryIO, values: dict[str, Any], arrays: bytes = b"") -> None:
    text = json.dumps(values).encode()
    target.write(ANSWER.pack(len(text), len(arrays)) + text + arrays)
    target.flush()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
