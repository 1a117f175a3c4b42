import json
import math
from pathlib import Path

import numpy as np
import pytest

from components.evaluation.config import GateSettings
from components.evaluation.gates import judge
from components.evaluation.subjects import Subject
from foundry.errors import UserError
from foundry.settings import load_settings
from training.probes.outcome import Items

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
        "non_inferior_knn_top1",
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


def answers(rate, count=400, flipped=0):
    """The first ``rate`` of ``count`` images right; then ``flipped`` right ones wrong, and as many wrong ones right."""
    right = np.arange(count) < round(rate * count)
    edge = int(right.sum())
    right[edge - flipped : edge] = False
    right[edge : edge + flipped] = True
    return Items.of_mean(right)


def decide(challenger, champion, measure="knn_top1", protocol="classification", **settings):
    """The verdict where the student and its champion have these items of ``measure``."""
    values = {name: {measure: float(items.measure()[0])} for name, items in
              {"student_vit": challenger, "student_vit_champion": champion}.items()}  # fmt: skip
    items = {"student-vit": {measure: challenger}, "student-vit-champion": {measure: champion}}
    return judge(SUBJECTS, found(**values), protocol, GateSettings(**settings), items)


def gate_of(verdict, name):
    return next(gate for gate in verdict.students["vit"].gates if gate.name == name)


def test_without_items_the_champion_is_met_by_single_figures():
    for score, passed in ((0.581, True), (0.58, True), (0.579, False)):
        settings = GateSettings(non_inferiority={"headline": 0.02 + 1e-12})
        verdict = judge(SUBJECTS, found(student_vit={"knn_top1": score}), "classification", settings)
        gate = gate_of(verdict, "non_inferior_knn_top1")
        assert gate.passed is passed is verdict.passed and gate.bound == pytest.approx(-0.02)
        assert gate.difference == gate.measured == pytest.approx(score - 0.6) and gate.images is None
        assert "points worse, as single figures, of unknown certainty; 2.0 points worse is allowed" in gate.explanation


def test_a_challenger_that_is_as_good_as_can_be_told_passes():
    """Forty images of 400 answered otherwise, half of them better: the error is sqrt(40) / 400, 1.58 points."""
    verdict = decide(answers(0.6, flipped=20), answers(0.6))
    gate = gate_of(verdict, "non_inferior_knn_top1")
    assert verdict.passed and gate.passed and gate.difference == 0 and gate.images == 400 and gate.certainty == 0.95
    error = math.sqrt(40) / 400
    assert gate.measured == pytest.approx(-1.649 * error, abs=0.1 * error)  # Student, 399 degrees of freedom
    assert (gate.low, gate.high) == pytest.approx((-1.966 * error, 1.966 * error), abs=0.2 * error)
    assert gate.detectable == pytest.approx((1.645 + 0.842) * error, rel=0.05)
    assert gate.explanation.startswith(
        "k-NN top-1 (60.0 %) against the champion's 60.0 %: equal, with 95 % certainty at most 2."
    )
    assert " points worse on 400 images; 5.0 points worse is allowed, and a gain of " in gate.explanation
    assert gate.explanation.endswith("points could have been seen")


def test_a_refusal_says_by_how_much_and_how_certain():
    gate = gate_of(decide(answers(0.55, flipped=20), answers(0.6)), "non_inferior_knn_top1")
    assert not gate.passed and gate.difference == pytest.approx(-0.05)
    assert "(55.0 %) against the champion's 60.0 %: 5.0 points worse, with 95 % certainty at most " in gate.explanation
    missing = 100 * (-0.05 - gate.measured)
    assert f"5.0 points worse is allowed, {missing:.1f} points too little, and a gain of" in gate.explanation


def test_too_few_images_for_the_margin_say_how_many_would_do():
    """80 discordant images of 400 (20 %) and a margin of 2 points: (1.645 + 0.842)^2 * 0.2 / 0.02^2 = 3,091 images."""
    gate = gate_of(decide(answers(0.6, flipped=40), answers(0.6), non_inferiority={"headline": 0.02}),
                   "non_inferior_knn_top1")  # fmt: skip
    assert not gate.passed
    words = gate.explanation.split("as good as the champion about ")[1]
    assert words.endswith(" images would show that")
    assert int(words.split()[0].replace(",", "")) == pytest.approx(3091, rel=0.1)


def test_fewer_images_than_the_minimum_decide_nothing():
    gate = gate_of(decide(answers(0.9, 60), answers(0.6, 60)), "non_inferior_knn_top1")
    assert gate.measured > gate.bound and not gate.passed
    assert gate.explanation.endswith("; 60 images decide nothing, 100 are needed at least")
    assert gate_of(decide(answers(0.9, 60), answers(0.6, 60), minimum_images=60), "non_inferior_knn_top1").passed
    better = decide(answers(0.9, 60), answers(0.6, 60), superiority="knn_top1")
    assert not gate_of(better, "superior_knn_top1").passed


def test_the_champion_itself_is_never_inferior_and_never_superior():
    for count in (400, 20):
        verdict = decide(answers(0.6, count), answers(0.6, count), superiority="headline")
        gate = gate_of(verdict, "non_inferior_knn_top1")
        assert gate.passed and (gate.difference, gate.measured, gate.detectable) == (0, 0, 0)
        assert f"the same on each of {count} images" in gate.explanation
        assert not gate_of(verdict, "superior_knn_top1").passed and not verdict.passed
    assert decide(answers(0.6), answers(0.6), non_inferiority={"headline": 0.0}).passed


def test_superiority():
    for right, passed in ((0.7, True), (0.61, False)):
        verdict = decide(answers(right, flipped=20), answers(0.6), superiority="headline")
        gate = gate_of(verdict, "superior_knn_top1")
        assert gate.passed is passed is verdict.passed and gate.bound == 0 and gate.comparison == ">"
        assert (gate.measured > 0) is passed and "better is asked for" in gate.explanation
    assert "1.0 points better, with 95 % certainty at most " in gate.explanation and "too little" in gate.explanation


def test_an_error_is_better_when_smaller():
    def errors(metres):
        wobble = 1 + 0.1 * np.sin(np.arange(200))
        return Items(np.stack([(metres * wobble) ** 2 * 50, np.full(200, 50.0)], axis=-1)[:, None, :], root=True)

    settings = {"non_inferiority": {"depth_rmse": 0.05}, "bounds": {"depth_rmse": 0.5}}
    for metres, fails in ((0.40, []), (0.44, []), (0.48, ["non_inferior_depth_rmse"]),
                          (0.6, ["bound_depth_rmse", "non_inferior_depth_rmse"])):  # fmt: skip
        verdict = decide(errors(metres), errors(0.42), "depth_rmse", **settings)
        assert [gate.name for gate in verdict.students["vit"].gates if not gate.passed] == fails
        gate = gate_of(verdict, "non_inferior_depth_rmse")
        assert gate.difference == pytest.approx((0.42 - metres) * math.sqrt(1.005), rel=0.02)
        assert f"{'better' if metres < 0.42 else 'worse'}, with 95 % certainty" in gate.explanation
        bound = gate_of(verdict, "bound_depth_rmse")
        assert bound.comparison == "<=" and bound.low < bound.measured < bound.high and bound.images == 200
    assert "is above the bound (0.5) by 0.1" in bound.explanation
    single = judge(SUBJECTS, found(student_vit={"depth_rmse": 0.4}, student_vit_champion={"depth_rmse": 0.3}),
                   "classification", GateSettings(non_inferiority={"depth_rmse": 0.05}))  # fmt: skip
    assert gate_of(single, "non_inferior_depth_rmse").difference == pytest.approx(-0.1) and not single.passed


def test_bounds_hold_for_students_with_and_without_a_champion():
    alone = [subject for subject in SUBJECTS if subject.kind != "champion"]
    alone[-1] = Subject("student-vit", "Student vit", "student", EXPORT, "vit", "student-vit-random")
    settings = GateSettings(bounds={"headline": 0.7, "miou": 0.3}, superiority="miou")
    for subjects in (SUBJECTS, alone):
        verdict = judge(subjects, found(), "classification", settings)
        gate = gate_of(verdict, "bound_knn_top1")
        assert not gate.passed and (gate.measured, gate.bound, gate.comparison) == (0.6, 0.7, ">=")
        assert gate.explanation == "k-NN top-1 (60.0 %) is below the bound (70.0 %) by 10.0 points"
        assert gate_of(verdict, "bound_miou").passed
        assert all(judgement.passed for judgement in verdict.teachers.values())
    names = [gate.name for gate in verdict.students["vit"].gates]
    assert names[3:] == ["bound_knn_top1", "bound_miou", "teacher_learned"], "without a champion the absolute ones only"


def test_a_measure_s_own_name_goes_before_headline():
    settings = GateSettings(non_inferiority={"knn_top1": 0.01, "headline": 0.05, "miou": 0.2})
    verdict = judge(SUBJECTS, found(), "classification", settings)
    bounds = {gate.name: gate.bound for gate in verdict.students["vit"].gates if gate.difference is not None}
    assert bounds == {"non_inferior_knn_top1": -0.01, "non_inferior_miou": -0.2}


def test_a_feature_rank_has_no_parts_to_draw_again():
    settings = GateSettings(non_inferiority={"feature_rank": 1.0})
    gate = gate_of(
        judge(SUBJECTS, found(student_vit={"feature_rank": 18.5}), "label-free", settings), "non_inferior_feature_rank"
    )
    assert not gate.passed and gate.difference == -1.5
    assert gate.explanation == (
        "feature rank (18.5) against the champion's 20.0: 1.5 worse, as single figures, of unknown certainty; "
        "1 worse is allowed"
    )


def test_gates_on_labels_are_left_out_where_there_are_none_and_said_to_be():
    settings = GateSettings(bounds={"knn_top1": 0.9, "patch_coherence": 0.6}, superiority="linear_top1")
    figures = {name: {key: value for key, value in each.items() if key not in ("knn_top1", "miou")}
               for name, each in found().items()}  # fmt: skip
    verdict = judge(SUBJECTS, figures, "label-free", settings)
    assert verdict.passed and verdict.left_out == ("bounds.knn_top1", "superiority in linear_top1")
    assert verdict.summary.endswith(
        " Not judged, since nothing has labels: bounds.knn_top1, superiority in linear_top1."
    )
    assert gate_of(verdict, "bound_patch_coherence").passed
    # A set of depths alone gates by depth, though its headline needs no labels.
    figures["student-vit"]["depth_rmse"] = 0.4
    depth = judge(SUBJECTS, figures, "label-free", GateSettings(bounds={"depth_rmse": 0.3}))
    assert not gate_of(depth, "bound_depth_rmse").passed and depth.left_out == ()
    # With labels a gate on what was not measured is not passed by keeping silent.
    verdict = judge(SUBJECTS, found(), "classification", settings)
    assert not gate_of(verdict, "superior_linear_top1").passed and verdict.left_out == ()
    assert "linear probe top-1 was not measured" in gate_of(verdict, "superior_linear_top1").explanation


def test_what_is_not_a_number_is_inferior():
    verdict = judge(SUBJECTS, found(student_vit={"knn_top1": math.nan}), "classification", GateSettings())
    assert not gate_of(verdict, "non_inferior_knn_top1").passed
    empty = Items(np.zeros((400, 1, 2)))
    assert not gate_of(decide(empty, answers(0.6)), "non_inferior_knn_top1").passed
    assert not gate_of(decide(empty, empty), "non_inferior_knn_top1").passed


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"champion_tolerance": 0.02}, r"champion_tolerance is now non_inferiority.*\{headline: 0.05\}"),
        ({"bounds": {"knn_top": 0.5}}, "no measure is called 'knn_top'; did you mean 'knn_top1'"),
        ({"superiority": "voc/mio"}, "no measure is called 'voc/mio'; did you mean 'voc/miou'"),
        ({"non_inferiority": {"headline": -0.1}}, "non_inferiority.headline"),
        ({"certainty": 1.0}, "certainty"),
        ({"bounds": {"miou": math.nan}}, "bounds.miou"),
    ],
)
def test_settings_that_cannot_be_meant(values, words):
    with pytest.raises(UserError, match=words):
        load_settings(GateSettings, values, "params.yaml")


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
        "non_inferior_copy_retrieval",
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
    verdict = judge(SUBJECTS, found(student_vit={measure: value}), "label-free", GateSettings(non_inferiority={}))
    assert [each.name for each in verdict.students["vit"].gates if not each.passed] == [gate]


def test_masks_alone_gate_by_segmentation_too():
    verdict = judge(SUBJECTS, found(refined={"miou": 0.1}), "segmentation", GateSettings())
    assert not verdict.passed
    assert "segmentation mIoU (10.0 %) is not above that of the same network with random weights" in verdict.summary


def test_document_has_the_contract_s_form():
    document = judge(SUBJECTS, found(), "classification", GateSettings()).document()
    assert document["schema"] == 2 and document["passed"] is True
    gates = {gate["name"]: gate for gate in json.loads(json.dumps(document))["students"]["vit"]["gates"]}
    fields = {"name", "measured", "bound", "comparison", "passed", "explanation"}
    assert set(gates["knn_above_random"]) == fields
    assert set(gates["non_inferior_knn_top1"]) == fields | {"difference"}
    document = decide(answers(0.6), answers(0.6)).document()
    gate = next(gate for gate in document["students"]["vit"]["gates"] if gate["name"] == "non_inferior_knn_top1")
    assert set(gate) == fields | {"difference", "low", "high", "certainty", "images", "detectable"}
