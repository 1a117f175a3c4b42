import itertools
import json

import pytest

from components.common import tracking
from components.registration.promotion import apply_verdict, promote_by_hand
from components.registration.registry import ModelRegistry, Move, champion_stack
from components.registration.report import Verdict
from foundry.errors import UserError

PASSED = Verdict(True, (), "digest-1")
FAILED = Verdict(False, ("k-NN top-1 20 % is not above the colour histogram (30 %)",), "digest-2")
_numbers = itertools.count()


@pytest.fixture(scope="module")
def registry():
    return ModelRegistry()


@pytest.fixture
def model(registry):
    """A registered model with three versions, no champion."""
    name = f"registry-{next(_numbers)}"
    registry.client.create_registered_model(name)
    for number in (1, 2, 3):
        registry.client.create_model_version(
            name, f"/nowhere/{number}", tags=tracking.tag_values({"export_digest": f"d{number}"})
        )
    return name


def champions(registry, name):
    return [(move.action, move.version, move.previous) for move in registry.history(name)]


def test_promotion_rollback_and_history(registry, model):
    assert registry.champion(model) is None and registry.history(model) == []
    registry.promote(model, "1", "first")
    move = registry.promote(model, "v2", "better")
    assert (move.version, move.previous, move.why, move.verdict) == ("2", "1", "better", "unknown")
    assert registry.version(model, "champion").version == 2
    assert registry.version(model, "2").tags["foundry.previous_champion"] == "1"
    assert registry.promote(model, "champion", "again") is None
    registry.promote(model, "3", "best")
    assert registry.rollback(model, "slow").version == "2"
    assert registry.rollback(model, "wrong colours").version == "1"
    with pytest.raises(UserError, match="version 1 is its first champion"):
        registry.rollback(model, "once more")
    assert champions(registry, model) == [
        ("promote", "1", None), ("promote", "2", "1"), ("promote", "3", "2"),
        ("rollback", "2", "3"), ("rollback", "1", "2"),
    ]  # fmt: skip
    times = [move.time for move in registry.history(model)]
    assert times == sorted(times)


def previous(registry, name):
    number = registry.model(name).aliases.get("previous")
    return None if number is None else str(number)


def test_previous_is_the_version_that_a_rollback_returns_to(registry, model):
    seen = []
    for step in ("1", "2", "3", "rollback", "rollback", "3"):
        registry.rollback(model, "") if step == "rollback" else registry.promote(model, step, "")
        seen.append((registry.champion(model), previous(registry, model)))
        assert seen[-1][1] == registry.previous_champion(model)
    assert seen == [("1", None), ("2", "1"), ("3", "2"), ("2", "1"), ("1", None), ("3", "1")]
    assert registry.version(model, "previous").version == 1
    apply_verdict(registry, model, "2", PASSED)
    assert previous(registry, model) == "3"
    registry.client.set_registered_model_alias(model, "champion", 1)
    registry.promote(model, "2", "")
    assert previous(registry, model) == "1", "a move by other hands counts"


def test_a_failed_version_is_promoted_only_with_a_reason(registry, model):
    apply_verdict(registry, model, "1", PASSED)
    apply_verdict(registry, model, "2", FAILED)
    with pytest.raises(UserError) as refused:
        promote_by_hand(registry, model, "2", "because")
    text = str(refused.value)
    assert f"'{model}': version 2 failed its verdict: {FAILED.reasons[0]}; to promote it all the same" in text
    assert "\n" not in text and registry.champion(model) == "1"
    with pytest.raises(UserError, match="--anyway needs the reason"):
        promote_by_hand(registry, model, "2", "  ", anyway=True)
    move = promote_by_hand(registry, model, "2", "the old one is withdrawn", anyway=True)
    assert (move.version, move.verdict, move.why) == ("2", "failed", "the old one is withdrawn")
    assert move.overruled == FAILED.reasons[0] and registry.history(model)[-1] == move
    assert promote_by_hand(registry, model, "2", "") is None, "what reigns already is not refused"
    assert promote_by_hand(registry, model, "1", "").overruled == ""


def test_a_long_refusal_and_a_long_reason_fit_the_registry(registry, model):
    reasons = tuple(f"gate {number} é " + "x" * 600 for number in range(20))
    apply_verdict(registry, model, "2", Verdict(False, reasons, "long"))
    with pytest.raises(UserError, match="version 2 failed its verdict: gate 0 é xxx"):
        promote_by_hand(registry, model, "2", "")
    move = promote_by_hand(registry, model, "2", "y" * 9000, anyway=True)
    assert registry.history(model)[-1] == move and move.why.startswith("yyy") and move.overruled.startswith("gate 0 é")


def test_entries_of_before_are_read(registry, model):
    """An entry that an earlier release wrote, which knew nothing of what is overruled."""
    entry = {"action": "promote", "previous": None, "time": "2026-01-01T00:00:00.0Z", "verdict": "passed"}
    text = json.dumps({**entry, "version": "1", "why": "first"})
    registry.client.set_registered_model_tag(model, f"foundry.history.{entry['time']}", text)
    registry.client.set_registered_model_alias(model, "champion", 1)
    assert [(move.version, move.overruled) for move in registry.history(model)] == [("1", "")]


def test_stack_of_champions():
    def stack(*moves):
        return champion_stack([Move("", action, version, None, "", "") for action, version in moves])

    up = [("verdict", "1"), ("promote", "2"), ("promote", "3")]
    assert stack() == [] and stack(*up) == ["1", "2", "3"]
    assert stack(*up, ("rollback", "2")) == ["1", "2"]
    assert stack(*up, ("rollback", "2"), ("promote", "3")) == ["1", "2", "3"]
    assert stack(*up, ("promote", "1")) == ["1", "2", "3", "1"]
    assert stack(*up, ("outside", "1"), ("rollback", "3")) == ["1", "2", "3"]
    assert stack(*up, ("rollback", "7")) == ["7"], "a version that was never entered"


def test_an_alias_moved_by_other_hands_is_noticed(registry, model):
    registry.promote(model, "1", "first")
    registry.client.set_registered_model_alias(model, "champion", 3)
    assert champions(registry, model) == [("promote", "1", None), ("outside", "3", "1")]
    assert registry.previous_champion(model) == "1"
    registry.promote(model, "2", "third")
    assert champions(registry, model)[1:] == [("outside", "3", "1"), ("promote", "2", "3")]
    assert registry.rollback(model, "").version == "3"


def test_a_deleted_version_is_no_champion_to_return_to(registry, model):
    for number in ("1", "2", "3"):
        registry.promote(model, number, "")
    registry.client.delete_model_version(model, "2")
    assert registry.rollback(model, "").version == "1"


def test_unknown_names_and_versions_name_the_nearest(registry, model):
    with pytest.raises(UserError, match=f"did you mean '{model}'"):
        registry.version(model[:-1] + "O" if model[-1] != "O" else model[:-1], "1")
    with pytest.raises(UserError, match=f"did you mean '{model}'"):
        registry.model(model.removeprefix("registry-"))
    with pytest.raises(UserError, match="no version '9'; there are: 1, 2, 3"):
        registry.promote(model, "9", "")
    registry.client.set_registered_model_alias(model, "challenger", 3)
    with pytest.raises(UserError, match="no version 'chalenger'; did you mean 'challenger'"):
        registry.promote(model, "chalenger", "")
    with pytest.raises(UserError, match="no champion to roll back from"):
        registry.rollback(model, "")


def test_versions_by_digest(registry, model):
    assert [version.version for version in registry.versions(model, ("foundry.export_digest", "d2"))] == [2]
    assert registry.versions(model, ("foundry.export_digest", "d")) == []


def test_a_passed_verdict_moves_the_champion(registry, model):
    assert apply_verdict(registry, model, "1", PASSED) == "version 1 is the champion now"
    assert apply_verdict(registry, model, "1", PASSED) == "version 1 is the champion"
    assert apply_verdict(registry, model, "2", FAILED).startswith("version 1 stays the champion: version 2 failed")
    assert apply_verdict(registry, model, "3", PASSED) == "version 3 is the champion now (before: version 1)"
    tags = registry.version(model, "2").tags
    assert tags["foundry.verdict"] == "failed" and FAILED.reasons[0] in tags["foundry.verdict_reasons"]
    assert [move.verdict for move in registry.history(model)] == ["passed", "passed"]


def test_a_champion_is_not_dethroned_by_failing_later(registry, model):
    apply_verdict(registry, model, "1", PASSED)
    assert apply_verdict(registry, model, "1", FAILED) == "version 1 is the champion"
    assert registry.version(model, "1").tags["foundry.verdict"] == "failed"


def test_a_persons_decision_outlives_the_verdict_it_overruled(registry, model):
    apply_verdict(registry, model, "1", PASSED)
    apply_verdict(registry, model, "2", PASSED)
    registry.rollback(model, "slow on the old cards")
    for _ in range(2):
        said = apply_verdict(registry, model, "2", PASSED)
        assert "version 1 stays the champion" in said and "slow on the old cards" in said
    assert apply_verdict(registry, model, "2", Verdict(True, (), "another")).startswith("version 2 is the champion now")


def test_verdicts_may_alternate_between_versions(registry, model):
    """Two lines whose students both pass: the last one run serves, whatever ran before."""
    for number in ("1", "2", "1", "2"):
        assert apply_verdict(registry, model, number, PASSED).startswith(f"version {number} is the champion")
    assert registry.champion(model) == "2" and registry.previous_champion(model) == "1"
