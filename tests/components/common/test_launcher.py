"""Real torchrun, with modules that are small enough to start at once."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from components.common import launcher
from components.common.launcher import LocalLauncher, TrainingFailed, TrainingJob, launch_training
from components.common.processes import MARK_VARIABLE, descendants, end_processes, marked_processes
from foundry.errors import UserError
from foundry.home import REPOSITORY
from foundry.lifetime import watch_environment

MODULES = {
    "adds.py": """
        import os, sys
        import torch
        import torch.distributed as dist
        dist.init_process_group("gloo")
        total = torch.tensor([float(os.environ["RANK"]) + 1])
        dist.all_reduce(total)
        print("sum", total.item(), "threads", os.environ["OMP_NUM_THREADS"], flush=True)
        print("on stderr", file=sys.stderr, flush=True)
        open(os.path.join(sys.argv[1], "rank" + os.environ["RANK"]), "w").write(" ".join(sys.argv[2:]))
        dist.destroy_process_group()
        """,
    "breaks.py": """
        import os, sys
        kind, rank = sys.argv[1], os.environ["RANK"]
        if rank == "0":
            if kind == "told":
                open(os.environ["FOUNDRY_ERROR_FILE"], "w").write("the dataset has no images\\n")
                sys.exit(2)
            open(sys.argv[2]).read()  # until the end
        if kind == "raises":
            raise ValueError("rank one is unhappy")
        if kind == "says":
            print("error: recipe x: no such thing", file=sys.stderr)
            sys.exit(2)
        if kind == "killed":
            os.kill(os.getpid(), 9)
        open(sys.argv[2]).read()
        """,
    "waits.py": """
        import os, subprocess, sys
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        with open(sys.argv[1] + "/up", "w") as up:
            up.write("x")
        open(sys.argv[1] + "/never").read()
        """,
    "alone.py": """
        import os, sys
        open(os.path.join(sys.argv[1], "node" + os.environ["GROUP_RANK"]), "w").write(os.environ["WORLD_SIZE"])
        """,
    "launches.py": """
        import sys
        from components.common.launcher import LocalLauncher, TrainingJob
        from foundry.errors import run_command
        folder, watch = sys.argv[1:]
        job = TrainingJob(arguments=(folder,), output=folder + "/run", processes=2, module="waits")
        sys.exit(run_command(lambda _: LocalLauncher().run(job)))
        """,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the modules, importable by what is launched, and two FIFOs: 'up' and 'never' (nobody writes)."""
    for name, source in MODULES.items():
        (tmp_path / name).write_text(textwrap.dedent(source))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(REPOSITORY)]))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name in ("up", "never"):
        os.mkfifo(tmp_path / name)
    return tmp_path


def job(folder: Path, module: str, *arguments: str, **more) -> TrainingJob:
    return TrainingJob(arguments=arguments, output=str(folder / "run"), processes=2, module=module, **more)


def test_both_processes_work_together_and_the_first_is_heard(folder: Path, capfd) -> None:
    before = (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    LocalLauncher().run(job(folder, "adds", str(folder), "with space", "$HOME;'quoted'"))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    lines = capfd.readouterr().err.splitlines()
    assert lines.count(f"sum 3.0 threads {threads}") == 1 and lines.count("on stderr") == 1
    assert {(folder / f"rank{rank}").read_text() for rank in (0, 1)} == {"with space $HOME;'quoted'"}
    logs = list((folder / "run" / "logs").glob("*/ranks/*/attempt_0/1/stdout.log"))
    assert len(logs) == 1 and "sum 3.0" in logs[0].read_text()
    assert marked_processes(str(folder / "run")) == []


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        (
            "raises",
            TrainingFailed,
            r"process 1 of 2 failed \(exit status 1\); all logs: .*rank one is unhappy",
        ),
        ("killed", TrainingFailed, r"process 1 of 2 failed \(SIGKILL, as when memory runs out\)"),
        ("says", UserError, "^recipe x: no such thing$"),
        ("told", UserError, "^the dataset has no images$"),
    ],
)
def test_a_failure_gives_its_reason(folder: Path, kind: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"(?s){words}"):
        LocalLauncher().run(job(folder, "breaks", kind, str(folder / "never")))
    assert marked_processes(str(folder / "run")) == []


def test_a_hanging_run_is_stopped(folder: Path) -> None:
    with pytest.raises(TrainingFailed, match="not finished after 1 s"):
        LocalLauncher().run(job(folder, "breaks", "hangs", str(folder / "never"), timeout=1.0))
    assert marked_processes(str(folder / "run")) == []


def started(folder: Path) -> subprocess.Popen[str]:
    """A launcher process both of whose training processes are up."""
    process = subprocess.Popen(
        [sys.executable, str(folder / "launches.py"), str(folder), "watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    heard = ""
    while len(heard) < 2:
        with (folder / "up").open() as up:
            heard += up.read()
    return process


def all_end(pids: list[int], seconds: float) -> bool:
    """Whether each of these processes ends in time."""
    poll = select.poll()
    waiting = set()
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        poll.register(handle, select.POLLIN)
        waiting.add(handle)
    while waiting:
        ended = poll.poll(seconds * 1000)
        if not ended:
            break
        for handle, _ in ended:
            poll.unregister(handle)
            waiting.discard(handle)
            os.close(handle)
    return not waiting


@pytest.mark.parametrize("victim", ["launcher", "group", "guard"])
def test_after_a_sigkill_nothing_survives(folder: Path, victim: str) -> None:
    process = started(folder)
    pids = descendants(process.pid)
    assert len(pids) == 6  # guard, torchrun, two processes, and what each of them started in a session of its own
    try:
        if victim == "launcher":
            os.kill(process.pid, signal.SIGKILL)
        elif victim == "group":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(pids[0], signal.SIGKILL)  # the direct child
        assert all_end(pids, 20)
        process.communicate(timeout=20)
        assert process.returncode not in (0, None)
    finally:
        end_processes(str(folder / "run"))
    assert marked_processes(str(folder / "run")) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_cancels_the_run(folder: Path, number: int, status: int) -> None:
    process = started(folder)
    pids = descendants(process.pid)
    process.send_signal(number)
    assert all_end(pids, 25)
    _, said = process.communicate(timeout=25)
    assert process.returncode == status and "Traceback" not in said


def test_a_restart_first_ends_what_a_killed_launcher_left(folder: Path) -> None:
    run = str(folder / "run")
    orphan = subprocess.Popen(["sleep", "1000"], env={**os.environ, MARK_VARIABLE: run})
    other = subprocess.Popen(["sleep", "1000"], env={**os.environ, MARK_VARIABLE: run + "2"})
    LocalLauncher().run(job(folder, "alone", str(folder)))
    assert orphan.wait(timeout=5) == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    other.wait()


def test_launches_beside_each_other_do_not_meet(folder: Path) -> None:
    """Two nodes each: these meet at a TCP port, which must be another one for each launch."""
    errors: list[Exception] = []

    def launch(number: int) -> None:
        place = folder / str(number)
        place.mkdir()
        try:
            LocalLauncher().run(
                TrainingJob(
                    arguments=(str(place),), output=str(place), processes=1, nodes=2, module="alone", timeout=60
                )
            )
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=launch, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [(folder / str(n) / f"node{m}").read_text() for n in range(2) for m in range(2)] == ["2"] * 4


def test_what_is_run_is_the_training_command(tmp_path: Path) -> None:
    seen: list[TrainingJob] = []

    class Recorder:
        def run(self, job: TrainingJob) -> None:
            seen.append(job)

    launch_training("r.yaml", "data", tmp_path, 3, teacher="t", evaluation="e", nodes=2, launcher=Recorder())
    launch_training("r.yaml", "data", tmp_path, 1, launcher=Recorder())
    base = ("--recipe", "r.yaml", "--data", "data", "--output", str(tmp_path))
    assert [entry.arguments for entry in seen] == [(*base, "--teacher", "t", "--evaluation", "e"), base]
    assert (seen[0].processes, seen[0].nodes, seen[0].module) == (3, 2, "training")


def test_the_watch_names_this_process() -> None:
    assert watch_environment()["FOUNDRY_WATCH_PROCESS"].startswith(f"{os.getpid()}:")
    assert launcher.threads_for(10**6) == 1
