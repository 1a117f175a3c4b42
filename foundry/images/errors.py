"""What can be wrong with the bytes of an image: one exception, a fixed set of reasons."""

from __future__ import annotations

from foundry.errors import UserError

REASONS: dict[str, str] = {
    "empty": "the file is empty",
    "not-an-image": "the content is not an image",
    "unsupported": "this kind of image is not decoded",
    "too-many-bytes": "the file is larger than the limit",
    "too-many-pixels": "the image is larger than the limit",
    "too-costly": "decoding would take too much time or memory",
    "truncated": "the image ends too early",
    "corrupt": "the image is damaged",
}
"""Every value of :attr:`ImageError.reason`, with the words shown to people. docs/pixels.md explains each."""


class ImageError(UserError):
    """Bytes that do not become pixels. ``reason`` is a key of :data:`REASONS`; ``detail`` says more for people.

    The only exception that reading an image raises, whatever the bytes are. It knows no file name: callers add it.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = " ".join(detail.split())[:300]
        super().__init__(REASONS[reason] + (f" ({self.detail})" if self.detail else ""))

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        """Travels between processes (the arguments differ from the message, so the default would not)."""
        return type(self), (self.reason, self.detail)
