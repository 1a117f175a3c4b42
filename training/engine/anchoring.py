"""Which state of a pretraining its refinement is anchored to: the choice of the Gram teacher."""

from __future__ import annotations

import fcntl
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foundry.errors import UserError
from foundry.storage import write_atomically
from training.engine.checkpoint import checkpoint_name, step_of
from training.engine.decay import Decay, find_decay
from training.engine.exports import export_root
from training.recipe import Teacher

FILE = "gram_teacher.json"
"""In the run folder of the refinement: what was chosen and why. A run that is started again keeps to it."""
MEASURES = {"segmentation_miou": 0.0, "patch_coherence": 0.5}
"""Measures of dense quality in metrics.jsonl, the one that is preferred first, with the value of knowing nothing."""
POLL_SECONDS = 5.0


def choose_gram_teacher(source: Path, settings: Teacher, run: Path, first: bool) -> Path | None:
    """The export of ``source`` that the Gram teacher is made of; None: its newest checkpoint.

    With ``gram_from: auto`` a pretraining that still runs is waited for. ``first``: whether this is the process that
    chooses; the others wait for what it writes into ``run``. Raises :class:`UserError` where there is no such export,
    or no decay by which one could be chosen.
    """
    if settings.gram_from == "newest":
        return None
    record = run / FILE
    if first and not record.exists():
        step, facts = _wait_for_decay(source, settings) if settings.gram_from == "auto" else (settings.gram_from, {})
        _export(source, step)
        write_atomically(record, json.dumps({"step": step, **facts}, indent=2, sort_keys=True) + "\n")
    while not record.exists():
        time.sleep(0.1)
    return _export(source, json.loads(record.read_text(encoding="utf-8"))["step"])


def _export(source: Path, step: int) -> Path:
    export = export_root(source) / checkpoint_name(step)
    if not export.is_dir():
        steps = ", ".join(map(str, _exported(source)))
        raise UserError(f"{source}: has no export of step {step} for the Gram teacher; there are those of {steps}")
    return export


def _exported(source: Path) -> list[int]:
    return sorted(step_of(path) for path in export_root(source).iterdir() if path.is_dir() and path.name[0] != ".")


def dense_curve(source: Path) -> tuple[str, list[int], list[float]]:
    """(measure, finished steps, values) of the dense quality that was measured along the run ``source``.

    Raises :class:`UserError` where none was.
    """
    curves: dict[str, tuple[list[int], list[float]]] = {name: ([], []) for name in MEASURES}
    path = source / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:  # the line that is being written
            continue
        for name, (steps, values) in curves.items():
            if isinstance(row.get(name), (int, float)):
                steps.append(int(row["step"]) + 1)
                values.append(float(row[name]))
    for name, (steps, values) in curves.items():
        if steps:
            return name, steps, values
    raise UserError(
        f"{source}/metrics.jsonl: dense quality was not measured (cadence.evaluate, cadence.coherence_images); name "
        "the step of the Gram teacher: teacher.gram_from=STEP"
    )


def _wait_for_decay(source: Path, settings: Teacher) -> tuple[int, dict[str, Any]]:
    """The step of the peak, and what the choice was made by."""
    told = False
    while True:
        runs = _is_running(source)  # asked first: what it writes last is seen
        try:
            measure, steps, values = dense_curve(source)
        except UserError:
            if not runs:
                raise
        else:
            found = find_decay(
                steps,
                values,
                chance=MEASURES[measure],
                share=settings.gram_decay,
                patience=settings.gram_patience,
            )
            if found.established is not None:
                facts = {"measure": measure, "steps": steps, "values": values, "decay": asdict(found)}
                return found.peak_step, facts
            if not runs:
                raise UserError(_no_decay(source, measure, found, steps[-1]))
        if not told:
            print(f"{source}: waiting for its dense features to decay", file=sys.stderr, flush=True)
            told = True
        time.sleep(POLL_SECONDS)


def _no_decay(source: Path, measure: str, found: Decay, last: int) -> str:
    return (
        f"{source}: no decay of dense features by step {last} ({measure} is {found.last:.4f}, its peak "
        f"{found.peak:.4f} at step {found.peak_step}, decayed below {found.bound:.4f}): nothing to repair; train "
        "longer, or name the Gram teacher: teacher.gram_from=STEP or newest"
    )


def _is_running(run: Path) -> bool:
    """Whether a training holds the run folder."""
    try:
        with (run / ".lock").open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
