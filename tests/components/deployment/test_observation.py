"""Error rates before and after a switch, from texts as Triton's metrics endpoint gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.deployment.config import DeploymentConfig
from components.deployment.observation import Counters, Observations, parse_counters


def metrics(**versions: tuple[int, int, int]) -> str:
    """``v1=(answered, failed, internal errors)``; callers also cancelled 7 and sent 3 bad images."""
    lines = ["# TYPE nv_inference_request_success counter"]
    for name, (success, _, _) in versions.items():
        lines.append(f'nv_inference_request_success{{model="m",version="{name[1:]}"}} {success}')
    lines.append("# TYPE nv_inference_request_failure counter")
    for name, (_, failed, _) in versions.items():
        labels = f'model="m",version="{name[1:]}"'
        lines.append(f'nv_inference_request_failure{{model="m",reason="BACKEND",version="{name[1:]}"}} {failed}')
        lines.append(f'nv_inference_request_failure{{reason="CANCELED",{labels}}} 7')
    lines.append("# TYPE foundry_serving_images_total counter")
    for name, (success, _, internal) in versions.items():
        for outcome, count in (("ok", success), ("not-an-image", 3), ("internal-error", internal)):
            labels = f'model="m",outcome="{outcome}",version="{name[1:]}"'
            lines.append(f"foundry_serving_images_total{{{labels}}} {count}")
    return "\n".join(lines) + "\n"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def observations(tmp_path: Path, clock: Clock) -> Observations:
    config = DeploymentConfig(observe_seconds=60, observe_requests=10, error_rate_margin=0.1)
    return Observations(tmp_path / "observed", config, clock)


def test_counters_of_one_version() -> None:
    text = metrics(v1=(90, 10, 5), v2=(1, 0, 0))
    assert parse_counters(text, "m", 1) == Counters(100, 10, 98, 5)
    assert parse_counters(text, "other", 1) == Counters()
    assert parse_counters(text, "m", 1).since(Counters(200, 0, 200, 0)) == Counters(100, 10, 98, 5), "loaded anew"


def test_a_rise_beyond_the_margin_is_judged_once_there_are_enough_requests(observations: Observations) -> None:
    before = metrics(v1=(95, 5, 0), v2=(0, 0, 0))
    observations.expect("m", 2, 1, before)
    assert observations.judge("m", before).verdict == "open"  # type: ignore[union-attr]
    observations.begin("m", metrics(v1=(95, 5, 0), v2=(9, 0, 0)))

    def verdict(success: int, failed: int, internal: int = 0) -> str:
        found = observations.judge("m", metrics(v1=(95, 5, 0), v2=(9 + success, failed, internal)))
        assert found is not None and found.version == 2
        return found.verdict

    assert verdict(0, 9) == "open", "nine requests are too few"
    assert verdict(0, 10) == "errors"
    assert verdict(86, 14) == "open", "14 % against 5 % before, 15 % are allowed"
    assert verdict(83, 17) == "errors"
    assert verdict(80, 0, 40) == "errors", "errors of the program, which Triton counts as answered"


def test_the_rate_before_is_that_of_the_last_while(observations: Observations, clock: Clock) -> None:
    observations.note("m", 1, metrics(v1=(0, 1000, 0)))
    clock.now += 50
    observations.note("m", 1, metrics(v1=(100, 1000, 0)))
    clock.now += 50
    observations.note("m", 1, metrics(v1=(200, 1000, 0)))
    observations.expect("m", 2, 1, metrics(v1=(300, 1000, 0)))
    observations.begin("m", metrics(v2=(0, 0, 0)))
    found = observations.judge("m", metrics(v2=(8, 2, 0)))
    assert found is not None and found.verdict == "errors" and "20.0 % of 10 requests" in found.why
    assert "0.0 % with version 1 before" in found.why


def test_an_observation_outlives_its_process_and_ends_in_time(
    observations: Observations, clock: Clock, tmp_path: Path
) -> None:
    observations.expect("m", 2, 1, metrics(v1=(100, 0, 0)))
    observations.begin("m", metrics(v2=(5, 5, 0)))
    again = Observations(tmp_path / "observed", DeploymentConfig(observe_seconds=60, observe_requests=10), clock)
    assert again.any_open() and again.judge("m", metrics(v2=(6, 5, 0))).verdict == "open"  # type: ignore[union-attr]
    clock.now += 60
    assert again.judge("m", metrics(v2=(25, 5, 0))).verdict == "fine"  # type: ignore[union-attr]
    again.end("m")
    assert not Observations(tmp_path / "observed", DeploymentConfig(), clock).any_open()
    (tmp_path / "observed").write_text('{"m": 1}')
    assert not Observations(tmp_path / "observed", DeploymentConfig(), clock).any_open()


def test_nothing_is_observed_where_the_settings_say_so(tmp_path: Path) -> None:
    observations = Observations(tmp_path / "observed", DeploymentConfig(observe_seconds=0))
    observations.expect("m", 2, 1, metrics(v1=(1, 0, 0)))
    assert not observations.any_open() and observations.judge("m", "") is None
