"""Whole small runs in processes of their own: division among processes, kills, and the stages after each other."""

import json
import os
import random
import signal
import subprocess
import time

import numpy as np
import pytest
import torch

from tests.training.curated import write_dataset
from tests.training.small_runs import HEADS, command, events, rows, train, write_recipe
from training.engine.exports import latest_export


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("curated") / "dataset", side=64)


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    """The folder of one finished run of two processes."""
    folder = tmp_path_factory.mktemp("unbroken")
    train(2, write_recipe(folder / "recipe.yaml"), data, folder / "run")
    return folder / "run"


def losses(run):
    names = ("loss", "dino_global", "dino_local", "ibot", "koleo")
    return np.array([[row[name] for name in names] for row in rows(run) if "loss" in row])


@pytest.mark.parametrize("processes", [1, 4])
def test_number_of_processes_never_changes_the_losses(data, unbroken, tmp_path, processes):
    train(processes, write_recipe(tmp_path / "recipe.yaml", workers=1), data, tmp_path / "run")
    assert losses(tmp_path / "run").shape == (8, 5)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(unbroken), rtol=1e-5, atol=1e-6)


def killed_at(step, processes, run, *arguments):
    """Start a run and kill all its processes once ``step`` is in its log."""
    started = subprocess.Popen(
        command(processes, *arguments),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    try:
        while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) <= step:
            assert started.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_run_resumes_and_ends_bit_for_bit_the_same(data, tmp_path, processes):
    step = random.SystemRandom().randrange(12)
    recipe, run, whole = write_recipe(tmp_path / "recipe.yaml", steps=16), tmp_path / "run", tmp_path / "whole"
    train(processes, recipe, data, whole)
    arguments = ("--recipe", recipe, "--data", data, "--output", run)
    killed_at(step, processes, run, *arguments)
    assert not (run / "export" / "latest").exists()
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "checkpoints" / ".step-000000099.partial").mkdir()  # a save that was killed
    train(processes, *arguments[1::2])
    second = "resumed" if step >= 4 else events(run)[1]  # a checkpoint is due every two steps and whole a step later
    assert events(run) == ["started", second, "finished"], f"killed at step {step}"
    for name in ("model.safetensors", "heads.safetensors"):
        ours, theirs = (latest_export(folder) / name for folder in (run, whole))
        assert ours.read_bytes() == theirs.read_bytes(), f"{name}, killed at step {step}"
    assert np.array_equal(losses(run), losses(whole))
    assert [row["step"] for row in rows(run) if "loss" in row] == list(range(16))
    assert not list((run / "checkpoints").glob(".*"))


STUDENTS = [
    {"name": "vit", "model": {"arch": "vit", "dim": 16, "depth": 1, "heads": 1, "patch_size": 8}},
    {"name": "convnext", "model": {"arch": "convnext", "depths": [1, 1, 1], "dims": [8, 8, 16]}},
]
LATER = {
    "gram": {
        "crops": {"global_size": 32, "local_size": 16, "local_count": 1, "gram_size": 64},
        "losses": {"koleo_group": 4, "gram": 2.0},
        "teacher": {"gram_refresh_every": 3, "gram_refreshes": 2},
    },
    "distil": {"students": STUDENTS},
    "divided": {"stage": "distil", "students": [{**student, "processes": 1} for student in STUDENTS]},
}


def refreshes(run):
    """The steps after which the Gram teacher was refreshed."""
    lines = (run / "events.jsonl").read_text().splitlines()
    return [row["step"] for row in map(json.loads, lines) if row["event"] == "gram-teacher"]


@pytest.mark.parametrize(("stage", "processes"), [("gram", 1), ("gram", 2), ("distil", 1), ("divided", 2)])
def test_a_later_stage_that_is_killed_ends_bit_for_bit_the_same(data, unbroken, tmp_path, stage, processes):
    step = random.SystemRandom().randrange(8)
    settings = {"name": stage, "stage": stage, "model": None, "steps": 12, **LATER[stage]}
    recipe, run, whole = write_recipe(tmp_path / "recipe.yaml", **settings), tmp_path / "run", tmp_path / "whole"
    train(processes, recipe, data, whole, "--teacher", unbroken)
    arguments = ("--recipe", recipe, "--data", data, "--output", run, "--teacher", unbroken)
    killed_at(step, processes, run, *arguments)
    train(processes, recipe, data, run, "--teacher", unbroken)
    assert events(whole)[-1] == events(run)[-1] == "finished"
    assert refreshes(whole) == ([2, 5] if stage == "gram" else [])
    assert set(refreshes(run)) == set(refreshes(whole)), "a step that was killed before its checkpoint is done twice"
    files = [path.relative_to(whole) for path in sorted(whole.rglob("step-000000012/*.safetensors"))]
    assert len(files) == (2 if stage == "gram" else 4)
    for file in files:
        assert (run / file).read_bytes() == (whole / file).read_bytes(), f"{file}, killed at step {step}"


def test_the_gram_teacher_is_refreshed_at_its_steps_also_after_a_restart(data, unbroken, tmp_path):
    """Right after a refresh teacher and student agree most, so it shows in the loss as well as in the events."""
    settings = {"name": "gram", "stage": "gram", "model": None, **LATER["gram"]}
    run, whole = tmp_path / "run", tmp_path / "whole"
    train(1, write_recipe(tmp_path / "whole.yaml", steps=10, **settings), data, whole, "--teacher", unbroken)
    for steps in (3, 4, 6, 10):  # it ends right before, with and right after a refresh
        train(1, write_recipe(tmp_path / "part.yaml", steps=steps, **settings), data, run, "--teacher", unbroken)

    assert refreshes(whole) == [2, 5], "after three and six steps, and then twice was enough"
    assert refreshes(run) == refreshes(whole)
    found = [[row["gram"] for row in rows(folder) if "gram" in row] for folder in (run, whole)]
    assert found[0] == found[1] and len(found[0]) == 10


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Losses of a run of 16 steps by one process."""
    folder = tmp_path_factory.mktemp("whole")
    train(1, write_recipe(folder / "recipe.yaml", steps=16), data, folder / "run")
    return losses(folder / "run")


@pytest.mark.parametrize(
    ("first", "then"), [((2, "fsdp"), (1, "auto")), ((2, "fsdp"), (3, "fsdp")), ((1, "auto"), (2, "fsdp"))], ids=str
)
def test_a_checkpoint_is_resumed_by_any_number_of_processes(data, whole, tmp_path, first, then):
    recipes = [
        write_recipe(tmp_path / f"{place}.yaml", steps=16, parallel=parallel)
        for place, (_, parallel) in enumerate((first, then))
    ]
    run = tmp_path / "run"
    killed_at(8, first[0], run, "--recipe", recipes[0], "--data", data, "--output", run)
    train(then[0], recipes[1], data, run)
    assert events(run) == ["started", "resumed", "finished"]
    np.testing.assert_allclose(losses(run), whole, rtol=1e-5, atol=1e-6)


def test_finished_run_started_again_changes_nothing(data, unbroken):
    before = (latest_export(unbroken) / "model.safetensors").stat().st_mtime_ns
    train(1, unbroken / "recipe.yaml", data, unbroken)
    assert (latest_export(unbroken) / "model.safetensors").stat().st_mtime_ns == before


def test_gram_stage_continues_and_distillation_teaches_two_students(data, unbroken, tmp_path):
    from transformers import AutoModel

    gram = write_recipe(
        tmp_path / "gram.yaml",
        name="gram",
        stage="gram",
        model=None,
        steps=3,
        crops={"global_size": 32, "local_size": 16, "local_count": 1, "gram_size": 64},
        losses={"koleo_group": 4, "gram": 2.0},
    )
    refined = tmp_path / "refined"
    train(1, gram, data, refined, "--teacher", unbroken)
    first = rows(refined)[0]
    assert 0 < first["gram"] < 1
    untrained = (refined / "export/step-000000000/model.safetensors").read_bytes()
    assert untrained == (unbroken / "export/step-000000000/model.safetensors").read_bytes()

    distil = write_recipe(
        tmp_path / "distil.yaml", name="distil", stage="distil", model=None, steps=3, students=STUDENTS
    )
    distilled = tmp_path / "distilled"
    train(2, distil, data, distilled, "--teacher", refined)
    for name, side in (("vit", 32), ("convnext", 64)):
        export = latest_export(distilled, name)
        assert export.name == "step-000000003"
        assert AutoModel.from_pretrained(export)(torch.zeros(1, 3, side, side)).pooler_output.isfinite().all()
        assert json.loads((export / "preprocessor_config.json").read_text())["crop_size"]["height"] == side
        row = rows(distilled)[-1]
        assert row[f"{name}/ibot"] > 0 and row[f"{name}/feature_rank"] > 0


def test_errors_of_people_are_one_line(data, unbroken, tmp_path):
    def refused(*arguments):
        done = subprocess.run(command(1, *arguments), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        return done.stderr.strip().splitlines()[-1]

    recipe, output = write_recipe(tmp_path / "r.yaml"), tmp_path / "o"
    common = ("--data", data, "--output", output)
    assert "did you mean 'embedded'" in refused("--recipe", "embeded", *common)
    assert "did you mean 'batch'" in refused("--recipe", recipe, "--set", "bach=3", *common)
    assert "not a curated dataset" in refused("--recipe", recipe, "--data", tmp_path, "--output", output)
    assert "takes no teacher" in refused("--recipe", recipe, "--teacher", unbroken, *common)
    heads = {**HEADS, "dino": {**HEADS["dino"], "prototypes": 12}}
    gram = {"stage": "gram", "model": None, "losses": {"gram": 1.0, "koleo_group": 4}, "heads": heads}
    crops = {"global_size": 32, "local_size": 16, "gram_size": 64}
    other = write_recipe(tmp_path / "g.yaml", **gram, crops=crops)
    assert "make them equal" in refused("--recipe", other, "--teacher", unbroken, *common)
    assert "needs the run folder" in refused("--recipe", other, *common)
