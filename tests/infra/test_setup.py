"""Set-up: what is missing is named, what is there is not made again, what was interrupted is made anew."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from foundry.errors import UserError

SETUP = Path(__file__).resolve().parents[2] / "infra" / "setup"


def preflight(tools: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(SETUP / "preflight.sh")], env={"PATH": str(tools), **variables}, capture_output=True, text=True
    )


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with all that is needed, by links to this machine's own."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("g++", "make", "git", "uname", "dirname"):
        (folder / name).symlink_to(shutil.which(name) or pytest.skip(f"no {name} here"))
    (folder / "python3.11").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / "python3.11").chmod(0o755)
    return folder


def test_a_complete_machine_gives_its_python(tools: Path) -> None:
    done = preflight(tools)
    assert (done.returncode, done.stderr) == (0, "")
    version = subprocess.run([done.stdout.strip(), "--version"], capture_output=True, text=True).stdout
    assert version.startswith("Python 3.11.")


@pytest.mark.parametrize("name", ["g++", "make", "git"])
def test_each_missing_tool_is_one_line(tools: Path, name: str) -> None:
    (tools / name).unlink()
    done = preflight(tools)
    assert done.returncode == 2
    assert done.stderr.startswith(f"missing: {name}; install it: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ("headers\n=/p", "the C headers of /p (Python.h)"),
        ("library\n=/p", "libpython3.11.so.1.0 of /p"),
        ("venv\n=/p", "venv and pip of /p"),
        ("", "Python 3.11 (exactly 3.11"),
    ],
)
def test_what_a_python_lacks_is_named(tools: Path, tmp_path: Path, facts: str, named: str) -> None:
    other = tmp_path / "python-elsewhere"
    other.write_text(f"#!/bin/sh\nprintf '{facts}'\n" if facts else "#!/bin/sh\nexit 1\n")
    other.chmod(0o755)
    done = preflight(tools, PYTHON3=str(other))
    assert done.returncode == 2
    assert named in done.stderr and done.stderr.count("\n") == 1


def test_everything_missing_is_told_at_once(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = preflight(empty, PYTHON3="/no/such/python")
    assert done.returncode == 2
    assert [line.split()[1].rstrip(";") for line in done.stderr.splitlines()] == ["g++", "make", "git", "Python"]


@pytest.fixture
def environments(monkeypatch: pytest.MonkeyPatch, fresh_home: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("environments", SETUP / "environments.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock of one small package that lies in a folder of wheels."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for version in ("1.0", "2.0"):
        info = f"tiny_thing-{version}.dist-info"
        with zipfile.ZipFile(wheels / f"tiny_thing-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr("tiny_thing.py", f"version = '{version}'\n")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-thing\nVersion: {version}\n")
            wheel.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    path = tmp_path / "lock.txt"
    path.write_text("# a lock\ntiny-thing==1.0  # via nothing\n")
    return path


def installed(folder: Path) -> str:
    command = [str(folder / "bin" / "python"), "-c", "import tiny_thing; print(tiny_thing.version)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_an_environment_is_made_once_and_again_when_needed(
    environments: ModuleType, lock: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "environment"
    environments.make_environment("small", folder, lock, 1)
    assert installed(folder) == "1.0"
    made = (folder / "pyvenv.cfg").stat().st_ino

    lock.write_text("# another remark\ntiny-thing==1.0\n")
    environments.make_environment("small", folder, lock, 1)
    assert (folder / "pyvenv.cfg").stat().st_ino == made  # nothing to do

    (folder / environments.STAMP).unlink()  # as a killed set-up leaves it
    (folder / "half-installed").touch()
    lock.write_text("tiny-thing==2.0\n")
    environments.make_environment("small", folder, lock, 1)
    assert installed(folder) == "2.0"
    assert not (folder / "half-installed").exists()


def test_a_folder_of_someone_else_is_left_alone(environments: ModuleType, lock: Path, tmp_path: Path) -> None:
    folder = tmp_path / "environment"
    folder.mkdir()
    (folder / "mine").write_text("precious")
    with pytest.raises(UserError, match="not made by this set-up"):
        environments.make_environment("small", folder, lock, 1)
    assert (folder / "mine").read_text() == "precious"


def test_a_package_that_cannot_be_had_is_named(environments: ModuleType, lock: Path, tmp_path: Path, capfd) -> None:  # type: ignore[no-untyped-def]
    lock.write_text("tiny-thing==3.0\n")
    with pytest.raises(UserError, match="pip could not install"):
        environments.make_environment("small", tmp_path / "environment", lock, 1)
    assert "tiny-thing==3.0" in capfd.readouterr().err


def test_an_unknown_environment(environments: ModuleType) -> None:
    with pytest.raises(UserError, match="main, dev, serving, triton"):
        environments.main(["mian"])


def test_locks_name_no_index_and_no_path_and_agree_with_each_other() -> None:
    folder = SETUP.parents[1] / "requirements"
    locks = {path.stem: path.read_text() for path in folder.glob("*.txt")}
    assert set(locks) == {"main", "dev", "serving", "reference"}
    pinned: dict[str, dict[str, str]] = {}
    for name, text in locks.items():
        assert "://" not in text and "--index" not in text and "--find-links" not in text
        lines = [line.partition("#")[0].strip() for line in text.splitlines()]
        rows = [line.split("==") for line in lines if line and not line.startswith("-")]
        assert all(len(row) == 2 and "+" not in row[1] for row in rows), name
        pinned[name] = {package: version for package, version in rows}
    assert not pinned["main"].keys() & pinned["dev"].keys()
    assert not pinned["reference"].keys() & (pinned["main"].keys() | pinned["dev"].keys())
    shared = pinned["main"].keys() & pinned["serving"].keys() - {"numpy"}
    assert {"pillow", "onnxruntime"} <= shared  # what decides pixels and embeddings
    assert all(pinned["main"][package] == pinned["serving"][package] for package in shared)
    assert pinned["serving"]["numpy"].startswith("1.") and pinned["main"]["numpy"].startswith("2.")
