"""Typed, frozen settings, checked when they are loaded: errors name the key, the file and the nearest name."""

from __future__ import annotations

import difflib
import hashlib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from foundry.errors import UserError


class Settings(BaseModel):
    """Base of every settings class: immutable, no unknown keys, defaults validated too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)


S = TypeVar("S", bound=Settings)


def load_settings(cls: type[S], values: Mapping[str, Any], source: str) -> S:
    """Build ``cls`` from ``values`` read from ``source`` (a file or command-line name used in messages).

    Raises :class:`UserError` for an unknown key (naming the nearest valid one), a missing key or a wrong value.
    Whole numbers written as doubles (as KFP passes them) are accepted for integers.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(_explain(cls, error, source)) from None


def _explain(cls: type[BaseModel], error: ValidationError, source: str) -> str:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path) or "the document"
    if first["type"] == "extra_forbidden":
        return f"{source}: unknown setting '{key}'{_suggestion(cls, first['loc'])}"
    if first["type"] == "missing":
        return f"{source}: setting '{key}' is required"
    shown = repr(first.get("input"))
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    message = first["msg"].removeprefix("Value error, ")
    return f"{source}: setting '{key}' = {shown}: {message[0].lower()}{message[1:]}"


def _suggestion(cls: type[BaseModel], location: Sequence[int | str]) -> str:
    """'; did you mean ...' for an unknown key: nearest sibling first, then the same name elsewhere in the tree."""
    owner: Any = cls
    for part in location[:-1]:
        owner = _field_model(owner, part)
        if owner is None:
            return ""
    name = str(location[-1])
    siblings = list(owner.model_fields)
    near = difflib.get_close_matches(name, siblings, n=1, cutoff=0.55)
    prefix = "".join(f"{part}." for part in location[:-1])
    if near:
        return f"; did you mean '{prefix}{near[0]}'?"
    elsewhere = [path for path in setting_names(cls) if path.rsplit(".", 1)[-1] == name]
    if elsewhere:
        return f"; did you mean '{elsewhere[0]}'?"
    return f"; valid here: {', '.join(siblings)}"


def _field_model(owner: Any, part: int | str) -> type[BaseModel] | None:
    if not (isinstance(owner, type) and issubclass(owner, BaseModel)) or part not in owner.model_fields:
        return None
    return next(iter(_models_in(owner.model_fields[str(part)].annotation)), None)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, tuple, list, dict):
        return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]
    return []


def setting_names(cls: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted setting name of ``cls``, depth first."""
    names = []
    for name, field in cls.model_fields.items():
        names.append(prefix + name)
        for model in _models_in(field.annotation):
            names.extend(setting_names(model, f"{prefix}{name}."))
    return names


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises :class:`UserError` where it is missing, not YAML or not a mapping."""
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            document = yaml.safe_load(file)
    except FileNotFoundError:
        raise UserError(f"{path}: no such settings file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', None) or error})") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UserError(f"{path}: expected settings as 'name: value' lines, found a {type(document).__name__}")
    return document


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """``values`` with each ``a.b=c`` of ``overrides`` set (``c`` read as YAML). The input is not changed.

    Names are checked afterwards by :func:`load_settings`; here only the form is.
    """
    result = json.loads(json.dumps(values))
    for override in overrides:
        name, separator, text = override.partition("=")
        keys = name.strip().split(".")
        if not separator or not all(keys):
            raise UserError(f"--set {override}: write it as name.of.setting=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--set {override}: '{text}' is not a YAML value") from None
        node = result
        for key in keys[:-1]:
            child = node.get(key)
            if child is None:
                child = node[key] = {}
            elif not isinstance(child, dict):
                raise UserError(f"--set {override}: '{key}' is a value, it has no settings inside")
            node = child
        node[keys[-1]] = value
    return result


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it, mapping by mapping; lists and scalars are replaced whole."""
    result = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merge(result[key], value)
        else:
            result[key] = value
    return result


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no spaces. Pydantic models are dumped first."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest_of(value: Any) -> str:
    """sha256 hex digest of :func:`canonical_json`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
