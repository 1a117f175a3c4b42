"""Which device PyTorch would use here, found without importing it."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from pathlib import Path

_DRIVER = Path("/proc/driver/nvidia/gpus")


def default_device() -> str:
    """What ``device: auto`` means here: 'cuda' where there is a GPU that this process may use, else 'cpu'."""
    return "cuda" if accelerator_name() else "cpu"


def accelerator_name() -> str | None:
    """Model of the first NVIDIA GPU that this process may use; None without one, or with a PyTorch built for CPUs."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or "+cpu" in importlib.metadata.version("torch"):
        return None
    for path in sorted(_DRIVER.glob("*/information")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return names[0].strip() if names else None
