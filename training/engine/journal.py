"""What a run writes about itself: ``metrics.jsonl`` (numbers over steps) and ``events.jsonl`` (what happened)."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from foundry.storage import write_atomically
from training.engine.served_metrics import ServedMetrics


class Journal:
    """Appends one JSON object a line to the two logs of a run folder. Only the first process writes.

    ``served``: where the same numbers are shown to Prometheus.
    """

    def __init__(self, folder: Path, writes: bool, served: ServedMetrics | None = None) -> None:
        self.metrics_path, self.events_path = folder / "metrics.jsonl", folder / "events.jsonl"
        self._writes, self._served = writes, served

    def cut_after(self, step: int) -> None:
        """Drop metric lines of steps from ``step`` on (they will be computed again) and a half-written last line."""
        if not self._writes or not self.metrics_path.exists():
            return
        kept = []
        for line in self.metrics_path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] < step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue
        write_atomically(self.metrics_path, "".join(kept))

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Record ``values`` at 0-based ``step``; a value that is not finite is written as null."""
        if not self._writes:
            return
        if self._served is not None:
            self._served.show(step, values)
        clean = {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in values.items()}
        self._append(self.metrics_path, {"step": step, "time": round(time.time(), 3), **clean})

    def event(self, kind: str, step: int, message: str, **facts: Any) -> None:
        """Record something that happened (resumed, skipped-step, collapse-alarm ...)."""
        if self._writes:
            self.own_event(kind, step, message, **facts)

    def own_event(self, kind: str, step: int, message: str, **facts: Any) -> None:
        """Record something that only this process knows; every process may call it (a line is one write)."""
        if self._served is not None:
            self._served.count(kind)
        record = {"event": kind, "step": step, "time": round(time.time(), 3), "message": message, **facts}
        self._append(self.events_path, record)

    def _append(self, path: Path, record: dict[str, Any]) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, (json.dumps(record) + "\n").encode())
        finally:
            os.close(handle)
