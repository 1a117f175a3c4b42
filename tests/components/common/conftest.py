"""A small real step in a package of its own, so that its code can change and processes can run it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components.common.store import Store
from foundry.home import REPOSITORY

SOURCES = {
    "__init__.py": "",
    "table.py": """
        def rows_of(count):
            return [f"row {number}" for number in range(count)]
        """,
    "step.py": '''
        """A step that writes a table, and notes each time that it really works."""
        import os
        from components.common.step import InputSpec, Step
        from foundry.settings import Settings


        class ToyConfig(Settings):
            rows: int = 3
            """Rows of the table."""
            workers: int = 1
            """Never changes the result."""


        def run(config, inputs, output):
            from PACKAGE.table import rows_of
            with open(os.environ["TOY_CALLS"], "a") as calls:
                calls.write(f"{config.rows} {sorted(path.name for path in output.iterdir())}\\n")
            (output / "logs").mkdir(exist_ok=True)
            (output / "logs" / "clock.txt").write_text(str(os.times()))
            (output / "first.txt").write_text("first half")
            if fifo := os.environ.get("TOY_WAIT"):
                open(fifo).read()
            if os.environ.get("TOY_FAIL"):
                raise RuntimeError("the toy broke")
            (output / "part").mkdir(exist_ok=True)
            (output / "part" / "table.txt").write_text("\\n".join(rows_of(config.rows)))
            (output / "big.bin").write_bytes(bytes(3 << 20))
            source = inputs.get("source")
            if source:
                (output / "source.txt").write_text(source)
            return {"rows": config.rows, "nested": {"half": 0.5}}


        STEP = Step(
            name="toy",
            summary="Write a table.",
            config=ToyConfig,
            inputs=(
                InputSpec("source", "any folder", required=False, kind="url"),
                InputSpec("before", "a toy result", required=False),
                InputSpec("champion", "a plain text", required=False, kind="text"),
            ),
            run=run,
            code=("PACKAGE.step",),
            transient=("workers",),
            records=("logs/*",),
            tracked=False,
        )
        ''',
    "call.py": '''
        """Run the step as a process: ``python -m PACKAGE.call STORE ROWS [DESTINATION]``."""
        import sys
        from pathlib import Path
        from components.common.execution import execute
        from components.common.store import Store
        from foundry.errors import run_command
        from PACKAGE.step import STEP, ToyConfig


        def main(argv):
            destination = Path(argv[2]) if len(argv) > 2 else None
            outcome = execute(STEP, ToyConfig(rows=int(argv[1])), {}, destination, store=Store(argv[0]))
            print("reused" if outcome.reused else "made", outcome.fingerprint, outcome.path)


        sys.exit(run_command(main))
        ''',
}


@dataclass
class Toy:
    """The step, its sources, its store and what it noted."""

    package: str
    folder: Path
    store: Store
    calls_file: Path

    @property
    def step(self) -> Any:
        return importlib.import_module(f"{self.package}.step").STEP

    def config(self, **values: Any) -> Any:
        return self.step.config(**values)

    def calls(self) -> list[str]:
        """One entry for each time that the step really worked: its rows and the files that it found."""
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / self.package / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def command(self, rows: int, destination: Path | None = None, store: Path | None = None) -> list[str]:
        return [
            *(sys.executable, "-m", f"{self.package}.call", str(store or self.store.root), str(rows)),
            *([str(destination)] if destination else []),
        ]

    def environment(self, **more: str) -> dict[str, str]:
        path = os.pathsep.join([str(self.folder), str(REPOSITORY)])
        return {**os.environ, "PYTHONPATH": path, "TOY_CALLS": str(self.calls_file), **more}

    def start(self, rows: int, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(rows),
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_home: Path) -> Iterator[Toy]:
    """The toy step in a package that no other test shares, with an empty store."""
    package = f"toy_{os.getpid()}_{abs(hash(str(tmp_path)))}"
    folder = tmp_path / "sources"
    (folder / package).mkdir(parents=True)
    for name, source in SOURCES.items():
        (folder / package / name).write_text(textwrap.dedent(source).replace("PACKAGE", package))
    calls_file = tmp_path / "calls.txt"
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("TOY_CALLS", str(calls_file))
    importlib.invalidate_caches()
    yield Toy(package, folder, Store(tmp_path / "store"), calls_file)
    for name in [name for name in sys.modules if name.startswith(package)]:
        del sys.modules[name]
