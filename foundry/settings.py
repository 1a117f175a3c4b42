"""Typed, frozen settings, checked when they are loaded: errors name the key, the file and the nearest name."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
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
    for key, value in _truth_values_for_numbers(cls, values):
        raise UserError(f"{source}: setting '{key}' = {value}: expected a number, not true or false")
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(_explain(cls, error, source)) from None


def _truth_values_for_numbers(cls: type[BaseModel], values: Any, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Settings given as true or false where a number is wanted, which pydantic would take for 1 or 0."""
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if name not in cls.model_fields:
            continue
        annotation = cls.model_fields[name].annotation
        if isinstance(value, bool):
            wanted = _plain_types(annotation)
            if wanted & {int, float} and not wanted & {bool, Any}:
                yield prefix + name, value
        models = _models_in(annotation)
        if len(models) == 1:
            for place, part in _parts(value):
                yield from _truth_values_for_numbers(models[0], part, f"{prefix}{name}.{place}")


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """(path, mapping) of a value itself and of the members of a list or mapping."""
    yield "", value
    members = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, member in members:
        if isinstance(member, Mapping):
            yield f"{name}.", member


def _explain(cls: type[BaseModel], error: ValidationError, source: str) -> str:
    first = error.errors(include_url=False)[0]
    path, owners = _resolve(cls, first["loc"])
    key = ".".join(path) or "the document"
    if first["type"] == "extra_forbidden":
        return f"{source}: unknown setting '{key}'{_suggestion(cls, path, owners)}"
    if first["type"] == "missing":
        return f"{source}: setting '{key}' is required"
    shown = repr(first.get("input"))
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    message = first["msg"].removeprefix("Value error, ")
    return f"{source}: setting '{key}' = {shown}: {message[0].lower()}{message[1:]}"


def _resolve(cls: type[BaseModel], location: Sequence[int | str]) -> tuple[list[str], list[type[BaseModel]]]:
    """(names of a pydantic error location as a person writes them, the models its last part may belong to).

    Pydantic puts the names of union members and validators between the parts; those are left out.
    """
    path: list[str] = []
    owners: list[type[BaseModel]] = [cls]
    annotation: Any = None
    for index, part in enumerate(location):
        owner = next((model for model in owners if part in model.model_fields), None)
        last = index == len(location) - 1
        if owner is not None:
            path.append(str(part))
            annotation = owner.model_fields[str(part)].annotation
            if not last:
                owners = _models_in(annotation)
        elif isinstance(part, int) or _holds_mapping(annotation) or (last and (owners or index == 0)):
            path.append(str(part))
    return path, owners


def _suggestion(cls: type[BaseModel], path: list[str], owners: list[type[BaseModel]]) -> str:
    """'; did you mean ...' for an unknown key: nearest sibling first, then the same name elsewhere in the tree."""
    name = path[-1]
    siblings = list(dict.fromkeys(field for owner in owners for field in owner.model_fields))
    near = difflib.get_close_matches(name, siblings, n=1, cutoff=0.55)
    if near:
        return f"; did you mean '{'.'.join([*path[:-1], near[0]])}'?"
    elsewhere = [found for found in setting_names(cls) if found.rsplit(".", 1)[-1] == name]
    if elsewhere:
        return f"; did you mean '{elsewhere[0]}'?"
    return f"; valid here: {', '.join(siblings)}" if siblings else ""


_UNIONS = (typing.Union, types.UnionType, typing.Annotated)


def _plain_types(annotation: Any) -> set[Any]:
    """The alternatives of an annotation, without containers."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _plain_types(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in _UNIONS:
        return {kind for argument in typing.get_args(annotation) for kind in _plain_types(argument)}
    return {annotation}


def _holds_mapping(annotation: Any) -> bool:
    return any(typing.get_origin(kind) in (dict, Mapping) or kind is dict for kind in _plain_types(annotation))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (*_UNIONS, tuple, list, dict, Sequence, Mapping):
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


class _SettingsLoader(yaml.SafeLoader):
    """YAML in which a setting stands once: plain YAML keeps the last of two and drops the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is set twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises :class:`UserError` where it is missing, not YAML, not a mapping, or names a setting twice.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            document = yaml.load(file, Loader=_SettingsLoader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such settings file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, expected a settings file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
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
    result = copy.deepcopy(dict(values))
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
    """One text for equal values: sorted keys, no spaces. Pydantic models, wherever they stand, are dumped first."""

    def dumped(part: Any) -> Any:
        if isinstance(part, BaseModel):
            return part.model_dump(mode="json")
        raise TypeError(f"{type(part).__name__} has no canonical text")

    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=dumped)


def digest_of(value: Any) -> str:
    """sha256 hex digest of :func:`canonical_json`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
