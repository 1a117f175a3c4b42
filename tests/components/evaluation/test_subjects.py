import json

import pytest

from components.evaluation.subjects import describe_network, find_subjects, read_champions
from foundry.errors import UserError
from tests.components.evaluation.small_line import write_line


@pytest.fixture
def inputs(tmp_path):
    return write_line(tmp_path)


def champion(path, **changes):
    return {"vit": {"model": "foundry-vit", "version": 3, "digest": "d1", "path": str(path), **changes}}


def test_every_network_beside_its_random_twin(inputs):
    subjects = find_subjects(inputs, {})
    assert [(subject.name, subject.kind, subject.random) for subject in subjects] == [
        ("pretrained-random", "random", ""),
        ("pretrained", "teacher", "pretrained-random"),
        ("refined", "teacher", "pretrained-random"),
        ("student-convnext-random", "random", ""),
        ("student-convnext", "student", "student-convnext-random"),
        ("student-vit-random", "random", ""),
        ("student-vit", "student", "student-vit-random"),
    ]
    assert all(subject.export.name == "step-000000000" for subject in subjects if subject.kind == "random")
    assert all(subject.export.name == "step-000000040" for subject in subjects if subject.kind != "random")


def test_a_teacher_that_was_there_stands_in_place_of_those_of_a_line(inputs):
    given = {"teacher": inputs["refined"], "students": inputs["students"]}
    found = {subject.name: subject for subject in find_subjects(given, {})}
    assert list(found)[:2] == ["teacher-random", "teacher"]
    assert found["teacher"].kind == "teacher" and found["teacher"].random == "teacher-random"
    with pytest.raises(UserError, match="give at least one of the inputs pretrained, refined, teacher"):
        find_subjects({"students": inputs["students"]}, {})


def test_random_networks_that_differ_are_both_listed(inputs, tmp_path):
    export = tmp_path / "refined/export/step-000000000"
    document = json.loads((export / "preprocessor_config.json").read_text())
    document["crop_size"] = {"height": 24, "width": 24}
    (export / "preprocessor_config.json").write_text(json.dumps(document))
    names = [subject.name for subject in find_subjects(inputs, {})]
    assert names[:4] == ["pretrained-random", "pretrained", "refined-random", "refined"]


def test_a_champion_stands_beside_its_challenger(inputs, tmp_path):
    champions = read_champions(json.dumps(champion(tmp_path / "students/students/vit/export/step-000000000")))
    subjects = {subject.name: subject for subject in find_subjects(inputs, champions)}
    assert subjects["student-vit"].champion == "student-vit-champion"
    assert subjects["student-vit-champion"].title == "Champion foundry-vit v3"
    assert subjects["student-convnext"].champion == ""


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("pretrained/export/latest", "no trained export there"),
        ("refined/export/step-000000000/config.json", "step-000000000: no exported network there"),
        ("students/students/vit/export/step-000000040/config.json", "step-000000040: no exported network there"),
    ],
)
def test_what_is_missing_is_named(inputs, tmp_path, missing, message):
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=message):
        find_subjects(inputs, {})


def test_a_result_without_students_is_refused(inputs):
    with pytest.raises(UserError, match="holds no student; give the result of distillation"):
        find_subjects({**inputs, "students": inputs["refined"]}, {})


def test_champions_from_text_file_and_nothing(tmp_path):
    document = champion(tmp_path)
    (tmp_path / "champions.json").write_text(json.dumps(document))
    from_file, from_text = read_champions(str(tmp_path / "champions.json")), read_champions(json.dumps(document))
    assert from_file == from_text and from_file["vit"].version == "3" and from_file["vit"].path == tmp_path
    assert read_champions("") == read_champions(" \n") == read_champions("{}") == {}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nowhere.json", "nowhere.json is neither JSON nor a readable JSON file"),
        ('{"vit": ', "champion: expected"),
        ('{"vit": {"model": "m"}}', "champion: expected"),
        ('{"vit": 3}', "champion: expected"),
    ],
)
def test_bad_champions_are_plain_errors(value, message):
    with pytest.raises(UserError, match=message):
        read_champions(value)


def test_description_of_a_network(inputs, tmp_path):
    export = tmp_path / "pretrained/export/step-000000040"
    facts = describe_network(export)
    import hashlib

    import safetensors.numpy

    tensors = safetensors.numpy.load_file(export / "model.safetensors")
    assert facts == {
        "architecture": "ViT 2x24, patch 8",
        "parameters": sum(tensor.size for tensor in tensors.values()),
        "input_side": 32,
        "sha256": hashlib.sha256((export / "model.safetensors").read_bytes()).hexdigest(),
    }
    convnext = tmp_path / "students/students/convnext/export/step-000000040"
    assert describe_network(convnext)["architecture"] == "ConvNeXt 8-8-16-24"
