from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from components.common.execution import execute
from components.common.manifest import find_damage, read_manifest
from components.common.owner import STALE_SECONDS, is_working, try_claim
from components.common.store import Store
from foundry.errors import UserError
from foundry.settings import digest_of
from foundry.storage import sha256_of_file


def wait_until_open(process: subprocess.Popen[str], fifo: Path):
    """Blocks until ``process`` reads from ``fifo``; the returned file lets it go on when closed."""
    return fifo.open("w")


def test_a_result_is_named_by_its_manifest_and_cannot_be_written(toy) -> None:
    outcome = execute(toy.step, toy.config(), {}, store=toy.store)
    manifest = read_manifest(outcome.path)
    document = json.loads((outcome.path / "manifest.json").read_text())
    files = {row.path: (row.size, row.sha256) for row in manifest.files}
    actual = {
        path.relative_to(outcome.path).as_posix(): (path.stat().st_size, sha256_of_file(path))
        for path in outcome.path.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert files == actual and set(files) == {"big.bin", "first.txt", "part/table.txt", "logs/clock.txt"}
    assert document["schema"] == 1 and document["step"] == "toy" and document["metrics"]["rows"] == 3
    # The clock is in the manifest, but does not name the content.
    assert manifest.digest == digest_of(sorted([p, s] for p, (_, s) in files.items() if not p.startswith("logs/")))
    assert all(path.stat().st_mode & 0o222 == 0 for path in outcome.path.rglob("*") if path.is_file())
    assert outcome.path == toy.store.root / "toy" / outcome.fingerprint


@pytest.mark.parametrize(
    ("name", "change", "thorough"),
    [
        ("part/table.txt", None, False),
        ("part/table.txt", b"row 0\nrow 1\nrow X", False),  # same size: small files are hashed
        ("big.bin", b"short", False),
        ("big.bin", bytes((3 << 20) - 1) + b"x", True),  # same size, large: found by a thorough check only
    ],
)
def test_damage_is_found(toy, name: str, change: bytes | None, thorough: bool) -> None:
    outcome = execute(toy.step, toy.config(), {}, store=toy.store)
    manifest = read_manifest(outcome.path)
    assert find_damage(outcome.path, manifest, thorough=True) is None
    path = outcome.path / name
    path.chmod(0o644)
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change)
    assert name in find_damage(outcome.path, manifest, thorough=True)
    assert (find_damage(outcome.path, manifest) is None) == thorough


def test_a_damaged_result_is_set_aside_and_made_again(toy, capsys) -> None:
    first = execute(toy.step, toy.config(), {}, store=toy.store)
    (first.path / "part" / "table.txt").unlink()
    second = execute(toy.step, toy.config(), {}, store=toy.store)
    assert not second.reused and (second.path / "part" / "table.txt").is_file()
    assert second.digest == first.digest  # though its log differs
    assert "part/table.txt is missing" in capsys.readouterr().out
    assert [state for _, state in toy.store.leftovers()] == ["damaged"]


def test_a_folder_without_manifest_is_no_result(toy) -> None:
    outcome = execute(toy.step, toy.config(), {}, store=toy.store)
    (outcome.path / "manifest.json").unlink()
    assert toy.store.find("toy", outcome.fingerprint) is None
    assert [state for _, state in toy.store.leftovers()] == ["damaged"]
    assert not execute(toy.step, toy.config(), {}, store=toy.store).reused
    assert execute(toy.step, toy.config(), {}, store=toy.store).path == outcome.path


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not a readable"), ('{"schema": 2}', "schema 2"), ('{"schema": 1}', "not a valid"), ("[]", "schema None")],
)
def test_a_strange_manifest_is_one_line(toy, text: str, words: str) -> None:
    outcome = execute(toy.step, toy.config(), {}, store=toy.store)
    (outcome.path / "manifest.json").chmod(0o644)
    (outcome.path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=words):
        toy.store.find("toy", outcome.fingerprint)


def test_a_killed_owner_is_taken_over_and_its_work_continued(toy, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = toy.start(3, TOY_WAIT=str(fifo))
    with wait_until_open(process, fifo):
        (folder, state) = next(toy.store.leftovers())
        assert state == "running" and (folder / "first.txt").is_file()
        process.kill()
        process.communicate()
    assert [state for _, state in toy.store.leftovers()] == ["unfinished"]
    outcome = execute(toy.step, toy.config(rows=3), {}, store=toy.store)
    assert not outcome.reused and outcome.fingerprint == folder.stem
    assert toy.calls() == ["3 []", "3 ['first.txt', 'logs']"]  # the second call found what the first had left
    assert list(toy.store.leftovers()) == [] and not folder.with_suffix(".owner").exists()


def test_two_at_once_give_one_computation(toy, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    first = toy.start(3, TOY_WAIT=str(fifo))
    with wait_until_open(first, fifo):
        second = toy.start(3)
        line = second.stdout.readline()
        assert f"process {first.pid} on " in line and "waiting" in line
    said_first, _ = first.communicate(timeout=30)
    said_second, _ = second.communicate(timeout=30)
    assert "made " in said_first and "reused " in said_second
    assert len(toy.calls()) == 1


def test_a_waiter_takes_over_when_the_one_it_waits_for_dies(toy, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    first = toy.start(3, TOY_WAIT=str(fifo))
    with wait_until_open(first, fifo):
        second = toy.start(3)
        assert "waiting" in second.stdout.readline()
        first.kill()
        first.communicate()
    said, _ = second.communicate(timeout=30)
    assert "made " in said and len(toy.calls()) == 2


def test_a_failed_step_leaves_its_work_to_the_next(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_FAIL", "1")
    with pytest.raises(RuntimeError, match="the toy broke"):
        execute(toy.step, toy.config(), {}, store=toy.store)
    assert [state for _, state in toy.store.leftovers()] == ["unfinished"]
    monkeypatch.delenv("TOY_FAIL")
    assert not execute(toy.step, toy.config(), {}, store=toy.store).reused
    assert toy.calls()[1] == "3 ['first.txt', 'logs']"


def test_a_death_between_manifest_and_rename_costs_nothing(toy) -> None:
    outcome = execute(toy.step, toy.config(), {}, store=toy.store)
    outcome.path.rename(outcome.path.with_name(f"{outcome.fingerprint}.partial"))
    again = execute(toy.step, toy.config(), {}, store=toy.store)
    assert again.reused and again.path == outcome.path and len(toy.calls()) == 1


def test_a_half_written_folder_with_a_manifest_is_not_believed(toy) -> None:
    outcome = execute(toy.step, toy.config(), {}, store=toy.store)
    partial = outcome.path.with_name(f"{outcome.fingerprint}.partial")
    outcome.path.rename(partial)
    (partial / "big.bin").unlink()
    assert not execute(toy.step, toy.config(), {}, store=toy.store).reused


def test_an_owner_elsewhere_counts_as_dead_without_a_heartbeat(tmp_path: Path) -> None:
    path = tmp_path / "x.owner"
    path.write_text(json.dumps({"process": "1:1", "machine": "another pid:[1]"}))
    assert is_working(path) and try_claim(path) is None
    long_ago = path.stat().st_mtime - STALE_SECONDS - 1
    os.utime(path, (long_ago, long_ago))
    assert not is_working(path)
    claim = try_claim(path)
    assert claim is not None and try_claim(path) is None
    with claim:
        pass
    assert not path.exists()


def test_the_store_must_be_local() -> None:
    with pytest.raises(UserError, match="s3://bucket/store"):
        Store("s3://bucket/store")


def mounted(options: str, prepare: str, command: list[str], folder: Path, environment: dict[str, str]):
    """Run ``command`` in a mount namespace in which ``folder`` is a tmpfs with ``options``."""
    own = ["--user", "--map-root-user"] if os.getuid() else []
    script = f'mount -t tmpfs tmpfs "{folder}" && {prepare} && mount -o remount,{options} "{folder}" && exec "$@"'
    probe = subprocess.run(
        ["unshare", "--mount", *own, "sh", "-c", f'mount -t tmpfs tmpfs "{folder}"'], capture_output=True
    )
    if probe.returncode:
        pytest.skip("no right to mount a small file system here")
    return subprocess.run(
        ["unshare", "--mount", *own, "sh", "-c", script, "sh", *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(("options", "words"), [("size=2m", "disk is full"), ("ro", "read-only")])
def test_a_full_or_read_only_disk_is_one_line(toy, tmp_path: Path, options: str, words: str) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = toy.command(3, store=folder / "store")
    done = mounted(options, "true", command, folder, toy.environment())
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert words in done.stderr and "FOUNDRY_HOME" in done.stderr


def test_a_result_in_a_read_only_store_is_reused(toy, tmp_path: Path) -> None:
    execute(toy.step, toy.config(rows=2), {}, store=toy.store)
    folder = tmp_path / "disk"
    folder.mkdir()
    command = toy.command(2, destination=tmp_path / "shown", store=folder / "store")
    prepare = f'cp -r "{toy.store.root}" "{folder}/store"'
    done = mounted("ro", prepare, command, folder, toy.environment())
    assert done.returncode == 0, done.stderr
    assert "reused" in done.stdout
    assert (tmp_path / "shown" / "part" / "table.txt").read_text() == "row 0\nrow 1"
