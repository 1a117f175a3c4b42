"""What every test starts from: a home folder of its own, no tracking server of the person's, no telemetry."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
INSTALLED_HOME = Path(os.environ.get("FOUNDRY_HOME") or REPOSITORY / ".foundry")
"""Where `make setup` unpacked the Triton server."""

# Before anything imports torch or mlflow: two workers share the cores, and nothing phones home.
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // 2)))
os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DVC_NO_ANALYTICS="1", HF_HUB_OFFLINE="1", PYTHONUTF8="1")
for variable in [
    name for name in os.environ if name.startswith(("MLFLOW_TRACKING", "MLFLOW_RUN", "MLFLOW_EXPERIMENT"))
]:
    del os.environ[variable]
_KEPT = ("FOUNDRY_DATA", "FOUNDRY_TRITON", "FOUNDRY_SERVING_ENV")
for variable in [name for name in os.environ if name.startswith("FOUNDRY_") and name not in _KEPT]:
    del os.environ[variable]
# The server and its environment are installed once, whatever the home folder of a test.
os.environ.setdefault("FOUNDRY_TRITON", str(INSTALLED_HOME / "triton"))
os.environ.setdefault("FOUNDRY_SERVING_ENV", str(REPOSITORY / ".venv-serving"))


@pytest.fixture(scope="session", autouse=True)
def session_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """FOUNDRY_HOME of a whole test session: what is costly to make (the sample pool) is made once."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOUNDRY_HOME", str(folder))
        yield folder


@pytest.fixture
def fresh_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FOUNDRY_HOME of one test."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("FOUNDRY_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real image sets named by FOUNDRY_DATA."""
    if not (folder := os.environ.get("FOUNDRY_DATA")):
        pytest.skip("FOUNDRY_DATA is unset: no real image sets here")
    return Path(folder)
