import math
from pathlib import Path

import pytest

from components.evaluation.config import GateSettings
from components.evaluation.gates import judge
from components.evaluation.subjects import Subject

EXPORT = Path("export")
SUBJECTS = [
    Subject("pretrained-random", "Teacher, random weights", "random", EXPORT),
    Subject("pretrained", "Teacher, pretrained", "teacher", EXPORT, random="pretrained-random"),
    Subject("refined", "Teacher, refined", "teacher", EXPORT, random="pretrained-random"),
    Subject("student-vit-random", "Student vit, random weights", "random", EXPORT),
    Subject("student-vit-champion", "Champion vit v3", "champion", EXPORT, "vit"),
    Subject("student-vit", "Student vit", "student", EXPORT, "vit", "student-vit-random", "student-vit-champion"),
]


def measures(knn=0.6, miou=0.4, retrieval=0.5, rank=20.0, coherence=0.7):
    return {
        "knn_top1": knn,
        "miou": miou,
        "copy_retrieval": retrieval,
        "feature_rank": rank,
        "patch_coherence": coherence,
    }


def found(**changes):
    weak = measures(0.2, 0.1, 0.1, 5.0, 0.55)
    base = {
        "pretrained-random": weak,
        "pretrained": measures(),
        "refined": measures(),
        "student-vit-random": weak,
        "student-vit-champion": measures(),
        "student-vit": measures(),
        "raw pixels": measures(0.25),
        "colour histogram": measures(0.4),
    }
    for name, values in changes.items():
        name = name.replace("_", "-") if name.startswith("student") else name.replace("_", " ")
        base[name] = base[name] | values
    return base


def test_all_gates_of_a_labelled_line():
    verdict = judge(SUBJECTS, found(), "classification", GateSettings())
    assert verdict.passed and verdict.students["vit"].passed
    assert list(verdict.teachers) == ["pretrained", "refined"] and list(verdict.students) == ["vit"]
    assert [gate.name for gate in verdict.students["vit"].gates] == [
        "knn_above_random",
        "knn_above_raw_pixels",
        "knn_above_colour_histogram",
        "not_below_champion",
        "teacher_learned",
    ]
    assert [gate.bound for gate in verdict.students["vit"].gates[:3]] == [0.2, 0.25, 0.4]
    assert verdict.summary.startswith("Teacher and students learned and may be promoted")
    assert "k-NN top-1: pretrained 60.0 %, refined 60.0 %, vit 60.0 %" in verdict.summary


def test_a_given_teacher_that_does_not_see_more_than_colours_is_told_so():
    given = [
        Subject("teacher-random", "Teacher, random weights", "random", EXPORT),
        Subject("teacher", "Teacher, as given", "teacher", EXPORT, random="teacher-random"),
        *(subject for subject in SUBJECTS if subject.name.startswith("student")),
    ]
    measured = found()
    measured |= {"teacher-random": measured["pretrained-random"], "teacher": measured["pretrained-random"]}
    verdict = judge(given, measured, "classification", GateSettings())
    assert verdict.summary.startswith("The teacher did not learn: its k-NN top-1") and not verdict.passed
    assert verdict.students["vit"].gates[-1].explanation == "the teacher did not learn"


@pytest.mark.parametrize("network", ["pretrained", "refined"])
@pytest.mark.parametrize("knn", [0.4, 0.1, math.nan])
def test_a_teacher_that_did_not_learn_fails_everything(network, knn):
    verdict = judge(SUBJECTS, found(**{network: {"knn_top1": knn}}), "classification", GateSettings())
    assert not verdict.passed and not verdict.students["vit"].passed
    assert verdict.summary.startswith(f"The {network} teacher did not learn: its k-NN top-1 (")
    assert verdict.summary.endswith("Nothing may be promoted.") and "\n" not in verdict.summary
    failed = [gate.name for gate in verdict.students["vit"].gates if not gate.passed]
    assert failed == ["teacher_learned"]


def test_a_student_below_a_baseline_fails_alone():
    verdict = judge(SUBJECTS, found(student_vit={"knn_top1": 0.4}), "classification", GateSettings())
    assert not verdict.passed and all(judgement.passed for judgement in verdict.teachers.values())
    assert "student vit: k-NN top-1 (40.0 %) is not above that of the colour histogram (40.0 %)" in verdict.summary
    assert "No student may be promoted." in verdict.summary


@pytest.mark.parametrize(("score", "passed"), [(0.581, True), (0.58, True), (0.579, False)])
def test_champion_tolerance(score, passed):
    settings = GateSettings(champion_tolerance=0.02)
    verdict = judge(SUBJECTS, found(student_vit={"knn_top1": score}), "classification", settings)
    gate = next(gate for gate in verdict.students["vit"].gates if gate.name == "not_below_champion")
    assert gate.bound == pytest.approx(0.58)
    assert gate.passed is passed is verdict.passed


def test_margin_is_added_to_the_bound():
    settings = GateSettings(knn_margin=0.25)
    verdict = judge(SUBJECTS, found(), "classification", settings)
    gate = next(gate for gate in verdict.students["vit"].gates if gate.name == "knn_above_colour_histogram")
    assert gate.bound == pytest.approx(0.65) and not gate.passed
    assert gate.explanation.endswith("plus the margin of 25.0 %")


def test_without_labels_the_label_free_measures_gate():
    verdict = judge(SUBJECTS, found(), "label-free", GateSettings())
    names = [gate.name for gate in verdict.students["vit"].gates]
    assert names == [
        "retrieval_above_random",
        "coherence_above_random",
        "feature_rank",
        "not_below_champion",
        "teacher_learned",
    ]
    assert verdict.passed and "retrieval of augmented copies" in verdict.summary


@pytest.mark.parametrize(
    ("measure", "value", "gate"),
    [
        ("copy_retrieval", 0.1, "retrieval_above_random"),
        ("patch_coherence", 0.5, "coherence_above_random"),
        ("feature_rank", 7.9, "feature_rank"),
    ],
)
def test_each_label_free_gate_can_fail(measure, value, gate):
    verdict = judge(SUBJECTS, found(student_vit={measure: value}), "label-free", GateSettings(champion_tolerance=1.0))
    assert [each.name for each in verdict.students["vit"].gates if not each.passed] == [gate]


def test_masks_alone_gate_by_segmentation_too():
    verdict = judge(SUBJECTS, found(refined={"miou": 0.1}), "segmentation", GateSettings())
    assert not verdict.passed
    assert "segmentation mIoU (10.0 %) is not above that of the same network with random weights" in verdict.summary


def test_document_has_the_contract_s_form():
    document = judge(SUBJECTS, found(), "classification", GateSettings()).document()
    assert document["schema"] == 1 and document["passed"] is True
    gate = document["students"]["vit"]["gates"][0]
    assert set(gate) == {"name", "measured", "bound", "comparison", "passed", "explanation"}
