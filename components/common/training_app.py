"""The TorchX application of a training job: on one node, or on several that may be lost and come back.

On several nodes it has two roles. ``store`` is the meeting point (:mod:`components.common.rendezvous`), first and of
its own, so that no trainer's death takes it along. Each replica of ``train`` is torchrun's agent on one node under
the guard (:mod:`components.common.guard`), which waits for the store, ends a node that stays cut off from it, and
tells it when the job is done. A node that is lost costs the steps since the last checkpoint: the others meet again,
with the same batch divided among them, and a node that comes back is taken in.
"""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from components.common.rendezvous import STORE_VARIABLE
from foundry.lifetime import LOST_VARIABLE

if TYPE_CHECKING:
    from torchx.specs import AppDef, Resource

STORE_PORT = 29400
"""Of the meeting point, where each pod has an address of its own."""
LOST_SECONDS = 25
"""TCP resends at 0.2, 0.6, 1.4, 3, 6.2 and 12.6 s: a cut of 8 s is over for a connection only at the last of these, and
must not count as a loss."""
_RANK0, _APP_ID = "FOUNDRY_RANK0_MACRO", "FOUNDRY_APP_ID_MACRO"
"""Stand for macros of TorchX until the script is written."""
_MEETING = {
    "is_host": 0,
    "keep_alive_interval": 3,
    "keep_alive_max_attempt": 6,
    "last_call_timeout": 10,
    "join_timeout": 900,
    "read_timeout": 30,
}
"""torchrun's rendezvous: a silent node is given up after 18 s, longer than that cut; others may join for 10 s more."""


@dataclass(frozen=True)
class TrainingJob:
    """One distributed run of a module."""

    arguments: tuple[str, ...]
    """Arguments of the module."""
    output: str
    """Run folder; names the job."""
    processes: int
    """Training processes on each node."""
    nodes: int = 1
    """Nodes, at most."""
    min_nodes: int | None = None
    """Nodes without which the job waits; None: all."""
    restarts: int = 10
    """How often the processes of a job on several nodes are started again after one of them failed."""
    module: str = "training"
    name: str = "training"
    log_dir: Path | None = None
    """Where logs of all processes go; None: ``logs`` in the run folder."""
    timeout: float | None = None
    """Seconds after which the job counts as hung; None: no limit."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Additional environment variables of the processes."""


def training_app(
    job: TrainingJob,
    environment: Mapping[str, str],
    *,
    python: str = sys.executable,
    torchrun: str = "torchrun",
    port: int = STORE_PORT,
    host: str = "0.0.0.0",
    image: str = "",
    resource: Resource | None = None,
) -> AppDef:
    """``job`` for any TorchX scheduler. ``environment``: all variables of its processes, ``job.environment`` included.

    ``port`` and ``host``: where the meeting point listens. ``resource``: of one node; the store takes next to none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchx import specs
        from torchx.specs import macros

    several = job.nodes > 1
    least = job.nodes if job.min_nodes is None else job.min_nodes
    endpoint = f"${{{_RANK0}:=localhost}}:{port}" if several else "localhost:0"
    options = {
        "rdzv-backend": "c10d",
        "rdzv-id": _APP_ID,
        "nnodes": f"{least}:{job.nodes}" if least != job.nodes else str(job.nodes),
        "nproc-per-node": str(job.processes),
        "max-restarts": str(job.restarts if several else 0),
        "tee": "3",
    }
    if several:
        options["rdzv-conf"] = ",".join(f"{name}={value}" for name, value in _MEETING.items())
        options["monitor-interval"] = "0.5"
    command = [python, "-m", "components.common.guard", torchrun]
    for name, value in options.items():
        command += [f"--{name}", value]
    run = f"exec {shlex.join(command)} --rdzv-endpoint "
    run += f'"${STORE_VARIABLE}"' if several else endpoint
    script = f"{run} {shlex.join(['-m', job.module, *job.arguments])}"
    if several:
        script = f'export {STORE_VARIABLE}="{endpoint}"; {script}'
    # TorchX fills in its macros by string.Template, in which "$$" is a dollar sign
    script = script.replace("$", "$$").replace(_RANK0, macros.rank0_env).replace(_APP_ID, macros.app_id)
    trainer = specs.Role(
        name="train",
        image=image,
        entrypoint="bash",
        args=["-c", script],
        env=dict(environment),
        num_replicas=job.nodes,
        min_replicas=least if several else None,
        retry_policy=specs.RetryPolicy.REPLICA,
        resource=resource or specs.resource(),
    )
    if not several:
        return specs.AppDef(name=job.name, roles=[trainer])
    trainer.env = {
        **environment,
        # a store of the trainers' own for each meeting: torch keeps the first one's address, whoever has left since
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        LOST_VARIABLE: str(LOST_SECONDS),
    }
    store = specs.Role(
        name="store",
        image=image,
        entrypoint=python,
        args=["-m", "components.common.guard", python, "-m", "components.common.rendezvous"]
        + ["--host", host, "--port", str(port)],
        env=dict(environment),
        num_replicas=1,
        port_map={"store": port},
        retry_policy=specs.RetryPolicy.REPLICA,
        resource=specs.Resource(cpu=1, gpu=0, memMB=2048),
    )
    return specs.AppDef(name=job.name, roles=[store, trainer])
