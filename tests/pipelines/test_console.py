"""The console lets through what steps print, and keeps everything in the log: tried on what kfp.local really prints."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.console import Console, showing_steps

PROGRAM = """
import sys, io, warnings
warnings.simplefilter("ignore")
from kfp import dsl, local
from pipelines.console import Console, showing_steps

@dsl.component(base_image="x/python", install_kfp_package=False)
def first(config: dict, text: str, made: dsl.Output[dsl.Dataset]):
    import sys
    print("first: 3/7 images")
    print('{"looks": "like json"}')
    print("    indented")
    print("}")
    print("to stderr", file=sys.stderr)
    open(made.path, "w").write(text)

@dsl.component(base_image="x/python", install_kfp_package=False)
def second(made: dsl.Input[dsl.Dataset], fail: bool):
    import sys
    print("second reads", open(made.path).read())
    if fail:
        print("error: it is not there", file=sys.stderr)
        raise SystemExit(2)

@dsl.pipeline
def both(fail: bool = False):
    made = first(config={"a": {"b": [1, 2]}}, text="hello")
    second(made=made.outputs["made"], fail=fail)

fail, reported = sys.argv[1] == "fail", sys.argv[2] == "reported"
local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[3])
with open(sys.argv[4], "w") as log:
    console = Console(sys.stdout, log, {"first": "First", "second": "Second"}, lambda line: reported)
    try:
        with showing_steps(console):
            both(fail=fail)
    except RuntimeError:
        print("failed in", console.task)
print("after")
"""


def run(tmp_path: Path, how: str, reported: str = "no") -> tuple[list[str], str]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    arguments = [sys.executable, str(program), how, reported, str(tmp_path / "root"), str(tmp_path / "log")]
    repository = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        arguments, capture_output=True, text=True, env={**__import__("os").environ, "PYTHONPATH": str(repository)}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), (tmp_path / "log").read_text()


def test_a_run_shows_headings_and_the_lines_of_steps(tmp_path: Path) -> None:
    lines, log = run(tmp_path, "well")
    lines = [line.split("  (at ")[0] for line in lines]
    assert lines == [
        "[1/2] First",
        "  first: 3/7 images",
        '  {"looks": "like json"}',
        "      indented",
        "  }",
        "  to stderr",
        "[2/2] Second",
        "  second reads hello",
        "after",
    ]
    assert "Got executor_input" in log and "\x1b" not in log
    assert "first: 3/7 images" in log


@pytest.mark.parametrize(("reported", "shown"), [("no", True), ("reported", False)])
def test_an_error_line_is_shown_unless_it_is_told_elsewhere(tmp_path: Path, reported: str, shown: bool) -> None:
    lines, log = run(tmp_path, "fail", reported)
    assert ("  error: it is not there" in lines) is shown
    assert "error: it is not there" in log
    assert lines[-2:] == ["failed in second", "after"]


def test_a_text_may_arrive_in_pieces() -> None:
    terminal, log = io.StringIO(), io.StringIO()
    with showing_steps(Console(terminal, log, {"a": "A"})):
        for piece in (
            "12:00:00.000 - INFO - Executing ta",
            "sk 'a'\n12:00:00.000 - INFO - Streamed logs:\n\n  ",
            "  on",
        ):
            print(piece, end="")
        print("e\n    two", end="")
    assert terminal.getvalue().splitlines()[1:] == ["  one", "  two"]
    assert log.getvalue().endswith("    one\n    two\n")


def test_json_of_the_executor_is_kept_in_the_log(tmp_path: Path) -> None:
    _, log = run(tmp_path, "well")
    block = log.split("Got executor_input:\n")[1].split("\n    }\n")[0] + "\n}"
    assert json.loads(block)["inputs"]["parameterValues"]["text"] == "hello"
