from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from components.common.params import InputsConfig, Params, load_params
from components.common.params_document import default_document
from foundry.errors import UserError
from foundry.home import REPOSITORY
from foundry.settings import setting_names


@pytest.mark.parametrize(
    ("images", "evaluation", "expected"),
    [
        ("sample:", "auto", "sample:evaluation"),
        ("/my/images", "auto", None),
        ("/my/images", "sample:evaluation", "sample:evaluation"),
        ("sample:", "none", None),
        ("sample:", "s3://labels", "s3://labels"),
    ],
)
def test_which_labels_are_used(images: str, evaluation: str, expected: str | None) -> None:
    assert InputsConfig(images=images, evaluation=evaluation).evaluation_url() == expected


def test_the_default_document_holds_every_setting_with_its_description() -> None:
    text = default_document()
    assert Params.model_validate(yaml.safe_load(text)) == Params()
    values = yaml.safe_load(text)
    listed = {name for name in names_in(values) if holds_settings(name)}  # of lists and mappings
    assert listed == {"curation.clusters.levels", "curation.retrieval_of"}
    single = {name for name in setting_names(Params) if not holds_settings(name)}
    inside = {name for name in single if any(name.startswith(f"{other}.") for other in listed)}
    free = {"evaluation.gates.non_inferiority.headline"}  # of a mapping of measures
    assert set(names_in(values)) - free | {name.rpartition(".")[0] for name in free} == single - inside | listed
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line and not line.lstrip().startswith("#"):
            indent = len(line) - len(line.lstrip())
            assert lines[number - 1].startswith(" " * indent + "# "), line


def test_the_repositorys_file_names_every_setting_with_its_comment() -> None:
    """Its values are the person's to change; a setting that came or went, or another description, shows here."""
    text = (REPOSITORY / "params.yaml").read_text()
    load_params(REPOSITORY / "params.yaml")
    assert outline(text) == outline(default_document()), "python -m components.common.params_document prints it anew"


def outline(text: str) -> list[str]:
    """Comments and names, without values."""
    lines = [line if line.lstrip().startswith("#") else line.partition(":")[0] for line in text.splitlines()]
    return [line for line in lines if line.startswith("#") or not line.startswith("    - ")]


def names_in(values: dict, prefix: str = "") -> list[str]:
    names = []
    for key, value in values.items():
        names += names_in(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [prefix + key]
    return names


def holds_settings(name: str) -> bool:
    return any(other.startswith(f"{name}.") for other in setting_names(Params))


def test_overrides_are_laid_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("pretraining: {processes: 1}\n")
    params = load_params(tmp_path / "p.yaml", ["pretraining.overrides.steps=7", "inputs.images=/x"])
    assert params.pretraining.processes == 1 and params.pretraining.resolved_recipe().steps == 7
    assert params.inputs.images == "/x"


def test_whole_numbers_may_come_as_doubles_as_kfp_sends_them(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("pretraining: {processes: 2.0, overrides: {steps: 7.0}}\ncuration: {seed: 0.0}\n")
    params = load_params(tmp_path / "p.yaml")
    recipe = params.pretraining.resolved_recipe()
    assert (params.pretraining.processes, recipe.steps, params.curation.seed) == (2, 7, 0)
    assert all(isinstance(value, int) for value in (params.pretraining.processes, recipe.steps, params.curation.seed))


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("curation: {sed: 1}\n")
    with pytest.raises(UserError, match=r"p.yaml: unknown setting 'curation.sed'; did you mean 'curation.seed'"):
        load_params(tmp_path / "p.yaml")
