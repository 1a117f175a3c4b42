"""What registration reads of a report: verdicts as evaluation writes them, and those of earlier releases."""

import json
from pathlib import Path

import numpy as np
import pytest

from components.evaluation.config import GateSettings
from components.evaluation.gates import judge
from components.evaluation.subjects import Subject
from components.registration.report import read_verdicts
from foundry.errors import UserError
from training.probes.outcome import Items


def evaluated(right):
    """The document of evaluation on a student with ``right`` of 400 answers right, the champion having 240."""
    subjects = [
        Subject("random", "", "random", Path()),
        Subject("champion", "", "champion", Path(), "vit"),
        Subject("student", "", "student", Path(), "vit", "random", "champion"),
    ]
    counts = {"student": right, "champion": 240, "random": 20, "raw pixels": 20, "colour histogram": 20}
    found = {name: {"knn_top1": count / 400} for name, count in counts.items()}
    items = {name: {"knn_top1": Items.of_mean(np.arange(400) < counts[name])} for name in ("student", "champion")}
    return judge(subjects, found, "classification", GateSettings(), items).document()


def read(folder, document):
    (folder / "verdict.json").write_text(json.dumps(document))
    return read_verdicts(folder)["vit"]


def test_a_verdict_of_evaluation(tmp_path):
    good, bad = read(tmp_path, evaluated(238)), read(tmp_path, evaluated(190))
    assert good.passed and good.reasons == () and good.word == "passed"
    (words,) = good.comparisons
    assert words.startswith("k-NN top-1 (59.5 %) against the champion's 60.0 %: 0.5 points worse, with 95 % certainty")
    assert not bad.passed and bad.digest != good.digest and bad.word == "failed"
    (reason,) = bad.reasons
    assert reason.startswith(
        "k-NN top-1 (47.5 %) against the champion's 60.0 %: 12.5 points worse, with 95 % certainty"
    )
    assert reason.endswith(" (gate non_inferior_knn_top1)") and "points too little" in reason


def test_a_verdict_of_schema_1_is_read(tmp_path):
    gate = {"name": "not_below_champion", "measured": 0.5, "bound": 0.6, "comparison": ">=", "passed": False,
            "explanation": "k-NN top-1 (50.0 %) is below the champion's"}  # fmt: skip
    document = {"schema": 1, "passed": False, "summary": "", "protocol": "classification", "teachers": {},
                "students": {"vit": {"passed": False, "gates": [gate]}}}  # fmt: skip
    found = read(tmp_path, document)
    assert found.reasons == ("k-NN top-1 (50.0 %) is below the champion's (gate not_below_champion)",)
    assert found.comparisons == () and not found.passed


def test_what_is_no_verdict_is_refused(tmp_path):
    with pytest.raises(UserError, match="schema 3 is not the supported 1 or 2"):
        read(tmp_path, {**evaluated(240), "schema": 3})
    with pytest.raises(UserError, match="not a verdict"):
        read(tmp_path, {"schema": 2, "students": {"vit": {}}})
