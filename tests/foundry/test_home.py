from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from foundry.errors import UserError
from foundry.home import REPOSITORY, home, require_space


def test_home_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FOUNDRY_HOME", str(tmp_path / "x"))
    assert home() == tmp_path / "x"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOUNDRY_HOME", "relative")
    assert home() == tmp_path / "relative"
    monkeypatch.setenv("FOUNDRY_HOME", "~/foundry")
    assert home() == Path.home() / "foundry"


@pytest.mark.parametrize("value", [None, ""])
def test_home_is_in_the_checkout_by_default(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOUNDRY_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("FOUNDRY_HOME", value)
    assert home() == REPOSITORY / ".foundry"
    assert (REPOSITORY / "foundry" / "home.py").is_file()


def test_space_is_checked_on_the_disk_of_a_folder_yet_to_be_made(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    require_space(folder, 1, "a test")
    require_space(Path("not/there"), 1, "a test")
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(UserError, match="a test needs .* MiB, .* MiB are free"):
        require_space(folder, 2 * free + 2**30, "a test")
    assert not folder.exists()
