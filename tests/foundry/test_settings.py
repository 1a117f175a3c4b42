from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from foundry.errors import UserError
from foundry.settings import (
    Settings,
    apply_overrides,
    canonical_json,
    digest_of,
    load_settings,
    merge,
    read_yaml,
    setting_names,
)


class Optimiser(Settings):
    learning_rate: float = 1e-3
    """Peak."""
    betas: tuple[float, float] = (0.9, 0.999)


class Sgd(Settings):
    kind: Literal["sgd"]
    momentum: float = 0.9


class Adam(Settings):
    kind: Literal["adam"]
    epsilon: float = 1e-8


class Student(Settings):
    name: str
    depth: Annotated[int, Field(ge=1)] = 12


class Recipe(Settings):
    steps: int = 100
    batch: int | None = None
    share: float = 0.5
    compile: bool = False
    either: bool | int = 3
    limit: int | Literal["none"] = "none"
    optimiser: Optimiser = Optimiser()
    students: tuple[Student, ...] = ()
    named: dict[str, Student] = {}
    solver: Annotated[Sgd | Adam, Field(discriminator="kind")] | None = None


def message(values: dict[str, Any], cls: type[Settings] = Recipe) -> str:
    with pytest.raises(UserError) as caught:
        load_settings(cls, values, "params.yaml")
    text = str(caught.value)
    assert text.startswith("params.yaml: ") and "\n" not in text
    return text


def test_defaults_and_values() -> None:
    recipe = load_settings(Recipe, {"steps": 7, "optimiser": {"learning_rate": 2}}, "x")
    assert recipe.steps == 7 and recipe.optimiser.learning_rate == 2.0
    assert recipe.optimiser.betas == (0.9, 0.999)
    with pytest.raises(ValidationError):
        recipe.steps = 8  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"stesp": 1}, "unknown setting 'stesp'; did you mean 'steps'?"),
        ({"optimiser": {"learnig_rate": 1}}, "'optimiser.learnig_rate'; did you mean 'optimiser.learning_rate'?"),
        ({"learning_rate": 1}, "unknown setting 'learning_rate'; did you mean 'optimiser.learning_rate'?"),
        ({"optimiser": {"zzz": 1}}, "unknown setting 'optimiser.zzz'; valid here: learning_rate, betas"),
        (
            {"students": [{"name": "a"}, {"name": "b", "dept": 3}]},
            "'students.1.dept'; did you mean 'students.1.depth'?",
        ),
        ({"named": {"small": {"name": "a", "dept": 3}}}, "'named.small.dept'; did you mean 'named.small.depth'?"),
        ({"solver": {"kind": "adam", "epsilom": 1}}, "'solver.epsilom'; did you mean 'solver.epsilon'?"),
    ],
)
def test_an_unknown_key_names_the_nearest(values: dict[str, Any], words: str) -> None:
    assert words in message(values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": "many"}, "setting 'steps' = 'many': input should be a valid integer"),
        ({"steps": 2.5}, "setting 'steps' = 2.5"),
        ({"steps": None}, "setting 'steps' = None"),
        ({"steps": [1]}, "setting 'steps' = [1]"),
        ({"steps": True}, "setting 'steps' = True: expected a number, not true or false"),
        ({"share": False}, "setting 'share' = False: expected a number"),
        ({"batch": True}, "setting 'batch' = True: expected a number"),
        ({"optimiser": {"learning_rate": True}}, "setting 'optimiser.learning_rate' = True: expected a number"),
        ({"students": [{"name": "a", "depth": True}]}, "setting 'students.0.depth' = True: expected a number"),
        ({"named": {"x": {"name": "a", "depth": False}}}, "setting 'named.x.depth' = False: expected a number"),
        ({"compile": "perhaps"}, "setting 'compile' = 'perhaps'"),
        ({"optimiser": 3}, "setting 'optimiser' = 3"),
        ({"optimiser": {"betas": [0.9]}}, "setting 'optimiser.betas.1' is required"),
        ({"limit": "some"}, "setting 'limit' = 'some'"),
        ({"students": [{"depth": 3}]}, "setting 'students.0.name' is required"),
        ({"students": [{"name": "a", "depth": 0}]}, "setting 'students.0.depth' = 0: input should be greater"),
        ({"steps": "x" * 500}, "..."),
    ],
)
def test_a_wrong_value_names_its_key(values: dict[str, Any], words: str) -> None:
    text = message(values)
    assert words in text and len(text) < 250


def test_whole_doubles_are_integers() -> None:
    recipe = load_settings(Recipe, {"steps": 12.0, "batch": 64.0}, "kfp")
    assert (recipe.steps, recipe.batch) == (12, 64) and isinstance(recipe.steps, int)
    assert load_settings(Recipe, {"share": "1e-3"}, "x").share == 0.001  # YAML 1.1 reads 1e-3 as text
    assert load_settings(Recipe, {"either": True}, "x").either is True


def test_setting_names_go_into_every_container() -> None:
    names = setting_names(Recipe)
    assert names[0] == "steps"
    assert {"optimiser.betas", "students.depth", "named.name", "solver.momentum", "solver.epsilon"} <= set(names)


def test_overrides() -> None:
    values = {"a": {"b": 1, "day": datetime.date(2026, 1, 2)}, "c": None}
    result = apply_overrides(values, ["a.b=2", "a.x.y=[1, 2]", "c.d=true", "e='1'", "f=", "g=a=b"])
    assert result["a"] == {"b": 2, "day": datetime.date(2026, 1, 2), "x": {"y": [1, 2]}}
    assert result["c"] == {"d": True} and result["e"] == "1" and result["f"] is None and result["g"] == "a=b"
    assert values == {"a": {"b": 1, "day": datetime.date(2026, 1, 2)}, "c": None}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("steps", "write it as name.of.setting=value"),
        ("=3", "write it as"),
        ("a..b=3", "write it as"),
        ("steps.x=3", "'steps' is a value, it has no settings inside"),
        ("steps=[1", "is not a YAML value"),
        ("steps=!!python/object:os.system {}", "is not a YAML value"),
    ],
)
def test_overrides_that_are_no_overrides(override: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        apply_overrides({"steps": 1}, [override])
    assert f"--set {override}" in str(caught.value) and words in str(caught.value)


def test_an_override_of_an_unknown_name_is_found_on_load() -> None:
    assert "did you mean 'optimiser.learning_rate'?" in message(apply_overrides({}, ["optimiser.learning_rat=1"]))


def test_read_yaml(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a:\n  b: 1  # Größe\n", encoding="utf-8")
    assert read_yaml(path) == {"a": {"b": 1}}
    path.write_text("")
    assert read_yaml(str(path)) == {}
    path.write_text("base: &base {a: 1, b: 2}\nother: {<<: *base, b: 3}\n")
    assert read_yaml(path)["other"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [1\nb: 2\n", "line 2: not valid YAML"),
        (b"- 1\n- 2\n", "expected settings as 'name: value' lines, found a list"),
        (b"words\n", "found a str"),
        (b"\xff\xd8\xff\xe0", "not a text file in UTF-8"),
        (b"a: 1\nb: {c: 1, c: 2}\n", "line 2: not valid YAML ('c' is set twice)"),
        (b"a: 1\na: 2\n", "'a' is set twice"),
        (b"a: !!python/name:os.system\n", "not valid YAML"),
        (b"a: \x07\n", "not valid YAML"),
    ],
)
def test_read_yaml_of_something_else(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(str(path)) and words in str(caught.value)


def test_read_yaml_of_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such settings file"):
        read_yaml(tmp_path / "params.yaml")
    with pytest.raises(UserError, match="is a folder"):
        read_yaml(tmp_path)


def test_merge_lays_mappings_over_one_another() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 4}
    assert merge(base, {"a": {"c": [3]}, "d": {"e": 5}, "f": 6}) == {
        "a": {"b": 1, "c": [3]},
        "d": {"e": 5},
        "f": 6,
    }
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 4}


def test_canonical_text_is_one_for_equal_values() -> None:
    first = load_settings(Recipe, {"share": 1, "students": [{"depth": 2, "name": "ü"}]}, "x")
    second = load_settings(Recipe, {"students": [{"name": "ü", "depth": 2.0}], "share": 1.0}, "x")
    assert canonical_json(first) == canonical_json(second)
    assert canonical_json({"b": [first], "a": 1}) == canonical_json({"a": 1, "b": [second]})
    assert canonical_json({"b": 1, "a": "ü"}) == '{"a":"\\u00fc","b":1}'
    with pytest.raises(TypeError):
        canonical_json({"a": object()})


def test_digest_is_a_known_value() -> None:
    # printf '{"a":1,"b":[true,null]}' | sha256sum
    assert digest_of({"b": [True, None], "a": 1}) == "1cc69c7fa23616ca2ec3ee70d24390a6225c8832db8a4c814c7e0e7f942f8668"
