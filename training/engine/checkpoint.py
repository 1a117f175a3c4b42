"""Checkpoints that a kill cannot spoil: torch.distributed.checkpoint into a temporary name, renamed when whole."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from foundry.errors import UserError
from foundry.storage import write_atomically
from training.distributed import barrier, rank

# one process needs no process group; torch says so on every save, also from the thread that writes
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

_NAME = re.compile(r"^step-(\d{9})$")


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint taken after ``step`` finished steps."""
    return f"step-{step:09d}"


def finished_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints under ``folder``, oldest first. A killed save is not among them."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.match(path.name) and (path / ".metadata").is_file())


def latest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of the run folder ``run``, or None.

    ``checkpoints/latest`` names it; where that file is missing or names one that is gone, the newest folder counts.
    """
    folder = run / "checkpoints"
    checkpoints = finished_checkpoints(folder)
    try:
        named = folder / (folder / "latest").read_text(encoding="utf-8").strip()
        if named in checkpoints:
            return named
    except FileNotFoundError:
        pass
    return checkpoints[-1] if checkpoints else None


def step_of(checkpoint: Path) -> int:
    """Finished steps of a checkpoint folder."""
    match = _NAME.match(checkpoint.name)
    if match is None:
        raise UserError(f"{checkpoint}: not a checkpoint folder (step-NNNNNNNNN)")
    return int(match.group(1))


class Checkpointer:
    """Writes checkpoints of a run while it goes on.

    :meth:`save` copies the state and returns; a thread writes the copy under a temporary name. :meth:`finish` waits
    for it and gives it its name; the next ``save`` and the end of the run do so too. A run that dies in between goes on
    from the checkpoint before. Every process makes the same calls.
    """

    def __init__(self, run: Path, keep: int, keep_every: int = 0) -> None:
        self.folder, self.keep, self.keep_every = run / "checkpoints", keep, keep_every
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None  # none but its thread uses it
        self._pending: tuple[int, Path, Future[Any]] | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Take ``state`` (tensors in nested dicts) as the checkpoint after ``step`` steps."""
        self.finish()
        temporary = self.folder / f".{checkpoint_name(step)}.partial"
        if rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left_over in self.folder.glob(".*.partial"):
                shutil.rmtree(left_over)
        barrier()
        written = dcp.async_save(state, checkpoint_id=temporary, process_group=self._group, no_dist=self._group is None)
        assert isinstance(written, Future)
        self._pending = (step, temporary, written)

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if one is, and make it the latest."""
        if self._pending is None:
            return
        step, temporary, written = self._pending
        self._pending = None
        written.result()
        barrier()
        if rank() == 0:
            final = self.folder / checkpoint_name(step)
            if final.exists():
                shutil.rmtree(final)
            os.rename(temporary, final)
            write_atomically(self.folder / "latest", final.name + "\n")
            for old in finished_checkpoints(self.folder)[: -self.keep]:
                if not self.keep_every or step_of(old) % self.keep_every:
                    shutil.rmtree(old)
        barrier()


def load_checkpoint(checkpoint: Path, state: dict[str, Any]) -> None:
    """Fill the tensors of ``state`` in place from ``checkpoint``. Raises :class:`UserError` where it does not fit."""
    try:
        dcp.load(state, checkpoint_id=checkpoint, no_dist=not dist.is_initialized())
    except (dcp.api.CheckpointException, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise UserError(f"{checkpoint}: cannot be resumed from ({reason})") from error


def module_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers of ``module``, as stored in checkpoints."""
    return {name: tensor.detach() for name, tensor in module.state_dict().items()}


def optimiser_state(optimiser: torch.optim.Optimizer, names: dict[torch.nn.Parameter, str]) -> dict[str, Any]:
    """State of an AdamW ``optimiser`` by parameter name, with zeros where no step was taken yet.

    The tensors are the optimiser's own (created if needed), so that loading into them restores it.
    """
    result: dict[str, Any] = {}
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            state = optimiser.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            result[names[parameter]] = {key: state[key] for key in ("step", "exp_avg", "exp_avg_sq")}
    return result
