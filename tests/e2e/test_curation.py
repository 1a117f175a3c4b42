"""One dataset, whoever asks for it: the command line, `dvc repro` and kfp.local, each with a step store of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.checkout import make_checkout

pytestmark = pytest.mark.timeout(600)
OTHERS = ("evaluation", "backbone", "embeddings", "seeds", "raw", "previous")
"""Inputs of curation beside the pool."""
KFP = f"""
import sys
from kfp import local
from components.curation.component import curate
local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[2], enable_caching=False)
task = curate(
    config={{"decode": {{"workers": 4}}}}, pool=sys.argv[1], **dict.fromkeys({OTHERS!r}, "none")
)
print("\\nresult", task.outputs["dataset"].path)
"""


def test_the_dataset_is_the_same_from_the_command_line_dvc_and_kfp(pool: Path, tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "checkout", {"images": str(pool), "evaluation": "none"})
    folder, scripts = checkout.folder, str(Path(sys.executable).parent)

    def variables(name: str) -> dict[str, str]:
        path = os.pathsep.join([scripts, checkout.environment["PATH"]])
        return {"FOUNDRY_HOME": str(tmp_path / name), "PATH": path, "PYTHONPATH": str(folder)}

    done = checkout.python(
        *("components.curation", "--set", "curation.decode.workers=1", "--input", f"pool={pool}"),
        *("--output", "by-command"),
        **variables("command"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    done = checkout.python("dvc", "repro", "curation", **variables("dvc"))
    assert done.returncode == 0, done.stdout + done.stderr
    program = tmp_path / "program.py"
    program.write_text(KFP)
    done = subprocess.run(
        [sys.executable, program, pool, tmp_path / "root"],
        cwd=folder,
        env={**checkout.environment, **variables("kfp")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (by_kfp,) = (line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.startswith("result "))

    results = [folder / "by-command", folder / "artifacts" / "curation", Path(by_kfp)]
    digests = [json.loads((result / "dataset.json").read_text())["digests"] for result in results]
    assert digests[0] == digests[1] == digests[2]
    for name in ("samples.parquet", "rejected.parquet", "shards/shard-000000.tar"):
        first, *others = (result / name for result in results)
        assert all(other.read_bytes() == first.read_bytes() for other in others), name
    assert len({result.resolve() for result in results}) == 3
