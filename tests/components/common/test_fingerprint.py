from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from components.common import fingerprint
from components.common.fingerprint import code_digest, fingerprint_of, git_facts, lasting_settings, reachable_sources
from foundry.errors import UserError


def test_imports_are_followed_and_nothing_else_is_read(toy) -> None:
    found = reachable_sources([f"{toy.package}.step"])
    names = {name.removeprefix(f"{toy.package}.") for name in found}
    assert {"step", "table", toy.package, "components.common.step", "foundry.settings", "foundry.errors"} <= names
    assert "call" not in names and not any("execution" in name or "pipelines" in name for name in names)


@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("from . import table", "table"),
        ("from .table import rows_of", "table"),
        ("from .sub.deep import x", "sub.deep"),
        ("def f():\n    import PACKAGE.sub.deep", "sub.deep"),
        ("from PACKAGE.sub import deep as other", "sub.deep"),
        ("from PACKAGE import sub", "sub"),
    ],
)
def test_every_way_to_import_is_seen(toy, line: str, module: str) -> None:
    package = toy.folder / toy.package
    (package / "sub").mkdir()
    (package / "sub" / "__init__.py").write_text("from ..table import rows_of\n")
    (package / "sub" / "deep.py").write_text("x = 1\n")
    (package / "start.py").write_text(line.replace("PACKAGE", toy.package) + "\n")
    found = reachable_sources([f"{toy.package}.start"])
    assert f"{toy.package}.{module}" in found
    assert f"{toy.package}.table" in found  # through sub/__init__, too


def test_comments_layout_and_docstrings_do_not_count_but_code_does(toy) -> None:
    names = [f"{toy.package}.step"]
    before = code_digest(names)
    toy.edit("table.py", "def rows_of(count):", '# a comment\n\n\ndef rows_of(count):\n    """Said."""\n')
    assert code_digest(names) == before
    toy.edit("table.py", "row {", "line {")
    assert code_digest(names) != before


def test_a_named_package_counts_whole_with_its_data_but_without_its_faces(toy) -> None:
    package = toy.folder / toy.package
    (package / "unused.py").write_text("x = 1\n")
    (package / "page.html").write_text("<p>")
    (package / "__main__.py").write_text("import PACKAGE.call\n".replace("PACKAGE", toy.package))
    (package / "preset.yaml").write_text("a: 1\n")
    found = {name.removeprefix(toy.package) for name in reachable_sources([toy.package])}
    assert {".unused", "/page.html", ".step"} <= found
    assert not any("__main__" in name or "yaml" in name for name in found)
    before = code_digest([toy.package])
    (package / "page.html").write_text("<b>")
    assert code_digest([toy.package]) != before


def test_a_frozenset_in_code_has_one_digest_in_every_process(toy) -> None:
    (toy.folder / toy.package / "sets.py").write_text('def f(x):\n    return x in {"a", "b", "cc", "ddd", "eeee"}\n')
    script = f"from components.common.fingerprint import code_digest; print(code_digest(['{toy.package}.sets']))"
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=toy.environment(PYTHONHASHSEED=str(seed)),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(3)
    }
    assert len(digests) == 1


def test_each_part_changes_the_fingerprint_and_transient_settings_do_not(toy) -> None:
    def of(rows=3, workers=1, inputs=(("a", "1"),), code="c", environment=(("device", "cpu"),)):
        config = toy.config(rows=rows, workers=workers)
        return fingerprint_of(toy.step, config, dict(inputs), code, dict(environment))

    base = of()
    assert of(workers=8) == base
    changed = [of(rows=4), of(inputs=(("a", "2"),)), of(inputs=()), of(code="d"), of(environment=(("device", "cuda"),))]
    assert len({base, *changed}) == 6


def test_a_transient_name_that_is_no_setting_is_a_mistake_of_the_program(toy) -> None:
    with pytest.raises(ValueError, match="worker"):
        lasting_settings(toy.config(), ["worker"])


def test_unknown_code_is_named(toy) -> None:
    with pytest.raises(UserError, match="no_such_module"):
        code_digest([f"{toy.package}.no_such_module"])


def test_git_facts_follow_the_working_tree_and_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(fingerprint, "REPOSITORY", tmp_path)
    assert git_facts() == {"commit": None, "dirty_digest": None}
    git("init", "-q")
    (tmp_path / "a.txt").write_text("one")
    git("add", "a.txt")
    git("commit", "-q", "-m", "first")
    clean = git_facts()
    assert clean == {"commit": git("rev-parse", "HEAD"), "dirty_digest": None}
    (tmp_path / "a.txt").write_text("two")
    changed = git_facts()
    (tmp_path / "new.txt").write_text("untracked")
    both = git_facts()
    assert changed["commit"] == clean["commit"]
    assert len({clean["dirty_digest"], changed["dirty_digest"], both["dirty_digest"]}) == 3
    assert git("status", "--porcelain").split() == ["M", "a.txt", "??", "new.txt"]


def test_a_whole_double_in_a_free_mapping_names_the_same_result(toy) -> None:
    """KFP hands every number over as a double; YAML and people write integers."""
    assert fingerprint.whole_numbers({"a": [1.0, {"b": 2.5, "c": True}], "d": "1.0"}) == {
        "a": [1, {"b": 2.5, "c": True}],
        "d": "1.0",
    }
    assert [type(value) for value in fingerprint.whole_numbers([64.0, 0.5, 3])] == [int, float, int]
