"""Hierarchical k-means of a matrix on disk into a folder, by one process or by those of torchrun; goes on after a kill.

    python -m components.curation.clustering --points embeddings.npy --output clusters --set "levels=[1000, 100]"
    torchrun --nproc-per-node 4 -m components.curation.clustering --points embeddings.npy --output clusters ...

The folder holds ``level-1/centroids.npy`` (k, d) float32 and ``level-1/assignment.npy`` (n,) int64, the cluster of each
row; ``level-2/`` the same for the centroids of level 1, and so on; and at the end ``clusters.json``. Until then
``unfinished.npz`` holds the centroids of the clustering under way, at most a minute old.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.curation.config import ClusterConfig
from foundry.errors import UserError, run_command
from foundry.lifetime import follow_parents
from foundry.settings import apply_overrides, load_settings, read_yaml
from foundry.storage import write_atomically

if TYPE_CHECKING:
    import numpy as np

    from components.curation.compute import Compute
    from components.curation.hierarchy import Hierarchy, Progress
    from components.curation.rows import Rows

SAVE_SECONDS = 60.0
"""Between two savings of a clustering under way."""
CHECKED = 1000
"""Rows whose digest stands for all points, so that a folder is not continued with others."""
REQUEST, UNFINISHED, FINISHED = "request.json", "unfinished.npz", "clusters.json"


def cluster(points: Rows, config: ClusterConfig, seed: int, folder: Path, compute: Compute) -> Hierarchy:
    """The hierarchy of ``points`` (n, d), which ``folder`` holds afterwards; goes on with what it holds.

    All processes of ``compute`` call it and see the same folder. Raises :class:`UserError` where the folder is for
    other points or settings.
    """
    from components.curation.hierarchy import hierarchical_kmeans
    from foundry.progress import Progress as Shown

    request = _request(points, config, seed)
    if (folder / REQUEST).exists() and json.loads((folder / REQUEST).read_text()) != request:
        raise UserError(f"{folder}: was begun with other points, settings or libraries; give another folder")
    progress = load(folder)
    first = compute.rank == 0
    if first:
        write_atomically(folder / REQUEST, json.dumps(request, indent=1))
    saved = time.monotonic()
    with Shown("clustering", None, "iterations") if first else nullcontext() as shown:

        def save(progress: Progress) -> None:
            nonlocal saved
            if shown is None:
                return
            if progress.started:
                shown.advance(note=f"level {len(progress.whole.parents) + 1}, clustering {progress.steps + 1}")
            elif not progress.steps:
                _save_level(folder, progress.whole)
                (folder / UNFINISHED).unlink(missing_ok=True)
                return
            if progress.started is None or time.monotonic() - saved >= SAVE_SECONDS:
                _save_unfinished(folder / UNFINISHED, progress)
                saved = time.monotonic()

        whole = hierarchical_kmeans(
            points,
            config.levels,
            seed=seed,
            iterations=config.iterations,
            spherical=config.spherical,
            compute=compute,
            resume=progress,
            save=save,
        )
    if first:
        clusters = [len(centroids) for centroids in whole.centroids]
        write_atomically(folder / FINISHED, json.dumps({"schema": 1, "clusters": clusters, **request}, indent=1))
    return whole


def cluster_here(points: np.ndarray, config: ClusterConfig, seed: int, folder: Path) -> Hierarchy:
    """:func:`cluster` on this machine: in this process, or in ``config.processes`` that torchrun starts."""
    import numpy as np

    from components.curation.compute import Compute
    from components.curation.rows import Rows

    if config.processes == 1:
        compute = Compute(device=config.device, memory=config.memory_mib << 20)
        return cluster(Rows(points), config, seed, folder, compute)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "points.npy", points)
    write_atomically(folder / "settings.json", config.model_dump_json())  # which YAML can read
    _launch(folder / "points.npy", None, folder / "settings.json", config.processes, seed, folder)
    return load(folder).whole


def load(folder: Path) -> Progress:
    """What ``folder`` holds: the whole levels, and what there is of the next one."""
    import numpy as np

    from components.curation.hierarchy import Hierarchy, Progress
    from components.curation.kmeans import Started

    parents: list[np.ndarray] = []
    centroids: list[np.ndarray] = []
    while (level := folder / f"level-{len(parents) + 1}").is_dir():
        parents.append(np.load(level / "assignment.npy"))
        centroids.append(np.load(level / "centroids.npy"))
    whole = Hierarchy(tuple(parents), tuple(centroids))
    if not (folder / UNFINISHED).exists():
        return Progress(whole)
    with np.load(folder / UNFINISHED) as file:
        arrays = dict(file)
    level, steps, iterations = arrays["place"].tolist()
    if level != len(parents):  # the level was finished a moment later
        return Progress(whole)
    started = Started(arrays["started"], iterations) if "started" in arrays else None
    return Progress(whole, steps, arrays.get("centroids"), started)


def _save_unfinished(path: Path, progress: Progress) -> None:
    import numpy as np

    started = progress.started
    arrays = {"place": np.array([len(progress.whole.parents), progress.steps, started.iterations if started else 0])}
    if progress.centroids is not None:
        arrays["centroids"] = progress.centroids
    if started:
        arrays["started"] = started.centroids
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    write_atomically(path, file.getvalue())


def _save_level(folder: Path, whole: Hierarchy) -> None:
    """The last of the ``whole`` levels."""
    import numpy as np

    final = folder / f"level-{len(whole.parents)}"
    part = final.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    np.save(part / "assignment.npy", whole.parents[-1])
    np.save(part / "centroids.npy", whole.centroids[-1])
    part.rename(final)


def _request(points: Rows, config: ClusterConfig, seed: int) -> dict[str, Any]:
    """What a clustering follows from."""
    from importlib.metadata import version

    sample = _some_rows(points)
    return {
        "points": {"rows": len(points), "dimensions": points.dimensions, "digest": _digest(sample)},
        "settings": {**config.model_dump(mode="json", exclude={"processes"}), "seed": seed},
        "libraries": {name: version(name) for name in ("numpy", "torch")},
    }


def _some_rows(points: Rows) -> np.ndarray:
    import numpy as np

    return points.read(np.unique(np.linspace(0, len(points) - 1, CHECKED).astype(np.int64))).numpy()


def _digest(rows: np.ndarray) -> str:
    return hashlib.sha256(rows.tobytes()).hexdigest()


def _launch(points: Path, rows: Path | None, settings: Path, processes: int, seed: int, folder: Path) -> None:
    """Run this module by torchrun on this machine."""
    from components.common.launcher import LocalLauncher
    from components.common.training_app import TrainingJob

    arguments = ["--points", str(points.absolute()), "--output", str(folder.absolute()), "--seed", str(seed)]
    arguments += ["--settings", str(settings.absolute())]
    if rows:
        arguments += ["--rows", str(rows.absolute())]
    module = "components.curation.clustering"
    LocalLauncher().run(TrainingJob(tuple(arguments), str(folder), processes, module=module, name="clustering"))


def _open(path: Path, chosen: Path | None, spherical: bool) -> Rows:
    """The points of a .npy file, all or the ``chosen`` rows. Raises :class:`UserError` for what cannot be clustered."""
    import numpy as np

    from components.curation.rows import Rows

    def matrix(path: Path, mode: str | None) -> np.ndarray:
        try:
            return np.asanyarray(np.load(path, mmap_mode=mode))  # type: ignore[arg-type]
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: not a .npy file of numbers ({error})") from None

    try:
        points = Rows(matrix(path, "r"))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if chosen:
        rows = matrix(chosen, None)
        if (
            rows.ndim != 1
            or rows.dtype.kind not in "iu"
            or not len(rows)
            or rows.min() < 0
            or rows.max() >= len(points)
        ):
            raise UserError(f"{chosen}: give numbers of rows of {path}, 0 to {len(points) - 1}")
        points = points.chosen(rows.astype(np.int64))
    if not len(points):
        raise UserError(f"{path}: has no rows")
    lengths = np.linalg.norm(_some_rows(points), axis=1)
    if spherical and not np.all(np.abs(lengths - 1) < 0.01):
        away = lengths[np.abs(lengths - 1).argmax()]
        raise UserError(f"{path}: rows must have length 1, one has {away:.3g}; scale them, or set spherical=false")
    return points


def _parser() -> argparse.ArgumentParser:
    from components.common.command import describe_settings

    parser = argparse.ArgumentParser(
        prog="python -m components.curation.clustering",
        description="Cluster embeddings, level by level. Processes that torchrun starts share the work; the result\n"
        "does not depend on how many there are. A restart with the same --output goes on.",
        epilog="\n".join(
            ["settings (--set NAME=VALUE; components belongs to curation):", *describe_settings(ClusterConfig)]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--points", type=Path, required=True, metavar="FILE", help=".npy of floating-point rows (n, d)")
    parser.add_argument("--rows", type=Path, metavar="FILE", help=".npy with the numbers of the rows to cluster")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the result, seen by all")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="YAML with settings")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a=b", help="change a setting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    follow_parents()
    values = read_yaml(arguments.settings) if arguments.settings else {}
    source = str(arguments.settings or "--set")
    config = load_settings(ClusterConfig, apply_overrides(values, arguments.overrides), source)
    points = _open(arguments.points, arguments.rows, config.spherical)
    from components.curation.blocks import available_cores
    from components.curation.compute import Compute
    from training.engine.process import choose_device, process_group

    if "WORLD_SIZE" not in os.environ and config.processes > 1:
        write_atomically(arguments.output / "settings.json", config.model_dump_json())
        settings = arguments.output / "settings.json"
        _launch(arguments.points, arguments.rows, settings, config.processes, arguments.seed, arguments.output)
        return 0
    with process_group(config.device, timeout_minutes=24 * 60):  # the shares of splits may differ by hours
        compute = Compute(
            threads=max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))),
            device=str(choose_device(config.device)),
            memory=config.memory_mib << 20,
        )
        try:
            found = cluster(points, config, arguments.seed, arguments.output, compute)
        except ValueError as error:
            raise UserError(f"{arguments.points}: {error}") from error
        if compute.rank == 0:
            told = ", ".join(str(len(centroids)) for centroids in found.centroids)
            print(f"{arguments.output}: {len(points)} points in {told} clusters", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
