"""The whole line, shrunken: run, run again, promoted, served, under DVC, killed and continued."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.e2e.checkout import ACTING, PURE, Checkout, Run, make_checkout

if TYPE_CHECKING:
    from mlflow import MlflowClient

pytestmark = pytest.mark.timeout(900)  # a run has many processes, and the machine may be busy
MODELS = ("dino-foundry-convnext", "dino-foundry-vit")


def registry(checkout: Checkout) -> MlflowClient:
    from mlflow import MlflowClient

    uri = f"sqlite:///{checkout.home / 'mlflow' / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@pytest.fixture(scope="module")
def first(checkout: Checkout) -> Run:
    """The line from nothing."""
    return checkout.run()


@pytest.fixture(scope="module")
def second(checkout: Checkout, first: Run) -> Run:
    """The line again, after both students were made champion by other means: they learnt little."""
    client = registry(checkout)
    for model in MODELS:
        client.set_registered_model_alias(model, "champion", "1")
    return checkout.run()


def test_the_first_run_makes_everything(first: Run) -> None:
    summary = first.summary
    assert first.made() == {*PURE, *ACTING}
    assert Path(summary["report"]).read_text().lstrip().lower().startswith("<!doctype html")
    rejected = summary["dataset"]["rejected"]
    assert summary["dataset"]["files"] == 74 == summary["dataset"]["samples"] + sum(rejected.values())
    assert rejected["exact-duplicate"] == 1

    kinds = {row["network"]: row["kind"] for row in summary["scores"]}
    assert {"pretrained", "refined", "student-vit", "student-convnext", "raw pixels", "colour histogram"} <= set(kinds)
    for row in summary["scores"]:
        assert 0 <= row["measures"]["knn_top1"] <= 1
        assert row["kind"] in ("random", "baseline") or kinds[row["random"]] == "random"
    assert {model["model"] for model in summary["registered"].values()} == set(MODELS)
    assert all("challenger" in model["aliases"] for model in summary["registered"].values())


def test_what_is_printed_is_what_the_summary_says(checkout: Checkout, first: Run) -> None:
    summary, printed = first.summary, first.printed
    assert summary["dataset"]["digest"] in printed and summary["dataset"]["dvc"]["md5"] in printed
    for page in (summary["report"], summary["dataset"]["page"]):
        assert Path(page).is_file() and str(Path(page).relative_to(checkout.folder)) in printed
    assert summary["verdict"]["summary"] in printed
    assert summary["verdict"]["passed"] is ("verdict   passed:" in printed)
    for row in summary["scores"]:
        assert re.search(rf"^{re.escape(row['title'])} .*{100 * row['measures']['knn_top1']:.1f} %", printed, re.M)
    for step in (*PURE, *ACTING):
        assert re.search(rf"^\[\d/8\] {step}", printed, re.M)
        assert re.search(rf"^time +{step} ", printed, re.M)
    assert "KFP Executor" not in printed and "executor_input" not in printed
    assert "KFP Executor" in (Path(summary["report"]).parent / "run.log").read_text()


def test_lineage_leads_back_from_a_version_to_the_line_and_its_dataset(checkout: Checkout, first: Run) -> None:
    client, summary = registry(checkout), first.summary
    version = client.get_model_version(MODELS[1], summary["registered"]["vit"]["version"])
    step = client.get_run(version.run_id)
    line = client.get_run(step.data.tags["mlflow.parentRunId"])
    assert line.info.run_id == summary["tracking"]["run_id"]
    assert line.data.tags["foundry.dataset.digest"] == summary["dataset"]["digest"]
    assert line.data.tags["foundry.dataset.dvc.md5"] == summary["dataset"]["dvc"]["md5"]
    nested = client.search_runs([line.info.experiment_id], f"tags.`mlflow.parentRunId` = '{line.info.run_id}'")
    assert {run.data.tags["foundry.step"] for run in nested} == {*PURE, *ACTING}
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=checkout.folder, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert commit in {value for run in nested for value in run.data.tags.values()}


def test_git_is_not_written_to(checkout: Checkout, first: Run) -> None:
    def git(*arguments: str) -> list[str]:
        done = subprocess.run(["git", *arguments], cwd=checkout.folder, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    assert git("log", "--all", "--format=%s") == ["sources"]
    assert git("for-each-ref", "--format=%(refname)") == git("symbolic-ref", "HEAD")
    assert git("diff", "--cached", "--name-only") == []
    assert git("status", "--porcelain", "--untracked-files=all") == ["?? dvc.lock"]


def test_a_family_learns_from_a_registered_student(checkout: Checkout, second: Run) -> None:
    heads = "distillation.overrides.teacher.head_steps=4"
    names = "registration.prefix=family"
    run = checkout.run("--teacher", "models:/dino-foundry-vit@champion", "--set", heads, "--set", names)
    assert run.made() == {"adoption", "distillation", "evaluation", *ACTING}
    assert re.search(r"^\[2/7\] adoption", run.printed, re.M) and "pretraining" not in run.printed
    scores = {row["network"]: row for row in run.summary["scores"]}
    student, teacher = (scores[name]["measures"]["knn_top1"] for name in ("student-vit", "teacher"))
    before = {row["network"]: row["measures"] for row in second.summary["scores"]}
    assert teacher == before["student-vit"]["knn_top1"]
    assert student != scores["student-vit-random"]["measures"]["knn_top1"], "it has learnt something"
    assert {"pretrained", "refined"}.isdisjoint(scores)
    models = {model["model"] for model in run.summary["registered"].values()}
    assert models == {"family-vit", "family-convnext"}
    tags = registry(checkout).get_model_version("family-vit", "1").tags
    assert "foundry.fingerprint.adoption" in tags and "foundry.fingerprint.refinement" not in tags
    again = checkout.run("--teacher", "models:/dino-foundry-vit@champion", "--set", heads, "--set", names)
    assert again.made() == set(ACTING)


def test_a_second_run_reuses_everything_and_serves_the_champions(first: Run, second: Run) -> None:
    assert second.made() == set(ACTING)
    assert "every result was there already" in second.printed
    for step in PURE:
        assert second.step(step)["digest"] == first.step(step)["digest"]
    models = second.summary["deployment"]["models"]
    assert set(models) == set(MODELS)
    assert all(model["golden"]["largest_difference"] <= 1e-4 for model in models.values())
    assert not any(model["new"] for model in second.summary["registered"].values())


def test_the_printed_commands_start_ask_and_stop_the_endpoint(checkout: Checkout, second: Run) -> None:
    answers = []
    for name in ("start", "command", "stop"):
        command = second.summary["deployment"]["query"][name]
        assert command in second.printed
        asked = subprocess.run(
            ["/bin/sh", "-c", command], cwd=checkout.folder, env=checkout.environment, capture_output=True, text=True
        )
        assert asked.returncode == 0, asked.stdout + asked.stderr
        answers.append(asked.stdout)
    assert re.search(r"-?\d\.\d+", answers[1]), answers[1]  # an embedding
    assert checkout.processes() == []


def test_a_plan_says_what_a_run_would_do(checkout: Checkout, second: Run) -> None:
    same = checkout.python("pipelines", "plan").stdout.splitlines()
    for step in PURE:
        name = second.step(step)["fingerprint"][:12]
        assert any(re.match(rf"{step} +reuse +{name} ", line) for line in same), same
    other = checkout.python("pipelines", "plan", "--set", "refinement.overrides.steps=4").stdout.splitlines()
    assert {line.split()[0]: line.split()[1] for line in other[:7]} == {
        **dict.fromkeys(("curation", "pretraining"), "reuse"),
        **dict.fromkeys(("refinement", "distillation", "evaluation", *ACTING), "run"),
    }
    changes = ("--set", "distillation.divide=true")
    divided = [line.split() for line in checkout.python("pipelines", "plan", *changes).stdout.splitlines()]
    assert {line[0]: line[1:5] for line in divided if "processes" in line} == {
        f"{name}:": ["1", "of", "2", "processes"] for name in ("vit", "convnext")
    }


def test_dvc_finds_the_results_and_reruns_only_what_depends_on_a_change(checkout: Checkout, second: Run) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), checkout.environment["PATH"]])
    done = checkout.python("dvc", "repro", "evaluation", PATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    for step in PURE:
        assert f"{step}: reused (fingerprint" in done.stdout, done.stdout
        assert (checkout.folder / "artifacts" / step / "manifest.json").is_file()
    assert "running (fingerprint" not in done.stdout

    file = checkout.folder / "params.yaml"
    written = file.read_text()
    settings = yaml.safe_load(written)
    settings["evaluation"]["linear_steps"] += 1
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    done = checkout.python("dvc", "repro", "evaluation", PATH=path)
    file.write_text(written)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "evaluation: running (fingerprint" in done.stdout
    assert "curation: reused (fingerprint" in done.stdout
    for step in ("pretraining", "refinement", "distillation"):
        assert f"Stage '{step}' didn't change, skipping" in done.stdout


def test_a_killed_run_continues_and_ends_with_the_same_parameters(checkout: Checkout, second: Run) -> None:
    """All that follows pretraining is reused afterwards: its result is the same to the bit."""
    result = Path(second.step("pretraining")["path"])
    weights = {path.relative_to(result): path.read_bytes() for path in result.glob("export/*/model.safetensors")}
    assert len(weights) >= 2
    shutil.rmtree(result)

    partial = result.with_name(f"{result.name}.partial")
    process = checkout.start("pipelines", "run")
    deadline = time.monotonic() + 240
    try:
        while not (partial / "checkpoints" / "latest").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)  # until another process has written a file
        os.killpg(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert not result.exists()
    while checkout.processes():  # the trainers follow their launcher
        assert time.monotonic() < deadline, checkout.processes()
        time.sleep(0.05)

    again = checkout.run()
    assert again.made() == {"pretraining", *ACTING}
    events = [json.loads(line) for line in (result / "events.jsonl").read_text().splitlines()]
    assert "resumed" in [value for event in events for value in event.values()]
    for name, data in weights.items():
        assert (result / name).read_bytes() == data
    for step in PURE:
        assert again.step(step)["digest"] == second.step(step)["digest"]


def test_errors_of_people_and_of_the_program_are_told_apart(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        (images / f"{number}.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    checkout = make_checkout(tmp_path / "checkout", {"images": str(images), "evaluation": "none"})
    done = checkout.python("pipelines", "run")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"error: {images}"), done.stderr
    assert "error:" not in done.stdout  # told once
    (summary,) = (json.loads(path.read_text()) for path in checkout.folder.glob("runs/*/summary.json"))
    assert summary["state"] == "failed" and f"error: {summary['error']}" == done.stderr.strip()

    with (checkout.folder / "components/curation/scan.py").open("a") as module:
        module.write("\nraise RuntimeError('broken on purpose')\n")
    done = checkout.python("pipelines", "run")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "RuntimeError: broken on purpose" in done.stdout
    assert done.stderr.count("\n") == 1 and "curat" in done.stderr and "run.log" in done.stderr
    assert checkout.processes() == []


def test_a_second_run_at_the_same_time_says_who_is_at_work(checkout: Checkout, first: Run) -> None:
    import fcntl

    with (checkout.home / "line.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write("process 123")
        lock.flush()
        done = checkout.python("pipelines", "run")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "process 123" in done.stderr and "FOUNDRY_HOME" in done.stderr
