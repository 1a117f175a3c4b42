"""``python -m components.deployment watch``: mistakes are told in one line, before any server is started."""

from __future__ import annotations

import subprocess
import sys

import pytest

from components.common.params import load_params
from components.deployment.commands import run_watch
from foundry.errors import UserError
from serving.server import find_server
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--every", "0"), "--every 0: give a number of seconds above 0"),
        (("--webhook-port", "0"), "no secret; set FOUNDRY_WEBHOOK_SECRET"),
        (("--set", "deployment.observe_secnds=1"), "did you mean 'deployment.observe_seconds'"),
    ],
)
def test_mistakes_are_one_line(arguments, said, capfd, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.delenv("FOUNDRY_WEBHOOK_SECRET", raising=False)
    assert run_watch(list(arguments)) == 2
    out, err = capfd.readouterr()
    assert said in err and len(err.splitlines()) == 1 and find_server() is None


def test_help_names_the_command_and_the_step_keeps_its_own() -> None:
    def shown(*arguments: str) -> str:
        command = [sys.executable, "-m", "components.deployment", *arguments, "--help"]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    assert "--webhook-port PORT" in shown("watch")
    step = shown()
    assert "watch " in step and "latency_budget_ms: float" in step


def test_settings_have_bounds() -> None:
    params = load_params(None, ["deployment.latency_budget_ms=20", "deployment.error_rate_margin=0.1"])
    assert (params.deployment.latency_budget_ms, params.deployment.error_rate_margin) == (20.0, 0.1)
    for wrong in ("latency_budget_ms=-1", "error_rate_margin=1.5", "observe_requests=0", "observe_seconds=-1"):
        with pytest.raises(UserError, match=wrong.partition("=")[0]):
            load_params(None, [f"deployment.{wrong}"])
