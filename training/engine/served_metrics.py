"""The numbers of ``metrics.jsonl`` as Prometheus gauges, served by the first process of a run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from foundry.errors import UserError
from foundry.storage import write_atomically

PORT_VARIABLE = "FOUNDRY_METRICS_PORT"
"""Port to serve on (0: a free one); nothing is served where it is not set."""
ADDRESS_FILE = "prometheus.txt"
"""File of the run folder that holds the address while the run lives."""
_ADDRESS_VARIABLE = "FOUNDRY_METRICS_ADDRESS"
_WRONG = re.compile(r"[^a-zA-Z0-9_]")


class ServedMetrics:
    """Gauges ``foundry_training_<name>`` with the labels ``recipe`` and ``part`` (a student, ``backbone`` ...).

    ``foundry_training_step`` is the last logged step, ``foundry_training_events_total`` counts events by kind.
    """

    def __init__(self, port: int, recipe: str, folder: Path, address: str = "127.0.0.1") -> None:
        from prometheus_client import CollectorRegistry, Counter, start_http_server

        self._recipe, self._registry = recipe, CollectorRegistry()
        self._gauges: dict[str, Any] = {}
        self._events = Counter(
            "foundry_training_events", "Events of the run by kind.", ("recipe", "event"), registry=self._registry
        )
        try:
            self._server, self._thread = start_http_server(port, address, registry=self._registry)
        except OSError as error:
            raise UserError(f"{PORT_VARIABLE}={port}: cannot be served on ({error.strerror})") from None
        self.port: int = self._server.server_port
        self._file = folder / ADDRESS_FILE
        write_atomically(self._file, f"http://{address}:{self.port}/metrics\n")

    @classmethod
    def from_environment(cls, recipe: str, folder: Path) -> ServedMetrics | None:
        """As ``FOUNDRY_METRICS_PORT`` (and ``FOUNDRY_METRICS_ADDRESS``, 127.0.0.1 by default) say; None without."""
        text = os.environ.get(PORT_VARIABLE, "")
        if not text:
            return None
        if not text.isdigit() or int(text) > 65535:
            raise UserError(f"{PORT_VARIABLE}={text}: expected a port number, or 0 for a free one")
        return cls(int(text), recipe, folder, os.environ.get(_ADDRESS_VARIABLE, "127.0.0.1"))

    def show(self, step: int, values: dict[str, float]) -> None:
        """Take ``values`` as the latest."""
        for name, value in {**values, "step": float(step)}.items():
            metric, part = self._split(name)
            self._gauge(metric).labels(recipe=self._recipe, part=part).set(value)

    def count(self, event: str) -> None:
        """Count one event."""
        self._events.labels(recipe=self._recipe, event=event).inc()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._file.unlink(missing_ok=True)

    @staticmethod
    def _split(name: str) -> tuple[str, str]:
        """``vit/koleo`` is metric koleo of part vit; ``gradient_norm/backbone`` is gradient_norm of part backbone."""
        pieces = name.split("/")
        if "gradient_norm" in pieces:
            return "gradient_norm", "/".join(piece for piece in pieces if piece != "gradient_norm")
        return pieces[-1], "/".join(pieces[:-1])

    def _gauge(self, metric: str) -> Any:
        from prometheus_client import Gauge

        if metric not in self._gauges:
            name = f"foundry_training_{_WRONG.sub('_', metric)}"
            text = f"'{metric}' of metrics.jsonl, latest value."
            self._gauges[metric] = Gauge(name, text, ("recipe", "part"), registry=self._registry)
        return self._gauges[metric]
