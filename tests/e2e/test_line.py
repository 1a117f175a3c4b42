"""The whole line, shrunken: run, run again, promoted, served, under DVC, killed and continued."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Checkout, make_checkout

PURE = ("curation", "pretraining", "refinement", "distillation", "evaluation")
ACTING = ("registration", "deployment")
MODELS = ("dino-foundry-convnext", "dino-foundry-vit")


def run(checkout: Checkout, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """One run that ends well, and its summary."""
    before = set(checkout.folder.glob("runs/*"))
    done = checkout.python("pipelines", "run", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = set(checkout.folder.glob("runs/*")) - before
    return done, json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def first(checkout: Checkout) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    return run(checkout)


@pytest.fixture(scope="module")
def second(
    checkout: Checkout, first: tuple[subprocess.CompletedProcess[str], dict[str, Any]]
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """The line again, after a person made both students champion."""
    for model in MODELS:
        promoted = checkout.python("components.registration", "promote", model, "challenger", "--why", "a test")
        assert promoted.returncode == 0, promoted.stderr
    return run(checkout)


def reused(summary: dict[str, Any]) -> dict[str, bool]:
    return {step["step"]: step["reused"] for step in summary["steps"]}


def test_the_first_run_makes_everything(
    checkout: Checkout, first: tuple[subprocess.CompletedProcess[str], dict[str, Any]]
) -> None:
    done, summary = first
    assert reused(summary) == dict.fromkeys((*PURE, *ACTING), False)
    assert Path(summary["report"]).read_text().lstrip().lower().startswith("<!doctype html")
    assert summary["dataset"]["files"] == 74
    rejected = summary["dataset"]["rejected"]
    assert rejected["exact-duplicate"] == 1
    assert summary["dataset"]["samples"] + sum(rejected.values()) == 74

    kinds = {row["network"]: row["kind"] for row in summary["scores"]}
    assert {"pretrained", "refined", "student-vit", "student-convnext", "raw pixels", "colour histogram"} <= set(kinds)
    for row in summary["scores"]:
        assert 0 <= row["measures"]["knn_top1"] <= 1
        assert row["kind"] in ("random", "baseline") or kinds[row["random"]] == "random"
    assert {model["model"] for model in summary["registered"].values()} == set(MODELS)
    assert all("challenger" in model["aliases"] for model in summary["registered"].values())


def test_what_is_printed_is_what_the_summary_says(
    checkout: Checkout, first: tuple[subprocess.CompletedProcess[str], dict[str, Any]]
) -> None:
    done, summary = first
    printed = done.stdout
    assert summary["dataset"]["digest"] in printed
    assert str(Path(summary["report"]).relative_to(checkout.folder)) in printed
    assert summary["verdict"]["summary"] in printed
    for row in summary["scores"]:
        assert re.search(rf"^{re.escape(row['title'])} .*{100 * row['measures']['knn_top1']:.1f} %", printed, re.M)
    for step in (*PURE, *ACTING):
        assert re.search(rf"^\[\d/8\] {step}", printed, re.M)
        assert re.search(rf"^time +{step} ", printed, re.M)
    assert "KFP Executor" not in printed and "executor_input" not in printed
    assert "KFP Executor" in (Path(summary["report"]).parent / "run.log").read_text()
    assert summary["verdict"]["passed"] is ("verdict   passed" in printed)


def test_lineage_leads_back_from_a_version_to_the_line_and_its_dataset(
    checkout: Checkout, first: tuple[subprocess.CompletedProcess[str], dict[str, Any]]
) -> None:
    _, summary = first
    from mlflow import MlflowClient

    uri = f"sqlite:///{checkout.home / 'mlflow' / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
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


def test_git_is_not_written_to(
    checkout: Checkout, first: tuple[subprocess.CompletedProcess[str], dict[str, Any]]
) -> None:
    def git(*arguments: str) -> list[str]:
        done = subprocess.run(["git", *arguments], cwd=checkout.folder, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    assert git("log", "--format=%s") == ["sources"]
    assert git("stash", "list") == [] and git("for-each-ref", "--format=%(refname)") == git("symbolic-ref", "HEAD")
    assert git("status", "--porcelain", "--untracked-files=all") in (["?? dvc.lock"], [" M dvc.lock"])


def test_a_second_run_reuses_everything_and_serves_the_champions(
    second: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
    first: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    done, summary = second
    assert reused(summary) == {**dict.fromkeys(PURE, True), **dict.fromkeys(ACTING, False)}
    assert "every result was there already" in done.stdout
    digests = [
        {step["step"]: step["digest"] for step in each[1]["steps"] if step["step"] in PURE} for each in (first, second)
    ]
    assert digests[0] == digests[1]
    assert set(summary["deployment"]["models"]) == set(MODELS)
    for model in summary["deployment"]["models"].values():
        assert model["golden"]["largest_difference"] <= 1e-4
    assert all(not model["new"] for model in summary["registered"].values())


def test_the_printed_commands_start_ask_and_stop_the_endpoint(
    checkout: Checkout, second: tuple[subprocess.CompletedProcess[str], dict[str, Any]]
) -> None:
    done, summary = second
    answers = []
    for name in ("start", "command", "stop"):
        command = summary["deployment"]["query"][name]
        assert command in done.stdout
        asked = subprocess.run(
            ["/bin/sh", "-c", command], cwd=checkout.folder, env=checkout.environment, capture_output=True, text=True
        )
        assert asked.returncode == 0, asked.stdout + asked.stderr
        answers.append(asked.stdout)
    assert re.search(r"-?\d\.\d+", answers[1]), answers[1]  # an embedding
    assert checkout.processes() == []


def test_a_plan_says_what_a_run_would_do(
    checkout: Checkout, second: tuple[subprocess.CompletedProcess[str], dict[str, Any]]
) -> None:
    _, summary = second
    names = {step["step"]: step["fingerprint"][:12] for step in summary["steps"]}
    same = checkout.python("pipelines", "plan").stdout.splitlines()
    for step in PURE:
        assert any(re.match(rf"{step} +reuse +{names[step]} ", line) for line in same), same
    other = checkout.python("pipelines", "plan", "--set", "refinement.overrides.steps=4").stdout.splitlines()
    actions = {line.split()[0]: line.split()[1] for line in other[:7]}
    assert actions == {
        **dict.fromkeys(("curation", "pretraining"), "reuse"),
        **dict.fromkeys(("refinement", "distillation", "evaluation", *ACTING), "run"),
    }


def test_dvc_finds_the_results_and_reruns_only_what_depends_on_a_change(
    checkout: Checkout, second: tuple[subprocess.CompletedProcess[str], dict[str, Any]]
) -> None:
    path = os.pathsep.join([str(Path(os.sys.executable).parent), checkout.environment["PATH"]])  # type: ignore[attr-defined]
    done = checkout.python("dvc", "repro", "evaluation", PATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    for step in PURE:
        assert f"{step}: reused (fingerprint" in done.stdout
        assert (checkout.folder / "artifacts" / step / "manifest.json").is_file()
    assert "running (fingerprint" not in done.stdout

    file = checkout.folder / "params.yaml"
    written = file.read_text()
    settings = yaml.safe_load(written)
    settings["evaluation"]["linear_steps"] = 21
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    done = checkout.python("dvc", "repro", "evaluation", PATH=path)
    file.write_text(written)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "evaluation: running (fingerprint" in done.stdout
    assert "curation: reused (fingerprint" in done.stdout
    for step in ("pretraining", "refinement", "distillation"):
        assert f"Stage '{step}' didn't change, skipping" in done.stdout


def test_a_killed_run_continues_and_ends_with_the_same_parameters(
    checkout: Checkout, second: tuple[subprocess.CompletedProcess[str], dict[str, Any]]
) -> None:
    """All that follows pretraining is reused afterwards: its result is the same to the bit."""
    _, summary = second
    (whole,) = (step for step in summary["steps"] if step["step"] == "pretraining")
    result = Path(whole["path"])
    weights = {path.relative_to(result): path.read_bytes() for path in result.glob("export/*/model.safetensors")}
    assert len(weights) >= 2
    shutil.rmtree(result)

    partial = result.with_name(f"{result.name}.partial")
    process = checkout.start("pipelines", "run")
    try:
        deadline = time.monotonic() + 240
        while not (partial / "checkpoints" / "latest").exists():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.01)  # looks for a file that another process writes
        os.killpg(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert not result.exists()
    while checkout.processes():  # the trainers follow their launcher
        assert time.monotonic() < deadline, checkout.processes()
        time.sleep(0.05)

    done, again = run(checkout)
    assert reused(again) == {**dict.fromkeys(PURE, True), **dict.fromkeys(ACTING, False), "pretraining": False}
    assert "resum" in done.stdout
    for name, data in weights.items():
        assert (result / name).read_bytes() == data
    assert [step["digest"] for step in again["steps"][:5]] == [step["digest"] for step in summary["steps"][:5]]


def test_without_labels_the_line_ends_with_label_free_gates(
    checkout: Checkout, second: tuple[subprocess.CompletedProcess[str], dict[str, Any]]
) -> None:
    """Training is measured without labels too, so nothing but curation is shared with the other runs."""
    done, summary = run(checkout, "--evaluation", "none", "--no-dvc")
    assert summary["protocol"] == "label-free"
    assert summary["dataset"]["dvc"] is None
    assert all("knn_top1" not in row["measures"] for row in summary["scores"])
    assert "no labels were given" in done.stdout
    assert reused(summary)["curation"]


def test_only_broken_files_end_in_one_line(tmp_path: Path) -> None:
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

    # An error of the program instead: its traceback is shown, and the status tells the two apart.
    with (checkout.folder / "components/curation/scan.py").open("a") as module:
        module.write("\nraise RuntimeError('broken on purpose')\n")
    done = checkout.python("pipelines", "run")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "RuntimeError: broken on purpose" in done.stdout
    assert done.stderr.count("\n") == 1 and "curat" in done.stderr and "run.log" in done.stderr
    assert checkout.processes() == []
