"""faiss as a peer of benchmarks: it runs in an environment of its own.

The wheel of faiss-cpu carries an OpenBLAS that does not know newer processors and falls back to kernels five times as
slow. Where this processor has AVX-512, OPENBLAS_CORETYPE tells it so, unless it is to run as installed.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any


class Faiss:
    """faiss in the environment of ``python``."""

    def __init__(self, python: str, as_installed: bool) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
        if not as_installed and "avx512f" in Path("/proc/cpuinfo").read_text():
            environment.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
        command = [python, str(Path(__file__).with_name("faiss_side.py"))]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.described = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"faiss ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def do(self, **job: object) -> dict[str, Any]:
        """The answer to a job."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """End the process."""
        self._process.communicate()
