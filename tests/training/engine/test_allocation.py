"""Freed memory is kept."""

from __future__ import annotations

import subprocess
import sys

import pytest

ROUNDS = """
import resource, sys, torch
if sys.argv[1] == "kept":
    from training.engine.allocation import keep_freed_memory
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = torch.ones(15000, 768)
    del x
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(12)][-1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc, on Linux, can be told to keep memory")
def test_a_large_tensor_costs_no_page_faults_once_the_memory_is_there() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", ROUNDS, how], check=True, capture_output=True, text=True).stdout)
        for how in ("kept", "returned")
    }
    assert faults["kept"] < 100
    assert faults["returned"] > 20 * faults["kept"]
