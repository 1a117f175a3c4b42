from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.common import store_command
from components.common.execution import execute
from components.common.retention import used_by_links, used_by_runs
from components.common.store_command import main
from foundry.errors import UserError
from foundry.home import REPOSITORY

DAYS = 86400


@pytest.fixture
def three(toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A chain first -> second and a result apart, all last used 30 days ago; no runs and no artifacts."""
    monkeypatch.setattr(store_command, "REPOSITORY", tmp_path)
    first = execute(toy.step, toy.config(rows=1), {}, store=toy.store)
    second = execute(toy.step, toy.config(rows=2), {"before": str(first.path)}, store=toy.store)
    apart = execute(toy.step, toy.config(rows=3), {}, store=toy.store)
    outcomes = {"first": first, "second": second, "apart": apart}
    for outcome in outcomes.values():
        age(outcome.path, 30)
    return outcomes


def age(path: Path, days: float) -> None:
    moment = path.stat().st_mtime - days * DAYS
    os.utime(path, (moment, moment))


def call(toy, tmp_path: Path, *arguments: str) -> int:
    runs = ["--runs", str(tmp_path / "runs")] if arguments[0] == "gc" else []
    return main(["--store", str(toy.store.root), *arguments, *runs])


def note_run(tmp_path: Path, name: str, *fingerprints: str, days: float = 0, summary: bool = False) -> None:
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    rows = [{"step": "toy", "fingerprint": fingerprint} for fingerprint in fingerprints]
    if summary:
        (folder / "summary.json").write_text(json.dumps({"steps": {row["fingerprint"]: row for row in rows}}))
    else:
        (folder / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    age(folder, days)


def left(three) -> set[str]:
    return {name for name, outcome in three.items() if outcome.path.exists()}


def test_gc_says_what_could_go_and_deletes_nothing(toy, three, tmp_path: Path, capsys) -> None:
    call(toy, tmp_path, "gc")
    said = capsys.readouterr().out
    assert left(three) == {"first", "second", "apart"}
    assert "9.0 MiB could go (nothing was deleted; add --delete)" in said
    assert all(outcome.fingerprint in said for outcome in three.values())


@pytest.mark.parametrize("summary", [False, True])
def test_gc_keeps_what_a_run_used_and_what_that_was_made_from(toy, three, tmp_path: Path, summary: bool) -> None:
    note_run(tmp_path, "latest", three["second"].fingerprint, summary=summary)
    call(toy, tmp_path, "gc", "--delete")
    assert left(three) == {"first", "second"}


def test_gc_keeps_the_last_runs_only(toy, three, tmp_path: Path) -> None:
    note_run(tmp_path, "old", three["apart"].fingerprint, days=2)
    note_run(tmp_path, "new", three["first"].fingerprint, days=1)
    assert used_by_runs(tmp_path / "runs", 1) == {three["first"].fingerprint}
    call(toy, tmp_path, "gc", "--delete", "--keep-runs", "1")
    assert left(three) == {"first"}


def test_gc_keeps_what_the_checkout_shows(toy, three, tmp_path: Path) -> None:
    execute(toy.step, toy.config(rows=3), {}, tmp_path / "artifacts" / "toy", store=toy.store)
    assert used_by_links(tmp_path / "artifacts") == {three["apart"].fingerprint}
    age(three["apart"].path, 30)
    call(toy, tmp_path, "gc", "--delete")
    assert left(three) == {"apart"}


def test_use_keeps_a_result_young(toy, three, tmp_path: Path) -> None:
    execute(toy.step, toy.config(rows=3), {}, store=toy.store)
    call(toy, tmp_path, "gc", "--delete")
    assert left(three) == {"apart"}
    call(toy, tmp_path, "gc", "--delete", "--older-than", "0")
    assert left(three) == set()


def test_gc_takes_old_unfinished_and_damaged_work_but_not_running_work(toy, three, tmp_path: Path) -> None:
    folder = toy.store.root / "toy"
    for name in ("old.partial", "young.partial", "running.partial", "x.damaged-1"):
        (folder / name).mkdir()
        (folder / name / "file").write_text("x")
    for name in ("old.partial", "running.partial"):
        age(folder / name, 30)
    from components.common.owner import try_claim

    with try_claim(folder / "running.owner"):
        call(toy, tmp_path, "gc", "--delete")
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"young.partial", "running.partial"}


def test_list_shows_every_result_and_its_size(toy, three, tmp_path: Path, capsys) -> None:
    call(toy, tmp_path, "list")
    said = capsys.readouterr().out
    assert all(outcome.fingerprint in said for outcome in three.values()) and said.count("3.0 MiB") == 3
    call(toy, tmp_path, "list", "--step", "other")
    assert three["first"].fingerprint not in capsys.readouterr().out


def test_check_names_the_damage_and_sets_it_aside_on_request(toy, three, tmp_path: Path, capsys) -> None:
    call(toy, tmp_path, "check")
    big = three["apart"].path / "big.bin"
    big.chmod(0o644)
    big.write_bytes(bytes((3 << 20) - 1) + b"x")
    with pytest.raises(UserError, match="1 of 3 results are damaged"):
        call(toy, tmp_path, "check")
    assert "big.bin was changed" in capsys.readouterr().out
    call(toy, tmp_path, "check", "--set-aside")
    assert left(three) == {"first", "second"}
    assert not execute(toy.step, toy.config(rows=3), {}, store=toy.store).reused


def test_the_command_answers() -> None:
    command = [sys.executable, "-m", "components.common.store", "gc", "--older", "x"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and "invalid float value" in done.stderr
