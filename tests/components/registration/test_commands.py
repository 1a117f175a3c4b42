import json
import subprocess
import sys
from pathlib import Path

import pytest

from components.registration.commands import run_registry_command
from components.registration.registry import ModelRegistry

REPOSITORY = Path(__file__).resolve().parents[3]
REFUSED = (
    "k-NN top-1 (36.2 %) against the champion's 43.0 %: 6.8 points worse, with 95 % certainty at most 9.6 points worse "
    "on 400 images; 5.0 points worse is allowed, 4.6 points too little (gate non_inferior_knn_top1)"
)


@pytest.fixture(scope="module")
def model():
    client = ModelRegistry().client
    client.create_registered_model("commands-vit")
    for number in (1, 2):
        tags = {"foundry.verdict": "passed", "foundry.verdict_reasons": "[]"}
        if number == 2:
            tags = {"foundry.verdict": "failed", "foundry.verdict_reasons": json.dumps([REFUSED])}
        client.create_model_version("commands-vit", f"/nowhere/{number}", tags=tags)
    client.set_registered_model_alias("commands-vit", "challenger", 2)
    return "commands-vit"


def run(capfd, *arguments):
    status = run_registry_command(list(arguments))
    out, err = capfd.readouterr()
    return status, out, err


def test_promote_history_and_rollback(model, capfd):
    assert run(capfd, "history", model) == (0, f"{model}: no version was champion yet\n", "")
    status, out, _ = run(capfd, "promote", model, "1")
    assert status == 0 and "champion is version 1 (verdict passed)" in out
    for arguments in ((), ("--why", "it is twice as fast")):
        status, out, err = run(capfd, "promote", model, "challenger", *arguments)
        assert (status, out, len(err.splitlines())) == (2, "", 1)
        assert "version 2 failed its verdict" in err and REFUSED in err and "--anyway --why" in err
    status, out, err = run(capfd, "promote", model, "challenger", "--anyway")
    assert status == 2 and "--anyway needs the reason" in err and len(err.splitlines()) == 1
    status, out, _ = run(capfd, "promote", model, "challenger", "--anyway", "--why", "it is twice as fast")
    assert status == 0 and REFUSED in out and "before: version 1" in out
    assert "already" in run(capfd, "promote", model, "2")[1]
    status, out, _ = run(capfd, "rollback", model)
    assert status == 0 and "champion is version 1" in out
    lines = run(capfd, "history", model)[1].splitlines()
    assert lines[0].split() == ["when", "(UTC)", "champion", "before", "moved", "by", "verdict", "why"]
    assert [line.split()[2:] for line in lines[1:4]] == [
        ["1", "-", "promote", "passed", *"promoted by hand".split()],
        ["2", "1", "promote", "--anyway", "failed", *"it is twice as fast".split()],
        ["1", "2", "rollback", "passed", *"rolled back by hand".split()],
    ]
    assert lines[4] == f"version 2 was promoted in spite of its verdict: {REFUSED}" and len(lines) == 5
    rows = json.loads(run(capfd, "history", model, "--json")[1])
    assert [(row["version"], row["overruled"]) for row in rows] == [("1", ""), ("2", REFUSED), ("1", "")]


def test_errors_of_people_are_one_line_and_status_2(model, capfd, monkeypatch):
    for arguments, words in {
        ("promote", "commands-vitt", "1"): "did you mean 'commands-vit'",
        ("promote", "vit", "1"): "did you mean 'commands-vit'",
        ("promote", model, "7"): "no version '7'; there are: challenger",
        ("history", "absent"): "no such model",
    }.items():
        status, out, err = run(capfd, *arguments)
        assert (status, out, len(err.splitlines())) == (2, "", 1) and words in err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "/some/folder")
    assert run(capfd, "rollback", model)[0] == 2


def test_resolve_prints_champions(registered, capfd, tmp_path):
    status, out, err = run(capfd, "resolve", "--prefix", "shared", "--destination", str(tmp_path))
    assert (status, err) == (0, "")
    champions = json.loads(out)
    assert {name: row["version"] for name, row in champions.items()} == {"convnext": "1", "vit": "1"}
    assert all(Path(row["path"], "model.safetensors").is_file() for row in champions.values())
    inputs = registered[0]
    status, out, _ = run(capfd, "resolve", "vit", "--prefix", "shared", "--for", inputs["students"])
    assert (status, json.loads(out)) == (0, {})


def test_the_first_argument_decides_and_help_answers_without_heavy_imports():
    script = """
import runpy, sys
sys.argv[1:] = {}
try:
    runpy.run_module("components.registration", run_name="__main__")
finally:
    print(sorted({{"torch", "mlflow", "kfp", "pandas", "transformers"}} & set(sys.modules)))
"""
    for arguments, words in {
        ("--help",): "promote", ("promote", "--help"): "NAME VERSION", ("resolve", "--help"): "--destination",
    }.items():  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", script.format(list(arguments))], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert words in done.stdout and done.stdout.endswith("[]\n") and done.returncode == 0
