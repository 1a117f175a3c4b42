"""The work of the step: for each student its card, its golden images, its version and its verdict."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from components.common import tracking
from components.common.mlflow_store import locked
from components.registration.card import model_card
from components.registration.config import RegistrationConfig
from components.registration.golden import EncodedImage, choose_samples, make_variants, write_golden
from components.registration.lineage import lineage_tags, read_manifests
from components.registration.packaging import count_parameters
from components.registration.promotion import apply_verdict
from components.registration.publishing import publish
from components.registration.registry import ModelRegistry, describe_version
from components.registration.report import read_scores, read_verdicts
from components.registration.students import find_students
from foundry.errors import UserError
from foundry.home import home
from foundry.storage import write_atomically


def register_students(config: RegistrationConfig, inputs: Mapping[str, str], output: Path) -> dict[str, Any]:
    """Register every student of ``inputs["students"]``; returns and writes what ``registration.json`` holds.

    Raises :class:`UserError` where the inputs are not results of one line or the registry does not answer.
    """
    manifests = read_manifests(inputs)
    students = find_students(Path(inputs["students"]))
    verdicts = read_verdicts(Path(inputs["report"]))
    if unjudged := [student.name for student in students if student.name not in verdicts]:
        raise UserError(
            f"{inputs['report']}: no verdict on student {', '.join(unjudged)}; give the report of this line"
        )
    scores = read_scores(Path(inputs["report"]))
    lineage = lineage_tags(manifests, inputs)

    @cache
    def golden_images() -> list[EncodedImage]:
        samples = choose_samples(Path(inputs["dataset"]), config.golden_images, config.golden_max_bytes)
        return samples + make_variants(samples[0].data, samples[0].source)

    registered: dict[str, Any] = {}
    with _one_at_a_time(), _run() as run:
        registry = ModelRegistry()
        for student in students:
            model, verdict = config.model_name(student.name), verdicts[student.name]
            version, new = publish(
                registry,
                run,
                model,
                student,
                golden=partial(write_golden, images=golden_images, export=student.export),
                card=model_card(model, student, lineage, scores, verdict, config.licence),
                parameters={"recipe": manifests["students"].environment.get("recipe", manifests["students"].config)},
                metrics=scores.of(student.name),
                tags=lineage,
            )
            outcome = apply_verdict(registry, model, str(version.version), verdict)
            found = describe_version(registry.version(model, str(version.version)))
            registered[student.name] = {
                **{key: found[key] for key in ("model", "version", "aliases", "run_id", "model_id", "digest")},
                "parameters": count_parameters(student.export),
                "new": new,
                "verdict": verdict.word,
                "champion": registry.champion(model),
                "outcome": outcome,
            }
            print(
                f"{model} version {version.version}: {'registered' if new else 'registered before'}; {outcome}",
                flush=True,
            )
    document = {"schema": 1, "students": registered}
    write_atomically(output / "registration.json", json.dumps(document, indent=1) + "\n")
    return {"students": registered}


@contextlib.contextmanager
def _run() -> Iterator[tracking.TrackedRun]:
    """The run of this step, opened already by whoever executes steps, or one of its own."""
    if (run := tracking.current_run()) is not None:
        yield run
    else:
        with tracking.step_run("registration", config={}, lineage={}) as run:
            yield run


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Two lines that end together must not both find a network unregistered."""
    folder = home() / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".registration.lock"):
        yield
