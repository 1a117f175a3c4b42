"""The line around Pillow: whatever a decoder raises or warns of stays on the other side."""

from __future__ import annotations

import contextlib
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from foundry.images import structure
from foundry.images.errors import ImageError

_UNSUPPORTED = re.compile(
    r"cannot handle|unsupported|not (yet )?supported|unknown (pixel|tga|data|compression)|not implemented",
    re.IGNORECASE,
)
_TRUNCATED = re.compile(
    r"truncat|unexpected end|end of file|not enough|not large enough|bytes not processed|reached eof", re.IGNORECASE
)


@contextlib.contextmanager
def only_image_errors(name: str, data: bytes) -> Iterator[None]:
    """Turn whatever a decoder raises into an :class:`ImageError`, and keep its warnings to itself."""
    from PIL import Image

    with _quiet:
        try:
            yield
        except ImageError:
            raise
        except Image.DecompressionBombError as error:
            raise ImageError("too-many-pixels", str(error)) from error
        except MemoryError as error:
            raise ImageError("too-costly", "not enough memory") from error
        except Exception as error:
            message = f"{name}: {error}" if str(error) else f"{name}: {type(error).__name__}"
            root = error.__cause__ or error
            if _UNSUPPORTED.search(message):
                reason = "unsupported"
            elif (
                _TRUNCATED.search(message)
                or isinstance(root, (EOFError, IndexError, struct.error))
                or structure.is_cut_short(name, data)
            ):
                reason = "truncated"
            else:
                reason = "corrupt"
            raise ImageError(reason, message) from error


class _Quiet:
    """Ignore Pillow's warnings while any thread decodes.

    ``warnings.catch_warnings`` would restore one thread's filters over another's; this adds one filter for the
    first thread that enters and takes that one out again with the last.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filter: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                warnings.filterwarnings("ignore", module=r"PIL\.")
                self._filter = warnings.filters[0]
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                with contextlib.suppress(ValueError):
                    warnings.filters.remove(self._filter)  # type: ignore[attr-defined]


_quiet = _Quiet()
