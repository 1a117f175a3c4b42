"""The application of a training job on two hosts, of which one is killed, cut off or replaced in the middle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from components.common.training_app import TrainingJob, training_app
from foundry.home import REPOSITORY
from foundry.lifetime import watch_environment
from tests.e2e.hosts import Hosts, why_no_hosts
from tests.training.curated import write_dataset
from tests.training.small_runs import HEADS, train, write_recipe

pytestmark = pytest.mark.timeout(600)

WITHIN = 60.0
"""Seconds after which training must go on."""
MODEL = {"arch": "vit", "dim": 64, "depth": 3, "heads": 2, "patch_size": 4, "registers": 1, "layer_scale": 0.5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("curated") / "dataset")


def recipe(folder: Path, steps: int, kept: int) -> Path:
    return write_recipe(
        folder / "recipe.yaml",
        steps=steps,
        batch=16,
        model=MODEL,
        heads=HEADS,
        cadence={"log": 1, "checkpoint": 5, "evaluate": 0, "keep_checkpoints": kept},
        workers=0,
    )


def unbroken(data: Path, folder: Path, steps: int, history: list[tuple[int, int]]) -> np.ndarray:
    """Losses of runs that nothing happened to, with ``history``: (first step, processes from there on), one by one."""
    run = folder / "run"
    for first, processes in history:
        for checkpoint in run.glob("checkpoints/step-*"):
            if int(checkpoint.name.removeprefix("step-")) > first:
                shutil.rmtree(checkpoint)
        train(processes, recipe(folder, steps, kept=1000), data, run)
    return losses(run)


def rows(run: Path) -> list[dict]:
    if not (run / "metrics.jsonl").exists():
        return []
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def losses(run: Path) -> np.ndarray:
    names = ("loss", "dino_global", "dino_local", "ibot", "koleo")
    return np.array([[row[name] for name in names] for row in rows(run) if "loss" in row])


class Job:
    """A run on the hosts 1 and 2."""

    def __init__(self, hosts: Hosts, data: Path, folder: Path, steps: int) -> None:
        self.hosts, self.data, self.run, self.steps = hosts, data, folder / "run", steps
        arguments = ("--recipe", recipe(folder, steps, kept=2), "--data", data, "--output", self.run)
        job = TrainingJob(arguments=tuple(map(str, arguments)), output=str(self.run), processes=1, nodes=2, min_nodes=1)
        torchrun = str(Path(sysconfig.get_path("scripts")) / "torchrun")
        environment = {**watch_environment(), "PYTHONPATH": str(REPOSITORY)}
        self.app = training_app(job, environment, torchrun=torchrun)
        self.store = hosts.start_store(self.app)
        self.nodes = {host: hosts.start_trainer(self.app, host) for host in (1, 2)}

    def reach(self, step: int, seconds: float = 120.0) -> float:
        """Wait until ``step`` is done; the time of its row."""
        return self.until(lambda row: row["step"] >= step, seconds)

    def goes_on_after(self, moment: float) -> float:
        """Seconds from ``moment`` to the first step that was done after a restart."""

        def restarted() -> bool:
            return any(event["time"] > moment for event in self.events("resumed"))

        deadline = time.monotonic() + 2 * WITHIN
        while not restarted():
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.1)
        begun = max(event["time"] for event in self.events("resumed"))
        seconds = self.until(lambda row: row["time"] > begun, 30.0) - moment
        print(f"training went on after {seconds:.1f} s")
        return seconds

    def until(self, wanted: Callable[[dict], bool], seconds: float) -> float:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = [row["time"] for row in rows(self.run) if wanted(row)]
            if found:
                return found[0]
            time.sleep(0.05)
        raise AssertionError(self.logs())

    def events(self, kind: str) -> list[dict]:
        lines = (self.run / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def ends(self, *hosts: int, seconds: float = 120.0) -> None:
        """The nodes on ``hosts`` and the store end well, and no process is left on any host."""
        for host in hosts:
            assert self.nodes[host].wait(seconds) == 0, self.logs()
        assert self.store.wait(30) == 0, self.logs()
        assert [event["step"] for event in self.events("finished")] == [self.steps - 1]

    def logs(self) -> str:
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in self.run.parent.glob("*.log")
        )


@pytest.fixture
def job(data: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Job]:
    """Started and 60 steps old; the parameter is its number of steps."""
    if why := why_no_hosts():
        pytest.skip(f"two hosts on one machine are network namespaces: {why}")
    with Hosts(3, tmp_path) as hosts:
        made = Job(hosts, data, tmp_path, request.param)
        made.reach(60)
        yield made


def check(job: Job, folder: Path, worlds: list[int]) -> None:
    """As many processes as ``worlds`` after each start, and the losses of a run so divided but without faults."""
    started = [*job.events("started"), *job.events("resumed")]
    history = [(event["step"], event["processes"]) for event in started]
    assert [processes for _, processes in history] == worlds
    for host in (1, 2, 3):
        assert job.hosts.pids(host) == []
    folder.mkdir()
    wanted = unbroken(job.data, folder, job.steps, history)
    np.testing.assert_allclose(losses(job.run), wanted, rtol=1e-5, atol=1e-6)


SHORT = pytest.mark.parametrize("job", [120], indirect=True)
LONG = pytest.mark.parametrize("job", [400], indirect=True)


@SHORT
@pytest.mark.parametrize("host", [1, pytest.param(2, marks=pytest.mark.faults)])
def test_the_other_host_goes_on_when_one_is_killed(job: Job, tmp_path: Path, host: int) -> None:
    moment = time.time()
    job.hosts.kill(host)
    assert job.goes_on_after(moment) < WITHIN
    job.ends(3 - host)
    check(job, tmp_path / "unbroken", [2, 1])


@pytest.mark.faults
@SHORT
@pytest.mark.parametrize("host", [1, 2])
def test_both_hosts_go_on_when_a_trainer_is_killed(job: Job, tmp_path: Path, host: int) -> None:
    moment = time.time()
    (trainer,) = job.hosts.trainers(host)
    subprocess.run(["kill", "-9", str(trainer)], check=True)
    assert job.goes_on_after(moment) < WITHIN
    job.ends(1, 2)
    check(job, tmp_path / "unbroken", [2, 2])


@pytest.mark.faults
@SHORT
@pytest.mark.parametrize("host", [1, 2])
def test_the_other_host_goes_on_when_a_link_is_cut_for_good(job: Job, tmp_path: Path, host: int) -> None:
    moment = time.time()
    job.hosts.cut(host)
    assert job.goes_on_after(moment) < WITHIN
    job.ends(3 - host)
    assert job.nodes[host].wait(180) == 75  # it gives up by itself
    check(job, tmp_path / "unbroken", [2, 1])


@pytest.mark.faults
@LONG
def test_a_host_that_was_cut_off_for_a_while_is_taken_in_again(job: Job, tmp_path: Path) -> None:
    moment = time.time()
    job.hosts.cut(2)
    time.sleep(40)
    job.hosts.heal(2)
    assert job.goes_on_after(moment) < WITHIN
    job.ends(1, 2, seconds=240)
    worlds = [event["processes"] for event in job.events("resumed")]
    assert worlds in ([1, 2], [2])  # a slow machine may still be gathering hosts when the link heals
    check(job, tmp_path / "unbroken", [2, *worlds])


@pytest.mark.faults
@LONG
def test_a_short_cut_restarts_nothing(job: Job, tmp_path: Path) -> None:
    job.hosts.cut(2)
    time.sleep(8)
    job.hosts.heal(2)
    job.ends(1, 2, seconds=240)
    check(job, tmp_path / "unbroken", [2])


@pytest.mark.faults
@SHORT
@pytest.mark.parametrize("host", [1, 2])
def test_a_host_is_replaced(job: Job, tmp_path: Path, host: int) -> None:
    moment = time.time()
    job.hosts.kill(host)
    time.sleep(6)
    job.nodes[3] = job.hosts.start_trainer(job.app, 3)
    assert job.goes_on_after(moment) < WITHIN
    job.ends(3 - host, 3, seconds=240)
    worlds = [event["processes"] for event in job.events("resumed")]
    assert worlds[-1] == 2
    check(job, tmp_path / "unbroken", [2, *worlds])
