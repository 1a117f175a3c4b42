"""This process among the others of a run: device, process group, threads."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist

from foundry.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device of this process: ``cuda`` with the local rank, or ``cpu``; ``auto`` takes a GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda was asked for, and torch sees no GPU here; use device: auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def process_group(device: str, timeout_minutes: float = 10.0) -> Iterator[None]:
    """Join the process group that torchrun describes in the environment; nothing for a single process.

    NCCL on GPUs, gloo on CPUs. Leaves it in step with the others when the body ends well.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backend = "nccl" if choose_device(device).type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=timeout_minutes))
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()
