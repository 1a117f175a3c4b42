"""The whole embedded line: wall time, peak memory of all its processes together, and where the time went.

    python tests/benchmarks/line.py [arguments of `python -m pipelines run`]

Runs in this checkout and its home folder, so what is there already is reused; set FOUNDRY_HOME to a new folder for a
first run. Memory is the sum of the proportional set sizes (PSS) of the command and all its descendants, every second.
Prints one JSON object as its last line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
MARK = "FOUNDRY_BENCHMARK"
"""Environment variable by which the processes of this run are known, whatever session they are in."""


def proportional_memory(mark: bytes) -> int:
    """Bytes (PSS) of all processes whose environment holds ``mark``."""
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if mark in (entry / "environ").read_bytes():
                for line in (entry / "smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1]) * 1024
        except OSError:
            continue
    return total


def main(arguments: list[str]) -> int:
    value = f"{os.getpid()}-{time.time_ns()}"
    environment = {**os.environ, MARK: value}
    before = set((REPOSITORY / "runs").glob("*/summary.json"))
    start = time.monotonic()
    command = [sys.executable, "-m", "pipelines", "run", *arguments]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(1.0):
            peak = max(peak, proportional_memory(f"{MARK}={value}".encode()))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    status = process.wait()
    done.set()
    watcher.join()
    result: dict[str, object] = {
        "benchmark": "line",
        "status": status,
        "seconds": round(time.monotonic() - start, 1),
        "peak_memory_gib": round(peak / 2**30, 2),
        "cores": os.cpu_count(),
    }
    for summary_file in set((REPOSITORY / "runs").glob("*/summary.json")) - before:
        summary = json.loads(summary_file.read_text())
        result["steps"] = {step["step"]: [round(step["seconds"], 1), step["reused"]] for step in summary["steps"]}
        scores = summary.get("scores", [])  # none where the run failed
        result["knn_top1"] = {row["network"]: row["measures"].get("knn_top1") for row in scores}
    print(json.dumps(result))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
