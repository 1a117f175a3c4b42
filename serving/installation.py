"""Where the Triton server and the serving environment are, and whether they fit together."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from foundry.errors import UserError
from foundry.home import REPOSITORY, home

WHEEL = "nvidia-pytriton==0.7.0"
"""Carries the Triton 2.51.0 binary (NGC 24.10) for Linux x86-64; its Python part is not used."""
STUB = "triton_python_backend_stub"
MARK = "made-by-dino-foundry"

_INSPECT = """
import ctypes, os, sys, sysconfig
version = f"{sys.version_info[0]}.{sys.version_info[1]}"
library = f"libpython{version}.so.1.0"
multiarch = sysconfig.get_config_var("MULTIARCH") or ""
folders = [sysconfig.get_config_var("LIBDIR") or "", os.path.join(sys.base_prefix, "lib")]
folders += [os.path.join(folder, multiarch) for folder in folders]
folder = next((folder for folder in folders if os.path.isfile(os.path.join(folder, library))), "")
if not folder:
    try:
        ctypes.CDLL(library)
        folder = "-"
    except OSError:
        pass
import importlib.metadata as metadata
def found(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
print("\\n".join([version, folder, found("numpy"), found("pillow"), found("onnxruntime") or found("onnxruntime-gpu")]))
"""


@dataclass(frozen=True)
class Installation:
    """A Triton server with the environment its Python backend runs in, checked against each other."""

    server: Path
    """The ``tritonserver`` folder of the wheel: bin/, backends/, caches/."""
    environment: Path
    """A virtual environment with numpy < 2, Pillow and onnxruntime."""
    library_folder: str
    """Folder of the libpython that the stub loads; '' where the system's loader finds it by itself."""

    @property
    def binary(self) -> Path:
        """The server's executable, run in place (its libraries are found relative to it)."""
        return self.server / "bin" / "tritonserver"


def triton_folder() -> Path:
    """Where the wheel is unpacked: ``FOUNDRY_TRITON``, else ``triton`` in the project's home."""
    return Path(os.environ.get("FOUNDRY_TRITON") or home() / "triton").expanduser().absolute()


def serving_environment() -> Path:
    """The serving environment: ``FOUNDRY_SERVING_ENV``, else ``.venv-serving`` in the checkout."""
    return Path(os.environ.get("FOUNDRY_SERVING_ENV") or REPOSITORY / ".venv-serving").expanduser().absolute()


def find_installation() -> Installation:
    """The installation to use, its stub in place. Raises :class:`UserError` naming what is missing or does not fit."""
    _check_platform()
    server = triton_folder() / "pytriton" / "tritonserver"
    if not (server / "bin" / "tritonserver").is_file():
        raise UserError(f"{triton_folder()}: the Triton server is not there; run: python -m serving install")
    environment = serving_environment()
    version, library_folder = _inspect_environment(environment)
    _place_stub(server, version)
    return Installation(server, environment, "" if library_folder == "-" else library_folder)


def install_triton(target: Path | None = None) -> Path:
    """Unpack the server's wheel to ``target`` (default :func:`triton_folder`) and put the stub of this Python in place.

    Nothing is fetched when it is there already. Returns the folder.
    """
    _check_platform()
    target = triton_folder() if target is None else target
    server = target / "pytriton" / "tritonserver"
    if not (server / "bin" / "tritonserver").is_file():
        if target.exists() and any(target.iterdir()) and not (target / MARK).exists():
            raise UserError(f"{target}: is there and holds no Triton server; move it away or set FOUNDRY_TRITON")
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            unpacked = Path(scratch) / "triton"
            command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--quiet"]
            command += ["--disable-pip-version-check", "--no-input", "--target", str(unpacked), WHEEL]
            result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if result.returncode:
                last = [line for line in result.stdout.splitlines() if line.startswith("ERROR")] or [result.stdout]
                raise UserError(f"{WHEEL}: pip could not install it ({last[-1].strip()[:300]}); check pip's index")
            (unpacked / MARK).touch()
            os.rename(unpacked, target)
    _place_stub(server, f"{sys.version_info[0]}.{sys.version_info[1]}")
    return target


def _check_platform() -> None:
    here = (platform.system(), platform.machine())
    if here != ("Linux", "x86_64"):
        raise UserError(
            f"the embedded Triton server runs on Linux x86_64, this is {here[0]} {here[1]}; "
            "everything but serving works here, and any Triton server can load the model repository"
        )


def _place_stub(server: Path, version: str) -> None:
    source = server / "python_backend_stubs" / version / STUB
    if not source.is_file():
        available = ", ".join(sorted(path.name for path in source.parent.parent.glob("3.*")))
        raise UserError(f"Python {version}: this Triton server has no stub for it (it has {available})")
    place = server / "backends" / "python" / STUB
    if place.is_file() and place.stat().st_size == source.stat().st_size and place.read_bytes() == source.read_bytes():
        return
    try:
        temporary = place.with_name(f".{STUB}.{os.getpid()}")
        shutil.copy2(source, temporary)
        os.replace(temporary, place)  # a server that runs keeps the file it opened
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({error.strerror}); run: python -m serving install") from None


def _inspect_environment(environment: Path) -> tuple[str, str]:
    """(Python version 'X.Y', folder of its libpython or '-') of a usable serving environment."""
    python = environment / "bin" / "python"
    if not python.exists() or not (environment / "bin" / "activate").is_file():
        raise UserError(
            f"{environment}: no serving environment there; `make` sets it up, or name one by FOUNDRY_SERVING_ENV "
            "(a virtual environment with numpy<2, pillow and onnxruntime)"
        )
    version, folder, *packages = _ask(python, (environment / "pyvenv.cfg").stat().st_mtime_ns)
    if not folder:
        raise UserError(
            f"{environment}: its Python has no libpython{version}.so.1.0, which Triton loads; "
            f"install it (apt-get install libpython{version}) or build Python with --enable-shared"
        )
    for name, found in zip(("numpy", "pillow", "onnxruntime"), packages, strict=True):
        if not found:
            raise UserError(f"{environment}: the package {name} is missing; run `make` or pip install it there")
    if int(packages[0].partition(".")[0]) >= 2:
        raise UserError(
            f"{environment}: this Triton answers with empty tensors under numpy {packages[0]}; install numpy<2 there"
        )
    return version, folder


@lru_cache(maxsize=4)
def _ask(python: Path, _modified: int) -> tuple[str, ...]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run([str(python), "-I", "-c", _INSPECT], capture_output=True, text=True, env=environment)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"status {result.returncode}"])[-1]
        raise UserError(f"{python}: does not run ({reason}); make the environment again")
    return tuple(result.stdout.rstrip("\n").split("\n"))
