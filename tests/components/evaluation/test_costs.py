from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from components.common.report.html import Section, page
from components.evaluation.costs import BOARD_WATTS, OTHER_BOARD_WATTS, Cost, EnergyRule, cost_of_run, costs_section


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(folder: Path, *, manifest: dict | None = None, device: str = "auto") -> Path:
    """Started at 1000, logs every 10 s until 1030, killed, resumed at 2000, finished at 2015: 45 s of work."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"batch": 64, "steps": 6, "device": device}))
    events = [{"event": "started", "step": 0, "time": 1000.0, "processes": 4}]
    events += [{"event": "resumed", "step": 3, "time": 2000.0, "processes": 4}]
    events += [{"event": "finished", "step": 5, "time": 2015.0}]
    write_lines(folder / "events.jsonl", events)
    times = [1010.0, 1020.0, 1030.0, 2005.0, 2010.0, 2014.0]
    rows = [{"step": step, "time": time, "step_seconds": 4.0} for step, time in enumerate(times)]
    write_lines(folder / "metrics.jsonl", rows)
    if manifest is not None:
        (folder / "manifest.json").write_text(json.dumps({"step": "pretraining", **manifest}))
    return folder


def test_a_run_that_was_killed_and_resumed(tmp_path: Path) -> None:
    cost = cost_of_run(write_run(tmp_path / "run"), "Pretraining", cores=8)
    assert cost is not None
    assert (cost.title, cost.seconds, cost.restarts, cost.steps, cost.images) == ("Pretraining", 45.0, 1, 6, 6 * 64)
    assert (cost.device, cost.devices, cost.name) == ("cpu", 8, "")
    assert cost.device_hours == pytest.approx(8 * 45 / 3600)
    assert cost.kwh == pytest.approx(8 * 10 * 45 / 3600 / 1000) and cost.grams is None


def test_a_run_on_gpus_with_a_manifest(tmp_path: Path) -> None:
    environment = {"device": "cuda", "accelerator": "NVIDIA H100 80GB HBM3", "world_size": 4}
    run = write_run(tmp_path / "run", manifest={"seconds": 7200.0, "environment": environment})
    rule = EnergyRule(utilisation=0.5, pue=1.2, grams_a_kwh=400)
    cost = cost_of_run(run, rule=rule)
    assert cost is not None and cost.title == "pretraining" and cost.seconds == 7200
    assert (cost.device, cost.devices, cost.device_hours) == ("cuda", 4, 8.0)
    assert cost.kwh == pytest.approx(0.7 * 8 * 0.5 * 1.2) and cost.grams == pytest.approx(400 * cost.kwh)


def test_curation_has_a_manifest_only(tmp_path: Path) -> None:
    manifest = {"step": "curation", "seconds": 36.0, "metrics": {"files": 2385}, "environment": {"device": "cpu"}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    cost = cost_of_run(tmp_path, cores=2)
    assert cost is not None and (cost.title, cost.images, cost.steps) == ("curation", 2385, 0)
    assert cost.kwh == pytest.approx(36 * 2 * 10 / 3.6e6)


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [
        ([], None),
        ([{"step": 0, "time": 0.0, "loss": 1.0}], None),
        ([{"step": 0, "time": 500.0, "step_seconds": 2.0}, {"step": 1, "time": 503.0, "step_seconds": 3.0}], 5.0),
        ([{"step": 0, "step_seconds": 2.0}, {"step": 1, "step_seconds": 3.5}], 5.5),
    ],
)
def test_logs_without_events(tmp_path: Path, rows: list[dict], seconds: float | None) -> None:
    write_lines(tmp_path / "metrics.jsonl", rows)
    (tmp_path / "manifest.json").write_text("{ not JSON")
    cost = cost_of_run(tmp_path)
    assert (cost.seconds if cost else None) == seconds


@pytest.mark.parametrize(
    ("name", "watts"),
    [
        ("NVIDIA H100 80GB HBM3", 700),
        ("NVIDIA H100 PCIe", 350),
        ("NVIDIA H200", 700),
        ("NVIDIA A100-SXM4-80GB", 400),
        ("NVIDIA A100-PCIE-40GB", 250),
        ("NVIDIA L40S", 350),
        ("NVIDIA L4", 72),
        ("Tesla T4", 70),
        ("NVIDIA RTX A4000", OTHER_BOARD_WATTS),
        ("NVIDIA GB200", 1200),
        ("", OTHER_BOARD_WATTS),
    ],
)
def test_board_power_by_name(name: str, watts: float) -> None:
    assert EnergyRule().watts("cuda", name) == watts
    assert EnergyRule(watts_a_gpu=123).watts("cuda", name) == 123


def test_no_row_of_the_table_hides_another() -> None:
    for part, watts in BOARD_WATTS:
        assert EnergyRule().watts("cuda", f"NVIDIA {part}") == watts, part


def test_the_section_tells_figures_sum_and_how() -> None:
    costs = [
        Cost("Curation", 63.0, "cpu", "", 2, 2385, 0, 0, 0.00035, 0.14),
        Cost("Pretraining", 7290.0, "cuda", "NVIDIA H100 80GB HBM3", 8, 512_000, 1000, 2, 11.34, 4536.0),
    ]
    html = costs_section(costs, EnergyRule(grams_a_kwh=400))
    words = re.sub(r"<[^>]+>", " ", html)
    for told in ("2 h 01 min", "8 x NVIDIA H100 80GB HBM3", "16.2", "512,000", "11.3 kWh", "4.5 kg", "0.35 Wh"):
        assert told in words
    assert (
        "estimate, not a measurement" in words and "700 W for each NVIDIA H100" in words and "10 W a CPU core" in words
    )
    assert 'class="total"' in html and "514,385" in words and 'data-sort="11.34"' in html
    assert "<script" in page("x", html, [Section("c", "Cost", html)])
    assert "CO2e" not in costs_section(costs) and costs_section([]) == ""
