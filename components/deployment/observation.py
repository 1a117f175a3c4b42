"""Errors of a served version from the metrics endpoint, and whether they rose after a switch."""

from __future__ import annotations

import json
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from components.deployment.config import DeploymentConfig
from components.deployment.desired_state import Observation
from foundry.errors import UserError
from foundry.storage import write_atomically
from serving.triton_backend.metrics import IMAGES_TOTAL, INTERNAL_ERROR


@dataclass(frozen=True)
class Counters:
    """What one version of a model has answered since it was loaded."""

    requests: float = 0
    """Answered or failed; those that their caller cancelled are left out."""
    failures: float = 0
    """Of these, failed in the server or turned away by a full queue."""
    images: float = 0
    """That reached the model, those it refused included."""
    errors: float = 0
    """Of these, ended by an error of the program. Triton counts their requests as answered."""

    def since(self, start: Counters) -> Counters:
        """What came after ``start``; all, where the version was loaded anew and counts from nothing."""
        pairs = list(zip(asdict(self).values(), asdict(start).values(), strict=True))
        if any(now < then for now, then in pairs):
            return self
        return Counters(*(now - then for now, then in pairs))

    @property
    def rate(self) -> float:
        """Share of failed requests and share of images that ended in an error, together; 0 without any."""
        return self.failures / max(1.0, self.requests) + self.errors / max(1.0, self.images)


def parse_counters(text: str, model: str, version: int) -> Counters:
    """The counters of one version in the text of the metrics endpoint."""
    from prometheus_client.parser import text_string_to_metric_families

    success = failures = images = errors = 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("model") != model or sample.labels.get("version") != str(version):
                continue
            name = sample.name.removesuffix("_total")  # the parser adds it to counters that have none
            if name == "nv_inference_request_success":
                success += sample.value
            elif name == "nv_inference_request_failure" and sample.labels.get("reason") != "CANCELED":
                failures += sample.value
            elif name == IMAGES_TOTAL.removesuffix("_total"):
                images += sample.value
                errors += sample.value if sample.labels.get("outcome") == INTERNAL_ERROR else 0.0
    return Counters(success + failures, failures, images, errors)


def read_metrics(url: str) -> str:
    """The text of a metrics endpoint. Raises :class:`UserError` where none answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as response:
            return str(response.read().decode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"{url}: no metrics endpoint answers there ({error})") from None


@dataclass(frozen=True)
class Watch:
    """A version under observation, as kept on disk."""

    version: int
    previous: int
    rate_before: float
    started: float | None = None
    """Unix seconds; None while the version is on its way."""
    start: Counters = Counters()


class Observations:
    """The versions that took over lately on this server. They outlive the process in a file."""

    def __init__(self, path: Path, config: DeploymentConfig, clock: Callable[[], float] = time.time) -> None:
        self._path, self._config, self._clock = path, config, clock
        self._samples: dict[tuple[str, int], deque[tuple[float, Counters]]] = {}
        self._watches = _read(path)

    def note(self, model: str, version: int, metrics: str) -> None:
        """Remember the counters of the default version, for its error rate in the last ``observe_seconds``."""
        for key in [key for key in self._samples if key[0] == model and key[1] != version]:
            del self._samples[key]
        samples = self._samples.setdefault((model, version), deque(maxlen=1000))
        samples.append((self._clock(), parse_counters(metrics, model, version)))
        while len(samples) > 2 and samples[1][0] < self._clock() - self._config.observe_seconds:
            samples.popleft()

    def expect(self, model: str, version: int, previous: int, metrics: str) -> None:
        """Say that ``version`` is about to take over from ``previous``."""
        if not self._config.observe_seconds:
            return
        counters = parse_counters(metrics, model, previous)
        samples = self._samples.get((model, previous))
        before = counters.since(samples[0][1]) if samples else counters
        before = before if before.requests else counters
        self._watches[model] = Watch(version, previous, before.rate)
        self._write()

    def begin(self, model: str, metrics: str) -> None:
        """Count from here on: the expected version has taken over."""
        watch = self._watches.get(model)
        if watch is not None and watch.started is None:
            start = parse_counters(metrics, model, watch.version)
            self._watches[model] = replace(watch, started=self._clock(), start=start)
            self._write()

    def end(self, model: str) -> None:
        """Stop observing."""
        if self._watches.pop(model, None) is not None:
            self._write()

    def any_open(self) -> bool:
        """Whether a version is under observation."""
        return bool(self._watches)

    def judge(self, model: str, metrics: str) -> Observation | None:
        """The state of the observation of ``model``; None without one."""
        watch = self._watches.get(model)
        if watch is None:
            return None
        if watch.started is None:
            return Observation(watch.version, "open")
        after = parse_counters(metrics, model, watch.version).since(watch.start)
        if after.requests >= self._config.observe_requests:
            if after.rate > watch.rate_before + self._config.error_rate_margin:
                why = (
                    f"after the switch {100 * after.rate:.1f} % of {after.requests:.0f} requests ended in errors, "
                    f"{100 * watch.rate_before:.1f} % with version {watch.previous} before "
                    f"({100 * self._config.error_rate_margin:g} points more are allowed)"
                )
                return Observation(watch.version, "errors", why)
        if self._clock() - watch.started >= self._config.observe_seconds:
            why = f"{100 * after.rate:.1f} % errors in {after.requests:.0f} requests after the switch"
            return Observation(watch.version, "fine", why)
        return Observation(watch.version, "open")

    def _write(self) -> None:
        document = {model: asdict(watch) for model, watch in self._watches.items()}
        write_atomically(self._path, json.dumps(document, indent=1) + "\n")


def _read(path: Path) -> dict[str, Watch]:
    try:
        rows: Iterable[tuple[str, dict[str, object]]] = json.loads(path.read_text(encoding="utf-8")).items()
        return {
            model: Watch(**{**row, "start": Counters(**row["start"])})  # type: ignore[arg-type]
            for model, row in rows
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
