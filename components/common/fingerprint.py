"""What names a pure result: digests of code, settings, inputs and environment, found without importing the step."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import subprocess
import types
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from components.common.step import Step
from foundry.errors import UserError
from foundry.home import REPOSITORY
from foundry.settings import Settings, digest_of

OWN_PACKAGES = ("components", "foundry", "pipelines", "serving", "training")
"""Import packages of this repository; others that a fingerprint follows are those a step names itself."""
FACES = ("__main__", "component")
"""Modules of a package that are a way in and not part of what it computes."""
DATA_SUFFIXES = (".html", ".css", ".js", ".svg", ".jinja", ".csv", ".json", ".txt")
"""Files beside the modules of a named package that count as code. YAML does not: presets and settings are in the
fingerprint resolved."""


def fingerprint_of(
    step: Step, config: Settings, input_digests: Mapping[str, str], code: str, environment: Mapping[str, Any]
) -> str:
    """The name of the result (32 hex digits) that ``step`` gives for these settings and inputs."""
    return digest_of(
        {
            "schema": 1,
            "step": step.name,
            "code": code,
            "config": whole_numbers(lasting_settings(config, step.transient)),
            "inputs": dict(input_digests),
            "environment": whole_numbers(dict(environment)),
        }
    )[:32]


def whole_numbers(value: Any) -> Any:
    """``value`` with every whole double in it as an integer: KFP knows doubles only, YAML and Python both kinds.

    Settings with a type are the same either way; this is for what stands in free mappings (a recipe's overrides).
    """
    if isinstance(value, Mapping):
        return {key: whole_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def lasting_settings(config: Settings, transient: Iterable[str]) -> dict[str, Any]:
    """The resolved settings without the ``transient`` ones (dotted names)."""
    values = config.model_dump(mode="json")
    for name in transient:
        *parents, last = name.split(".")
        node: Any = values
        for key in parents:
            node = node.get(key) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            raise ValueError(f"transient setting '{name}' is not a setting of {type(config).__name__}")
        del node[last]
    return values


def code_digest(names: Iterable[str]) -> str:
    """sha256 over the source of the modules (or packages) ``names`` and of all they import from this repository.

    Imports are followed by reading (``ast``), function bodies included. Comments, layout and docstrings do not count.
    """
    return digest_of(sorted((name, _digest_of_source(path)) for name, path in reachable_sources(names).items()))


def reachable_sources(names: Iterable[str]) -> dict[str, Path]:
    """{name: source file} of the modules ``names`` and of everything they import from the same top-level packages.

    Of a package, data files count as well (under the name ``package/relative/path``).
    """
    names = tuple(names)
    tops = {name.partition(".")[0] for name in (*OWN_PACKAGES, *names)}
    roots = {top: root for top in tops if (root := _root_of(top)) is not None}
    found: dict[str, Path] = {}
    waiting: list[str] = []
    for name in names:
        root = roots.get(name.partition(".")[0])
        base = root.joinpath(*name.split(".")) if root else None
        if base is not None and base.is_dir():
            waiting += _modules_below(name, base)
            found.update(_data_below(name, base))
        elif base is not None and base.with_suffix(".py").is_file():
            waiting.append(name)
        else:
            raise UserError(f"the code '{name}' of a step's fingerprint cannot be found")
    while waiting:
        name = waiting.pop()
        path = _locate(name, roots)
        if name in found or path is None:
            continue
        found[name] = path
        waiting += [parent for parent in [name.rpartition(".")[0]] if parent]
        waiting += _imports_of(name, path)
    return found


def _root_of(package: str) -> Path | None:
    """The folder that holds the top-level ``package``."""
    if (REPOSITORY / package).is_dir():
        return REPOSITORY
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent.parent if spec.submodule_search_locations else Path(spec.origin).parent


def _locate(name: str, roots: Mapping[str, Path]) -> Path | None:
    """The source file of module ``name``, or None where it is no module of a known package."""
    root = roots.get(name.partition(".")[0])
    if root is None:
        return None
    base = root.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _modules_below(package: str, folder: Path) -> list[str]:
    names = [package]
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts[-1] not in FACES:
            names.append(".".join([package, *(parts[:-1] if parts[-1] == "__init__" else parts)]))
    return names


def _data_below(package: str, folder: Path) -> dict[str, Path]:
    return {
        f"{package}/{path.relative_to(folder).as_posix()}": path
        for path in sorted(folder.rglob("*"))
        if path.suffix in DATA_SUFFIXES and path.is_file() and "__pycache__" not in path.parts
    }


@lru_cache(maxsize=4096)
def _parse(path: Path, size: int, modified: int) -> ast.Module:
    """The syntax tree without docstrings and layout (each node on line 1)."""
    tree = ast.parse(path.read_bytes(), filename=path.name)
    start = {"lineno": 1, "col_offset": 0, "end_lineno": 1, "end_col_offset": 0}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [child for child in node.body if not _is_text(child)] or [ast.Pass(**start)]
        if "lineno" in node._attributes:
            node.__dict__.update(start)
    return tree


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _tree(path: Path) -> ast.Module:
    status = path.stat()
    return _parse(path, status.st_size, status.st_mtime_ns)


def _imports_of(name: str, path: Path) -> list[str]:
    """Names that may be modules among those that ``name`` imports (of ``from a import b``: ``a`` and ``a.b``)."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imported = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            imported += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return imported


def _digest_of_source(path: Path) -> str:
    if path.suffix != ".py":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    compiled = compile(_tree(path), path.name, "exec", dont_inherit=True)
    return hashlib.sha256(repr(_structure(compiled)).encode()).hexdigest()


def _structure(value: Any) -> Any:
    """A compiled code object as nested tuples without line numbers and file names."""
    if isinstance(value, types.CodeType):
        return (
            value.co_name,
            value.co_argcount,
            value.co_posonlyargcount,
            value.co_kwonlyargcount,
            value.co_flags,
            value.co_code,
            value.co_names,
            value.co_varnames,
            value.co_freevars,
            value.co_cellvars,
            getattr(value, "co_exceptiontable", b""),
            tuple(_structure(constant) for constant in value.co_consts),
        )
    if isinstance(value, frozenset):  # its order changes from process to process
        return ("frozenset", tuple(sorted(repr(_structure(item)) for item in value)))
    if isinstance(value, tuple):
        return ("tuple", tuple(_structure(item) for item in value))
    return (type(value).__name__, repr(value))


def git_facts() -> dict[str, str | None]:
    """{'commit', 'dirty_digest'} of the checkout this code runs from; reads only.

    ``commit`` is None outside a checkout (in an image: FOUNDRY_COMMIT, written at build). ``dirty_digest`` is None
    for a clean tree, else the sha256 over the differences to the commit and the untracked files.
    """

    def git(*arguments: str) -> bytes:
        command = ["git", "-C", str(REPOSITORY), "--no-optional-locks", *arguments]
        return subprocess.run(command, check=True, capture_output=True).stdout

    try:
        commit = git("rev-parse", "HEAD").decode().strip()
        state = hashlib.sha256(git("diff", "HEAD", "--binary", "--no-ext-diff"))
        changed = bool(git("status", "--porcelain").strip())
        for name in git("ls-files", "--others", "--exclude-standard", "-z").split(b"\0"):
            path = REPOSITORY / name.decode("utf-8", "surrogateescape")
            if name and path.is_file():
                state.update(name + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        return {"commit": commit, "dirty_digest": state.hexdigest() if changed else None}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": os.environ.get("FOUNDRY_COMMIT"), "dirty_digest": None}
