"""Makes the environments of this checkout from the locks in requirements/, and only what is not there yet.

    main     .venv from requirements/main.txt
    dev      requirements/dev.txt on top of it, and requirements/reference.txt in .venv/reference
    serving  .venv-serving from requirements/serving.txt (numpy < 2, for Triton's Python backend)
    triton   the server binary, unpacked from its wheel (``python -m serving install``)

A stamp written last says what an environment was made from (lock, interpreter, place). The same stamp: nothing to do.
Another one, or none because a set-up was interrupted: made again from nothing, so no half-installed package stays.
Runs on the standard library alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from foundry.errors import UserError, run_command  # noqa: E402
from foundry.home import home, require_space  # noqa: E402
from foundry.progress import Progress  # noqa: E402
from serving.installation import install_triton  # noqa: E402

GIB = 2**30
STAMP = "foundry-stamp.json"
MARK = "made-by-dino-foundry"
TARGETS = ("main", "dev", "serving", "triton")


def requirements(name: str) -> Path:
    """The lock ``requirements/<name>.txt``."""
    return REPOSITORY / "requirements" / f"{name}.txt"


def pins(lock: Path) -> list[str]:
    """The pinned packages of a lock, one ``name==version`` each."""
    lines = (line.partition("#")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("-")]


def wanted_stamp(folder: Path, *locks: Path) -> dict[str, str]:
    """What an environment in ``folder`` depends on."""
    digest = hashlib.sha256("\n".join(pin for lock in locks for pin in pins(lock)).encode()).hexdigest()
    return {"pins": digest, "python": f"{sys.executable} {platform.python_version()}", "folder": str(folder)}


def is_ready(folder: Path, wanted: dict[str, str], stamp: str = STAMP) -> bool:
    """Whether ``folder`` was finished from exactly this."""
    try:
        return bool(json.loads((folder / stamp).read_text(encoding="utf-8")) == wanted)
    except (OSError, ValueError):
        return False


def write_stamp(folder: Path, wanted: dict[str, str], stamp: str = STAMP) -> None:
    """Say that ``folder`` is finished; atomically, last."""
    temporary = folder / f"{stamp}.tmp"
    temporary.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / stamp)


def remove_own(folder: Path) -> None:
    """Delete ``folder`` if this program made it; refuse to touch another's."""
    if folder.is_symlink() or (folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists()):
        raise UserError(f"{folder}: is there and was not made by this set-up; move it away and run again")
    shutil.rmtree(folder, ignore_errors=True)


def run_pip(python: Path, arguments: list[str], label: str, total: int, packages: Path, log: Path) -> None:
    """``python -m pip install arguments``: its output in ``log``, a count of packages on the terminal."""
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
    ]
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output, Progress(label, total, "packages", log_every=15) as progress:
        output.write(" ".join([*command, *arguments]) + "\n")
        output.flush()
        process = subprocess.Popen([*command, *arguments], stdout=output, stderr=output, env=environment)
        before = len(list(packages.glob("*.dist-info"))) if packages.exists() else 0
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1)
                installed = len(list(packages.glob("*.dist-info"))) - before if packages.exists() else 0
                phase = "" if installed > 0 else f"fetching, {_fetched(log)} so far"
                progress.advance(max(0, min(installed, total) - progress.done), phase)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        reasons = [line for line in lines if line.startswith("ERROR:")][:4] or lines[-4:]
        print("\n".join(reasons), file=sys.stderr)
        raise UserError(
            f"{label}: pip could not install it, see {log}; check pip's index and the network, then run again"
        )


def _fetched(log: Path) -> int:
    return sum(
        line.startswith(("Collecting ", "Processing ", "Requirement already satisfied"))
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
    )


def site_packages(environment: Path) -> Path:
    """The folder packages are installed to."""
    return environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def make_environment(name: str, folder: Path, lock: Path, needed_bytes: int) -> None:
    """A virtual environment in ``folder`` with the packages of ``lock``."""
    wanted = wanted_stamp(folder, lock)
    if is_ready(folder, wanted):
        return
    remove_own(folder)
    require_space(folder, needed_bytes, f"the {name} environment")
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    log = home() / "logs" / f"setup-{name}.log"
    total = len(pins(lock))
    run_pip(folder / "bin" / "python", ["-r", str(lock)], f"{name} environment", total, site_packages(folder), log)
    write_stamp(folder, wanted)


def make_main() -> None:
    """``.venv``."""
    make_environment("main", REPOSITORY / ".venv", requirements("main"), 4 * GIB)


def make_dev() -> None:
    """The packages of tests and checks in ``.venv``, where they touch none of the main lock; references beside them."""
    make_main()
    folder, lock, reference = REPOSITORY / ".venv", requirements("dev"), requirements("reference")
    wanted, stamp = wanted_stamp(folder, requirements("main"), lock, reference), "foundry-dev-stamp.json"
    if is_ready(folder, wanted, stamp):
        return
    (folder / stamp).unlink(missing_ok=True)
    # --no-deps: the lock names every package; --force-reinstall: one left half-installed is replaced.
    arguments = ["--no-deps", "--force-reinstall", "-r", str(lock)]
    log = home() / "logs" / "setup-dev.log"
    run_pip(folder / "bin" / "python", arguments, "tests and checks", len(pins(lock)), site_packages(folder), log)
    aside = folder / "reference"
    shutil.rmtree(aside, ignore_errors=True)
    arguments = ["--no-deps", "--target", str(aside), "-r", str(reference)]
    log = home() / "logs" / "setup-reference.log"
    run_pip(folder / "bin" / "python", arguments, "references of tests", len(pins(reference)), aside, log)
    write_stamp(folder, wanted, stamp)


def make_serving() -> None:
    """``.venv-serving``."""
    make_environment("serving", REPOSITORY / ".venv-serving", requirements("serving"), GIB)


def make_triton() -> None:
    """The Triton server, unpacked from its wheel where the deployment looks for it; Linux x86-64 only."""
    if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        install_triton()


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold the set-up of this checkout; wait for another that runs."""
    home().mkdir(parents=True, exist_ok=True)
    with (home() / "setup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another set-up of this checkout is running; waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(argv: list[str]) -> int:
    """Make the targets named in ``argv``; without any: what running the line needs."""
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        return 0
    makers = {"main": make_main, "dev": make_dev, "serving": make_serving, "triton": make_triton}
    for target in argv:
        if target not in makers:
            raise UserError(f"{target}: no such environment; there are {', '.join(TARGETS)}")
    started = time.monotonic()
    with one_at_a_time():
        for target in argv or ["main", "serving", "triton"]:
            makers[target]()
    if (seconds := time.monotonic() - started) > 2:
        print(f"set-up finished in {seconds:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
