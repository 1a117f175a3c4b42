"""The audit log: whole lines from many writers, and readable after a machine stopped in the middle of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from components.deployment.audit import AuditLog, Entry
from tests.conftest import REPOSITORY


def entry(what: str, model: str = "m") -> Entry:
    return Entry("2026-11-20T10:00:00Z", "me", what, model, 1, "done", "because ä\n\u2028second line", {"seconds": 1.5})


def test_lines_come_back_as_they_were_and_a_torn_one_is_passed_over(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "folder" / "audit.jsonl")
    assert log.entries() == []
    log.append(entry("publish"))
    with log.path.open("ab") as file:
        file.write(b'{"when": "2026-11')
    log.append(entry("refuse", "other"))
    assert log.entries() == [entry("publish"), entry("refuse", "other")]
    assert log.entries("other") == [entry("refuse", "other")]


def test_several_processes_write_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    program = f"""
import sys
from pathlib import Path
from components.deployment.audit import AuditLog, Entry
for number in range(50):
    AuditLog(Path({str(path)!r})).append(
        Entry("then", sys.argv[1], str(number), "m", 1, "done", "x" * 20_000, {{}}))
"""
    writers = [subprocess.Popen([sys.executable, "-c", program, name], cwd=REPOSITORY) for name in "abc"]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for name in "abc":
        assert [row["what"] for row in rows if row["who"] == name] == [str(number) for number in range(50)]
