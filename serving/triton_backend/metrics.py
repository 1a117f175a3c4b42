"""What the served model counts, beside Triton's own nv_* metrics, on the server's metrics port."""

from __future__ import annotations

from typing import Any

IMAGES_TOTAL = "foundry_serving_images_total"
"""Counter; labels model, version, outcome: ``ok``, the reason an image was refused for, or ``internal-error``."""
INTERNAL_ERROR = "internal-error"
"""Outcome of an image that an error of the program ended (status 500); Triton counts the request as answered."""
DECODE_SECONDS = "foundry_serving_decode_seconds"
"""Histogram; labels model, version: decoding and preprocessing of the images of one executed batch."""
INFER_SECONDS = "foundry_serving_infer_seconds"
"""Histogram; labels model, version: the network, one executed batch."""

_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]


class ServingMetrics:
    """The metric families of one instance; ``pb_utils`` is Triton's module inside the stub."""

    def __init__(self, pb_utils: Any, model: str, version: str) -> None:
        self._labels = {"model": model, "version": version}
        counter, histogram = pb_utils.MetricFamily.COUNTER, pb_utils.MetricFamily.HISTOGRAM
        self._images = pb_utils.MetricFamily(
            name=IMAGES_TOTAL, description="Images by outcome: ok, why it was refused, or internal-error", kind=counter
        )
        self._families = {
            name: pb_utils.MetricFamily(name=name, description=description, kind=histogram)
            for name, description in (
                (DECODE_SECONDS, "Seconds to decode and preprocess the images of one batch"),
                (INFER_SECONDS, "Seconds of the network for one batch"),
            )
        }
        self._outcomes: dict[str, Any] = {}
        self._seconds = {
            name: family.Metric(labels=self._labels, buckets=_BUCKETS) for name, family in self._families.items()
        }
        self.count("ok", 0)

    def count(self, outcome: str, images: int = 1) -> None:
        """Add ``images`` with this outcome."""
        if outcome not in self._outcomes:
            self._outcomes[outcome] = self._images.Metric(labels={**self._labels, "outcome": outcome})
        self._outcomes[outcome].increment(images)

    def observe(self, name: str, seconds: float) -> None:
        """Add one measurement to the histogram ``name``."""
        self._seconds[name].observe(seconds)
