"""This process among the others of a run: device, process group, threads."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from foundry.errors import UserError
from foundry.lifetime import LOST_VARIABLE
from training.engine.pulse import Pulse


def choose_device(name: str) -> torch.device:
    """The device of this process: ``cuda`` with the local rank, or ``cpu``; ``auto`` takes a GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda was asked for, and torch sees no GPU here; use device: auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether ``device`` multiplies in bfloat16 itself; elsewhere torch emulates it, slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities()
    if known.get("architecture") != "x86_64":
        return True
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def own_run_folder(folder: Path, wait_seconds: float = 30.0) -> int:
    """Lock ``folder`` for this process's life; returns the descriptor that holds the lock.

    The kernel frees it when the process dies, however it dies; trainers of a killed run may need a second for that.
    Raises :class:`UserError` where another run still uses the folder after ``wait_seconds``.
    """
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(handle)
                raise UserError(f"{folder}: another training run is using this folder") from None
            time.sleep(0.2)


@contextlib.contextmanager
def process_group(device: str, timeout_minutes: float = 10.0) -> Iterator[None]:
    """Join the process group that torchrun describes in the environment; nothing for a single process.

    NCCL on GPUs, gloo on CPUs. Leaves it in step with the others when the body ends well. Where the environment says
    how long a host may be silent, a :class:`Pulse` watches the others.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backend = "nccl" if choose_device(device).type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=timeout_minutes))
    seconds = float(os.environ.get(LOST_VARIABLE, "0"))
    pulse = Pulse(seconds) if seconds else None
    try:
        yield
        dist.barrier()
    except BaseException:
        if pulse is None:  # otherwise its group is in use, and the end of this process is what tells the others
            dist.destroy_process_group()
        raise
    if pulse is not None:
        pulse.stop()
    dist.destroy_process_group()
