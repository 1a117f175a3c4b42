"""The choice of the Gram teacher along a pretraining, finished or running."""

from __future__ import annotations

import fcntl
import json
import threading
from pathlib import Path

import pytest

from foundry.errors import UserError
from training.engine import anchoring
from training.engine.anchoring import choose_gram_teacher
from training.recipe import Teacher

FALLING = [0.70, 0.74, 0.78, 0.80, 0.80, 0.79, 0.78, 0.77, 0.76]
AUTO = Teacher(gram_from="auto")


def write_run(folder: Path, values: list[float], measure: str = "patch_coherence") -> Path:
    """What a pretraining with these values every 10 steps leaves for the choice."""
    for number in range(len(values) + 1):
        (folder / "export" / f"step-{10 * number:09d}").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": 10 * number + 9, measure: value}) for number, value in enumerate(values)]
    (folder / "metrics.jsonl").write_text("\n".join([json.dumps({"step": 0, "loss": 3.0}), *lines, '{"step": 1']))
    return folder


def test_the_peak_is_chosen_and_the_curve_is_kept(tmp_path: Path) -> None:
    run = tmp_path / "refined"
    run.mkdir()
    chosen = choose_gram_teacher(write_run(tmp_path / "source", FALLING), AUTO, run, first=True)
    assert chosen == tmp_path / "source" / "export" / "step-000000040"
    record = json.loads((run / anchoring.FILE).read_text())
    assert record["step"] == 40 and record["values"] == FALLING and record["steps"] == list(range(10, 100, 10))
    assert record["measure"] == "patch_coherence" and record["decay"]["established"] == 80


def test_a_run_that_is_started_again_keeps_to_its_choice(tmp_path: Path) -> None:
    (run := tmp_path / "refined").mkdir()
    source = write_run(tmp_path / "source", FALLING)
    first = choose_gram_teacher(source, AUTO, run, first=True)
    write_run(source, [*FALLING, 0.9, 0.9, 0.9])
    assert choose_gram_teacher(source, AUTO, run, first=True) == first
    assert choose_gram_teacher(source, AUTO, run, first=False) == first


def test_masks_are_preferred_to_coherence(tmp_path: Path) -> None:
    (run := tmp_path / "refined").mkdir()
    source = write_run(tmp_path / "source", [0.2, 0.24, 0.28, 0.3, 0.3, 0.29, 0.28, 0.27, 0.26], "segmentation_miou")
    with (source / "metrics.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"step": 5, "patch_coherence": 0.9}) + "\n")
    choose_gram_teacher(source, AUTO, run, first=True)
    assert json.loads((run / anchoring.FILE).read_text())["measure"] == "segmentation_miou"


@pytest.mark.parametrize("values", [FALLING[:5], FALLING[:7], [0.8] * 9], ids=["rise", "early", "flat"])
def test_without_decay_the_stage_does_not_start(tmp_path: Path, values: list[float]) -> None:
    with pytest.raises(UserError, match=rf"no decay of dense features by step {10 * len(values)} .*gram_from=STEP"):
        choose_gram_teacher(write_run(tmp_path / "source", values), AUTO, tmp_path, first=True)
    assert not (tmp_path / anchoring.FILE).exists()


def test_a_running_pretraining_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_run(tmp_path / "source", FALLING[:5])
    (source / "metrics.jsonl").rename(source / "later")  # nothing is measured yet
    asked = threading.Event()
    monkeypatch.setattr(anchoring, "POLL_SECONDS", 0.01)
    seen = anchoring.find_decay
    monkeypatch.setattr(anchoring, "find_decay", lambda *a, **k: (asked.set(), seen(*a, **k))[1])
    found: list[Path | None] = []
    with (source / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(
            target=lambda: found.append(choose_gram_teacher(source, AUTO, tmp_path, first=True)), daemon=True
        )
        waiting.start()
        (source / "later").rename(source / "metrics.jsonl")
        assert asked.wait(60) and not found
        write_run(source, FALLING)
        waiting.join(60)
    assert found == [source / "export" / "step-000000040"]


def test_a_named_step_must_have_an_export(tmp_path: Path) -> None:
    source = write_run(tmp_path / "source", FALLING[:3])
    assert choose_gram_teacher(source, Teacher(gram_from=20), tmp_path, first=True) == source / "export/step-000000020"
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="no export of step 25 .* there are those of 0, 10, 20, 30"):
        choose_gram_teacher(source, Teacher(gram_from=25), tmp_path / "other", first=True)


def test_a_run_without_measures_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dense quality was not measured .*gram_from=STEP"):
        choose_gram_teacher(write_run(tmp_path / "source", [0.5], "knn_top1"), AUTO, tmp_path, first=True)


def test_by_default_it_is_the_newest_checkpoint(tmp_path: Path) -> None:
    assert choose_gram_teacher(tmp_path, Teacher(), tmp_path, first=True) is None
