"""One way to run a step, for KFP, DVC and command lines: find the result in the store, or make it there."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.common.content import content_digest
from components.common.fingerprint import code_digest, fingerprint_of, git_facts
from components.common.links import check_destination, link
from components.common.manifest import (
    InputRow,
    Manifest,
    content_digest_of,
    describe_files,
    find_damage,
    read_manifest,
)
from components.common.step import InputSpec, Step
from components.common.store import Result, Store, Work
from foundry.errors import UserError
from foundry.home import require_space
from foundry.progress import duration
from foundry.settings import Settings, digest_of
from foundry.storage import is_local, local_path

if TYPE_CHECKING:
    from components.common.tracking import TrackedRun

SAMPLE = "sample:"
"""The embedded sample pool."""
SAMPLE_EVALUATION = "sample:evaluation"
"""The labelled evaluation set of the embedded sample pool."""
SAMPLE_FOLDERS = {SAMPLE: "pool", SAMPLE_EVALUATION: "evaluation"}
RUN_FOLDER_VARIABLE = "FOUNDRY_RUN_FOLDER"
"""Environment variable naming ``runs/<id>/``: every outcome is appended to ``steps.jsonl`` there."""


@dataclass(frozen=True)
class Outcome:
    """What became of one call of a step."""

    step: str
    path: Path
    """The result's folder in the store."""
    fingerprint: str
    digest: str
    """Digest of its content."""
    reused: bool
    """Whether it was already there."""
    seconds: float
    """Wall-clock seconds of this call."""
    metrics: dict[str, Any]
    """What the step's ``run`` returned when the result was made."""

    def record(self) -> dict[str, Any]:
        """As a JSON-able mapping."""
        return {**asdict(self), "path": str(self.path)}


def execute(
    step: Step,
    config: Settings,
    inputs: Mapping[str, str],
    destination: Path | None = None,
    *,
    store: Store | None = None,
) -> Outcome:
    """Give the result of ``step`` for ``config`` and ``inputs`` (names to folders, URLs or ``sample:``).

    A pure step's result is reused from the store where it is there; otherwise the step runs, continuing what a killed
    call with the same fingerprint left. ``destination`` becomes a link farm of the result. A step with
    ``pure=False`` always runs, into a fresh folder. Raises :class:`UserError` for what a person can mend.
    """
    start = time.monotonic()
    store = store or Store()
    if destination is not None:
        check_destination(destination)
    given = step.check_inputs(inputs)
    given = _resolve_auto(given)
    rows: dict[str, InputRow] = {}
    resolved: dict[str, str] = {}
    for name, value in given.items():
        resolved[name], rows[name] = _resolve_input(step.name, step.input(name), value, store)
    code = code_digest(step.code)
    environment = step.environment(config) if step.environment else {}
    if step.pure:
        digests = {name: row.digest for name, row in rows.items()}
        fingerprint = fingerprint_of(step, config, digests, code, environment)
    else:
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
        fingerprint = f"{stamp}-{uuid.uuid4().hex[:8]}"
    with store.find_or_own(step.name, fingerprint) as found:
        if isinstance(found, Result):
            result, reused = found, True
            _reuse(step, result)
        else:
            result, reused = _make(step, config, resolved, rows, found, store, code, environment), False
    if destination is not None:
        link(result.path, destination)
    manifest = result.manifest
    outcome = Outcome(
        step=step.name,
        path=result.path,
        fingerprint=fingerprint,
        digest=manifest.digest,
        reused=reused,
        seconds=time.monotonic() - start,
        metrics=manifest.metrics,
    )
    if step is not sample_step():  # an input of steps, not one of the line's own
        _append_to_run(outcome)
    return outcome


def _resolve_auto(given: dict[str, str]) -> dict[str, str]:
    """``evaluation=auto``: the sample's evaluation set where the dataset was made from the sample, else no labels."""
    if given.get("evaluation") != "auto":
        return given
    dataset = read_manifest(local_path(given["dataset"])) if "dataset" in given else None
    pool = dataset.inputs.get("pool") if dataset else None
    without = {name: value for name, value in given.items() if name != "evaluation"}
    return {**without, "evaluation": SAMPLE_EVALUATION} if pool and pool.url == SAMPLE else without


def _resolve_input(step: str, spec: InputSpec, value: str, store: Store) -> tuple[str, InputRow]:
    """(what ``run`` gets, the manifest's row) for one input as it was given."""
    if spec.kind != "text" and value.startswith(SAMPLE):
        return _resolve_sample(step, value, store)
    try:
        row = describe_input(spec, value)
    except UserError as error:
        raise UserError(f"{step}: input {spec.name}={value}: {str(error).removeprefix(f'{value}: ')}") from None
    if spec.kind == "model":
        from components.common.model_inputs import network_folder

        return str(network_folder(row.url)), row
    if spec.kind == "text" or not is_local(value):
        return value, row
    return str(local_path(value).absolute()), row


def describe_input(spec: InputSpec, value: str) -> InputRow:
    """The manifest's row for an input that is not ``sample:``. Raises :class:`UserError` where it cannot be used."""
    if spec.kind == "text":
        return InputRow(digest=digest_of(value), url=value)
    if spec.kind == "model":
        from components.common.model_inputs import network_folder, settled
        from components.common.networks import network_digest

        named = settled(value)
        digest = spec.digest(named) if spec.digest else network_digest(network_folder(named))
        return InputRow(digest=digest, url=named)
    if spec.digest is not None:
        return InputRow(digest=spec.digest(value), url=value)
    if is_local(value):
        folder = local_path(value)
        if not folder.exists():
            raise UserError("no such file or folder")
        manifest = read_manifest(folder) if spec.kind == "result" else _manifest_or_none(folder)
        if manifest is not None:
            if damage := find_damage(folder, manifest):
                raise UserError(f"it is damaged ({damage}); make it again")
            return InputRow(digest=manifest.digest, url=value, step=manifest.step, fingerprint=manifest.fingerprint)
    if spec.kind == "result":
        raise UserError("not the result of a step (no manifest.json, or it is unfinished)")
    return InputRow(digest=content_digest(value), url=value)


def _manifest_or_none(folder: Path) -> Manifest | None:
    """The manifest of a folder that may as well be a person's, with a ``manifest.json`` of another kind."""
    try:
        return read_manifest(folder)
    except UserError:
        return None


@lru_cache(maxsize=1)
def sample_step() -> Step:
    """The pseudo step that makes the embedded sample pool and its evaluation set."""

    def build(config: Settings, inputs: Mapping[str, str], output: Path) -> dict[str, Any]:
        from components.curation.sample_pool import build

        build(output)
        return {}

    return Step(
        name="sample",
        summary="The embedded sample: crops of the photographs in scikit-image, with hidden labels.",
        config=Settings,
        inputs=(),
        run=build,
        code=("components.curation.sample_pool",),
        environment=lambda _: {"scikit-image": importlib.metadata.version("scikit-image")},
        disk_bytes=lambda *_: 200 << 20,
        tracked=False,
    )


def _resolve_sample(step: str, url: str, store: Store) -> tuple[str, InputRow]:
    if url not in SAMPLE_FOLDERS:
        raise UserError(f"{step}: {url}: there are only {' and '.join(SAMPLE_FOLDERS)}")
    outcome = execute(sample_step(), Settings(), {}, store=store)
    manifest = read_manifest(outcome.path)
    assert manifest is not None
    folder = SAMPLE_FOLDERS[url]
    row = InputRow(digest=manifest.digest_under(folder), url=url, step="sample", fingerprint=outcome.fingerprint)
    return str(outcome.path / folder), row


def sample_folder(url: str) -> str:
    """``url``, or the folder of the embedded sample that it names."""
    return _resolve_sample("sample", url, Store())[0] if url.startswith(SAMPLE) else url


def _reuse(step: Step, result: Result) -> None:
    manifest = result.manifest
    if step is sample_step():  # every step that reads it would say so
        return
    made = datetime.datetime.fromisoformat(manifest.started).astimezone()
    print(f"{step.name}: reused (fingerprint {manifest.fingerprint[:12]}…, made {made:%Y-%m-%d %H:%M})", flush=True)
    if not step.tracked:
        return
    from components.common import tracking

    lineage = _lineage(manifest.fingerprint, manifest.code_digest, manifest.git, manifest.inputs)
    lineage["digest"] = manifest.digest
    with tracking.step_run(step.name, config=manifest.config, lineage=lineage, reused=True) as run:
        run.log_metrics(manifest.metrics)


def _make(
    step: Step,
    config: Settings,
    inputs: Mapping[str, str],
    rows: Mapping[str, InputRow],
    work: Work,
    store: Store,
    code: str,
    environment: Mapping[str, Any],
) -> Result:
    if step.disk_bytes is not None:
        require_space(work.folder, step.disk_bytes(config, inputs), step.name)
    print(f"{step.name}: running (fingerprint {work.fingerprint[:12]}…)", flush=True)
    git = git_facts()
    lineage = _lineage(work.fingerprint, code, git, rows)
    started = datetime.datetime.now(datetime.UTC)
    with _tracked(step, config, lineage) as run:
        clock = time.monotonic()
        with _followed(work.folder / "metrics.jsonl", run):
            metrics = json.loads(json.dumps(step.run(config, inputs, work.folder)))
        seconds = time.monotonic() - clock
        files = describe_files(work.folder)
        manifest = Manifest(
            step=step.name,
            fingerprint=work.fingerprint,
            digest=content_digest_of(files, step.records),
            files=files,
            records=step.records,
            config=config.model_dump(mode="json"),
            inputs=dict(rows),
            code_digest=code,
            environment=dict(environment),
            metrics=metrics,
            started=started.isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
            git=git,
        )
        result = store.publish(work, manifest)
        if run is not None:
            run.set_tags({"digest": manifest.digest})
            run.log_metrics(metrics)
            for name in step.shown:
                run.log_artifact(result.path / name)
    print(f"{step.name}: done in {duration(seconds)}", flush=True)
    return result


@contextlib.contextmanager
def _tracked(step: Step, config: Settings, lineage: Mapping[str, Any]) -> Iterator[TrackedRun | None]:
    """The tracking run around a step, where it has one."""
    if not step.tracked:
        yield None
        return
    from components.common import tracking

    # The owner file proves that whoever worked on this fingerprint before is dead.
    values = config.model_dump(mode="json")
    with tracking.step_run(step.name, config=values, lineage=lineage, taken_over=True) as run:
        yield run


@contextlib.contextmanager
def _followed(path: Path, run: TrackedRun | None) -> Iterator[None]:
    """Log the rows of a ``metrics.jsonl`` that a step writes while it works."""
    if run is None:
        yield
        return
    from components.common.follow import follow_rows

    with follow_rows(path, run.log_series):
        yield


def _lineage(
    fingerprint: str, code: str, git: Mapping[str, str | None], inputs: Mapping[str, InputRow]
) -> dict[str, Any]:
    return {
        "fingerprint": fingerprint,
        "code_digest": code,
        "git": {name: value for name, value in git.items() if value},
        **({"image": image} if (image := os.environ.get("FOUNDRY_IMAGE")) else {}),
        "input": {
            name: {key: value for key, value in row.model_dump().items() if value is not None}
            for name, row in inputs.items()
        },
    }


def _append_to_run(outcome: Outcome) -> None:
    folder = os.environ.get(RUN_FOLDER_VARIABLE)
    if not folder:
        return
    line = json.dumps(outcome.record()) + "\n"
    handle = os.open(Path(folder) / "steps.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)
