"""What the body of a KFP component calls: run a step with KFP's values and fill KFP's artifacts."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.common.step import Step
from foundry.errors import UserError, explain_os_error

if TYPE_CHECKING:
    from components.common.execution import Outcome

FAILURE_VARIABLE = "FOUNDRY_FAILURE_FILE"
"""Environment variable naming a file that gets the one line of an error a person can mend: KFP's local runner ends a
failed pipeline without any text of the error."""


def step_named(name: str) -> Step:
    """The ``STEP`` of ``components/<name>/step.py``."""
    step = importlib.import_module(f"components.{name}.step").STEP
    assert isinstance(step, Step)
    return step


def run_step(
    name: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Any],
    artifact: Any,
    metrics: Any = None,
    page: Any = None,
) -> Outcome:
    """Run the step ``name`` inside a KFP component.

    ``inputs`` maps the step's input names to KFP artifacts, URLs or texts; ``artifact`` (its folder gets the result)
    and ``metrics`` are KFP outputs, whose metadata is filled; ``page`` gets a copy of the result's ``report.html``. An
    error that a person can mend is printed as one line, written to the file named by ``FOUNDRY_FAILURE_FILE``, and ends
    the component with status 2.
    """
    from components.common.execution import execute
    from components.common.fingerprint import whole_numbers
    from components.common.processes import kill_descendants
    from foundry.lifetime import die_with_launcher
    from foundry.settings import load_settings

    die_with_launcher(before_exit=kill_descendants)
    with plain_failure(name):
        step = step_named(name)
        settings = load_settings(step.config, whole_numbers(config), name)
        given = {key: getattr(value, "path", value) for key, value in inputs.items()}
        outcome = execute(step, settings, given, Path(artifact.path))
    artifact.metadata.update(
        step=outcome.step,
        fingerprint=outcome.fingerprint,
        digest=outcome.digest,
        reused=outcome.reused,
        seconds=round(outcome.seconds, 3),
    )
    if metrics is not None:
        for key, value in scalars(outcome.metrics).items():
            metrics.log_metric(key, value)
    if page is not None:
        shutil.copyfile(outcome.path / "report.html", page.path)
    return outcome


@contextlib.contextmanager
def plain_failure(name: str) -> Iterator[None]:
    """End the component ``name`` with one line and status 2 for an error that a person can mend."""
    try:
        yield
    except (UserError, OSError) as error:
        line = str(error) if isinstance(error, UserError) else explain_os_error(error)
        if line is None:
            raise
        line = " ".join(line.split())
        print(f"error: {line}", file=sys.stderr, flush=True)
        if path := os.environ.get(FAILURE_VARIABLE):
            Path(path).write_text(json.dumps({"step": name, "error": line}) + "\n", encoding="utf-8")
        raise SystemExit(2) from None


def scalars(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in nested ``values``, names joined by '/'."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found.update(scalars(value, f"{prefix}{key}/"))
        elif isinstance(value, (bool, int, float)):
            found[f"{prefix}{key}"] = float(value)
    return found
