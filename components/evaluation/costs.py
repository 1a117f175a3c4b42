"""What a line cost: time, device-hours, images seen, and an estimate of its energy by one plain rule.

The rule: rated power x devices x hours x utilisation x PUE. Power is not measured. A GPU counts with the board power
that its maker states, a CPU core with its share of the thermal design power of a server processor; memory, disks and
the rest of the machine are left out. Utilisation and PUE (power usage effectiveness: what a building draws for what its
machines draw) are 1 unless a setting says otherwise. The form of the estimate is that of Lannelongue et al. (2021,
"Green Algorithms", equation 1) without its term for memory.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from components.common.follow import RowReader
from components.common.report.html import Markup, Row, join, number, paragraph, table
from foundry.progress import duration

BOARD_WATTS = (
    ("GB200", 1200.0), ("B200", 1000.0), ("H200 NVL", 600.0), ("H200", 700.0), ("H100 PCIe", 350.0),
    ("H100 NVL", 400.0), ("H100", 700.0), ("A100 PCIE 40GB", 250.0), ("A100 PCIE", 300.0), ("A100 80GB PCIe", 300.0),
    ("A100", 400.0), ("L40S", 350.0), ("L40", 300.0), ("L4", 72.0), ("A40", 300.0), ("A30", 165.0), ("A10G", 300.0),
    ("A10", 150.0), ("V100 PCIE", 250.0), ("V100", 300.0), ("T4", 70.0), ("RTX 5090", 575.0), ("RTX 4090", 450.0),
    ("RTX 3090", 350.0), ("RTX 6000 Ada", 300.0), ("RTX A6000", 300.0),
)  # fmt: skip
"""(part of the device's name, watts of the whole board by its maker's data sheet); the first that fits counts."""
OTHER_BOARD_WATTS = 300.0
"""Of a GPU that is not in the table."""


@dataclass(frozen=True)
class EnergyRule:
    """The settings of the estimate."""

    watts_a_core: float = 10.0
    """Of a CPU core: a server processor of 16 to 64 cores is rated at 5 to 13 W a core."""
    watts_a_gpu: float | None = None
    """Of a GPU; None: by its name (:data:`BOARD_WATTS`)."""
    utilisation: float = 1.0
    """Share of the rated power that is drawn."""
    pue: float = 1.0
    """Power usage effectiveness of the building."""
    grams_a_kwh: float | None = None
    """CO2 equivalent of a kWh of the grid; None: emissions are not told."""

    def watts(self, device: str, name: str) -> float:
        """Rated power of one device: a core (``cpu``) or a GPU called ``name``."""
        if device == "cpu":
            return self.watts_a_core
        if self.watts_a_gpu is not None:
            return self.watts_a_gpu
        plain = name.lower().replace("-", " ")
        for part, watts in BOARD_WATTS:
            if re.search(rf"\b{part.lower()}\b", plain):
                return watts
        return OTHER_BOARD_WATTS


@dataclass(frozen=True)
class Cost:
    """What one step of the line cost."""

    title: str
    seconds: float
    """Wall time: the longer of what its manifest tells of the last attempt and of what its logs tell of all."""
    device: Literal["cpu", "cuda"]
    name: str
    """Of the GPU; empty for a CPU or where it is not known."""
    devices: int
    """GPUs, or CPU cores."""
    images: int
    """Shown to the network (steps x batch, each once for all its crops); of curation, files read. 0: not known."""
    steps: int
    restarts: int
    kwh: float
    """Estimated energy."""
    grams: float | None
    """Estimated CO2 equivalent, where the rule knows the grid."""

    @property
    def device_hours(self) -> float:
        """Hours x GPUs, or hours x CPU cores."""
        return self.devices * self.seconds / 3600


def cost_of_run(
    folder: Path, title: str = "", *, rule: EnergyRule | None = None, cores: int | None = None
) -> Cost | None:
    """The cost of the step whose result (or training run folder) is ``folder``; None where nothing tells its time.

    Read from ``manifest.json``, ``events.jsonl``, ``metrics.jsonl`` and ``recipe.yaml``, each where it is present.
    ``cores``: how many a run without a GPU kept busy; by default all that this process may use, since training divides
    all cores of a machine among its processes.
    """
    rule = rule or EnergyRule()
    manifest, recipe = _document(folder / "manifest.json"), _document(folder / "recipe.yaml")
    rows, events = RowReader(folder / "metrics.jsonl").new_rows(), RowReader(folder / "events.jsonl").new_rows()
    seconds = max(_logged_seconds(rows, events), _float(manifest.get("seconds")))
    if seconds <= 0:
        return None
    environment = manifest.get("environment") or {}
    told = environment.get("device") or recipe.get("device")
    device: Literal["cpu", "cuda"] = "cuda" if str(told).startswith("cuda") else "cpu"
    name = str(environment.get("accelerator") or "") if device == "cuda" else ""
    processes = [int(_float(event.get("processes"))) for event in events if event.get("processes")]
    world = max([*processes, int(_float(environment.get("world_size"))), 1])
    devices = world if device == "cuda" else cores or _cores()
    metrics = manifest.get("metrics") or {}
    steps = max([*(int(_float(row.get("step"))) + 1 for row in rows), int(_float(metrics.get("steps")))], default=0)
    images = steps * int(_float(recipe.get("batch"))) or int(_float(metrics.get("files")))
    kwh = rule.watts(device, name) * devices * seconds / 3.6e6 * rule.utilisation * rule.pue
    return Cost(
        title=title or str(manifest.get("step") or folder.name),
        seconds=seconds,
        device=device,
        name=name,
        devices=devices,
        images=images,
        steps=steps,
        restarts=sum(event.get("event") == "resumed" for event in events),
        kwh=kwh,
        grams=None if rule.grams_a_kwh is None else kwh * rule.grams_a_kwh,
    )


def _logged_seconds(rows: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]) -> float:
    """Seconds from each start or restart to the last that was written before the next one, added up.

    Work that was lost and done again counts as far as events tell of it; the pause between two attempts does not.
    """
    times = sorted(time for row in (*rows, *events) if (time := _float(row.get("time"))) > 0)
    if not times:
        return sum(_float(row.get("step_seconds")) for row in rows)
    starts = sorted(_float(event.get("time")) for event in events if event.get("event") in ("started", "resumed"))
    if not starts:  # the first row is written at the end of its step
        starts = [times[0] - _float(rows[0].get("step_seconds")) if rows else times[0]]
    total = 0.0
    for start, following in zip(starts, [*starts[1:], float("inf")], strict=True):
        total += max((time for time in times if time < following), default=start) - start
    return total


def costs_section(costs: Sequence[Cost], rule: EnergyRule | None = None) -> Markup:
    """What the steps cost, a row each, their sum, and how the energy was estimated; empty where no step tells."""
    if not costs:
        return Markup("")
    rule = rule or EnergyRule()
    emissions = rule.grams_a_kwh is not None
    head: list[object] = ["Step", number("Wall time"), "On", number("Device-hours"), number("Images seen")]
    head += [number("Steps"), number("Restarts"), number("Energy, estimated")]
    head += [number("CO2e, estimated")] if emissions else []
    rows: list[Row] = []
    for cost in costs:
        cells: list[object] = [
            cost.title,
            number(duration(cost.seconds), sort=cost.seconds),
            _devices(cost),
            number(_amount(cost.device_hours)),
            number(f"{cost.images:,}" if cost.images else "–"),
            number(f"{cost.steps:,}" if cost.steps else "–"),
            number(f"{cost.restarts}"),
            number(_energy(cost.kwh), sort=cost.kwh),
        ]
        rows.append(Row(cells + ([number(_mass(cost.grams or 0.0), sort=cost.grams)] if emissions else [])))
    kwh, seconds = sum(cost.kwh for cost in costs), sum(cost.seconds for cost in costs)
    total: list[object] = [
        "Together",
        number(duration(seconds)),
        "",
        number(_amount(sum(c.device_hours for c in costs))),
    ]
    total += [number(f"{sum(c.images for c in costs):,}"), "", number(f"{sum(c.restarts for c in costs)}")]
    total += [number(_energy(kwh))]
    total += [number(_mass(kwh * (rule.grams_a_kwh or 0.0)))] if emissions else []
    rows.append(Row(total, "total"))
    return join([table(head, rows, sortable=True), paragraph(_how(costs, rule), "note")])


def _how(costs: Sequence[Cost], rule: EnergyRule) -> str:
    powers = []
    if any(cost.device == "cpu" for cost in costs):
        powers.append(f"{rule.watts_a_core:g} W a CPU core (its share of a processor's thermal design power)")
    names = sorted({cost.name for cost in costs if cost.device == "cuda"})
    powers += [
        f"{rule.watts('cuda', name):g} W for each {name or 'GPU of unknown name'} (board power)" for name in names
    ]
    told = (
        "The energy is an estimate, not a measurement: rated power times devices times hours, with "
        f"{', '.join(powers)}, a utilisation of {rule.utilisation:g} and a PUE of {rule.pue:g}. Memory, disks and "
        "network are left out, and so is the evaluation itself. A device-hour is an hour of one GPU or of one CPU core."
    )
    if rule.grams_a_kwh is not None:
        told += f" CO2e at {rule.grams_a_kwh:g} g a kWh, as the settings say."
    return told


def _devices(cost: Cost) -> str:
    if cost.device == "cpu":
        return f"{cost.devices} CPU core{'s' if cost.devices != 1 else ''}"
    return f"{cost.devices} x {cost.name or 'GPU'}"


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _energy(kwh: float) -> str:
    return f"{_amount(kwh)} kWh" if kwh >= 0.1 else f"{_amount(1000 * kwh)} Wh"


def _mass(grams: float) -> str:
    return f"{_amount(grams / 1000)} kg" if grams >= 1000 else f"{_amount(grams)} g"


def _float(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _document(path: Path) -> dict[str, Any]:
    """The mapping of a JSON or YAML file; empty where there is none, or it is not readable as one."""
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
