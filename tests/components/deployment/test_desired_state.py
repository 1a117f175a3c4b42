"""The plan over every state of three versions: it ends, always at the same place, wherever it is cut off."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from components.deployment.desired_state import (
    Act,
    Actual,
    AddBeside,
    EndObservation,
    MarkLeft,
    Observation,
    Publish,
    Refusal,
    Refuse,
    RemoveCandidate,
    Wanted,
    plan,
    refused_versions,
    served_by,
)

DIGESTS = {1: "a", 2: "b", 3: "c"}
MOVE = "2026-11-20T10:00:00Z"


def refusal(version: int, move: str = MOVE, left: bool = False) -> Refusal:
    return Refusal(DIGESTS[version], move, "drifted", "then", "someone", left)


def subsets(values: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [found for size in range(len(values) + 1) for found in itertools.combinations(values, size)]


def apply(act: Act, wanted: Wanted, actual: Actual) -> tuple[Wanted, Actual]:
    """What an act does, in plain sets."""
    match act:
        case RemoveCandidate():
            return wanted, replace(actual, candidate=False)
        case MarkLeft(version):
            found = {**wanted.refusals, version: replace(wanted.refusals[version], left=True)}
            return replace(wanted, refusals=found), actual
        case Refuse(version, why):
            found = {**wanted.refusals, version: Refusal(DIGESTS[version], wanted.move, why, "now", "me")}
            return replace(wanted, refusals=found), replace(actual, observation=None)
        case EndObservation():
            return wanted, replace(actual, observation=None)
        case Publish(version, beside):
            assert set(beside) <= set(actual.on_disk) and all(other < version for other in beside)
            served = (*beside, version)
            checked = (version, DIGESTS[version])
            return wanted, replace(actual, on_disk=served, configured=served, loaded=served, checked=checked)
        case AddBeside(version):
            assert actual.configured and version < actual.configured[-1]
            served = tuple(sorted({*actual.configured, version}))
            disk = tuple(sorted({*actual.on_disk, version}))
            return wanted, replace(actual, on_disk=disk, configured=served, loaded=served)


def wants() -> Iterator[Wanted]:
    for champion in (None, 1, 2, 3):
        for earlier in itertools.chain.from_iterable(itertools.permutations((1, 2, 3), size) for size in range(3)):
            if champion in earlier:
                continue
            for refused in subsets((1, 2, 3)):
                refusals = {version: refusal(version) for version in refused}
                yield Wanted(champion, MOVE, earlier, DIGESTS, refusals)


def actuals() -> Iterator[Actual]:
    for disk in subsets((1, 2, 3)):
        for configured in subsets(disk):
            for loaded in subsets((1, 2, 3)):
                for checked in (None, *((version, DIGESTS[version]) for version in configured[-1:])):
                    for observation in (
                        None,
                        *(
                            Observation(version, verdict)
                            for version in loaded[-1:]
                            for verdict in ("open", "fine", "errors")
                        ),
                    ):
                        yield Actual(disk, configured, loaded, checked, bool(len(disk) % 2), observation)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_every_state_converges_from_every_cut_and_never_serves_what_is_refused(keep: int) -> None:
    states = list(actuals())
    count = 0
    for wanted in wants():
        for start in states[:: 1 if keep == 2 else 7]:
            count += 1
            now_wanted, actual = wanted, start
            for _ in range(20):
                acts = plan(now_wanted, actual, keep)
                if not acts:
                    break
                # only the first act is done before the kill: the plan is made anew from what it left
                now_wanted, actual = apply(acts[0], now_wanted, actual)
                if acts[0] in [act for act in acts if isinstance(act, Publish)]:
                    assert actual.configured[-1] not in refused_versions(now_wanted)
            else:
                pytest.fail(f"no end from {start} for {wanted}: {plan(now_wanted, actual, keep)}")
            refused = refused_versions(now_wanted)
            served = served_by(now_wanted, actual.configured, refused, keep)
            assert not actual.candidate
            if served:
                assert actual.on_disk == actual.configured == actual.loaded == served
                assert len(served) <= keep and not refused & set(served)
                assert actual.checked == (served[-1], DIGESTS[served[-1]])
            if wanted.champion is not None and wanted.champion not in refused:
                assert served[-1] == wanted.champion
    assert count > 30_000


def test_done_whole_a_plan_leads_to_the_same_place_as_step_by_step() -> None:
    wanted = Wanted(3, MOVE, (1, 2), DIGESTS)
    for start in actuals():
        whole_wanted, whole = wanted, start
        while acts := plan(whole_wanted, whole, 2):
            for act in acts:
                whole_wanted, whole = apply(act, whole_wanted, whole)
        if 3 not in refused_versions(whole_wanted):
            assert whole.loaded == (2, 3), "replicas with any past serve the same versions"
        else:
            assert whole.loaded == (1, 2)


def test_a_new_replica_serves_the_champion_first_and_the_one_before_it_afterwards() -> None:
    wanted = Wanted(3, MOVE, (1, 2), DIGESTS)
    assert plan(wanted, Actual(), 2) == [Publish(3, (), fallback=False), AddBeside(2)]
    assert plan(wanted, Actual(), 1) == [Publish(3, (), fallback=False)]


def test_a_refused_champion_gives_way_to_the_champion_before_it_or_to_what_is_served() -> None:
    refused = {3: refusal(3)}
    assert plan(Wanted(3, MOVE, (1, 2), DIGESTS, refused), Actual(), 1) == [Publish(2, (), fallback=True)]
    served = Actual((1,), (1,), (1,), (1, "a"))
    assert plan(Wanted(3, MOVE, (), DIGESTS, refused), served, 2) == []
    assert plan(Wanted(3, MOVE, (), DIGESTS, refused), Actual(), 2) == [], "nothing else was ever approved"


def test_without_a_champion_what_is_served_stays() -> None:
    served = Actual((1, 2), (1, 2), (1, 2), (2, "b"))
    assert plan(Wanted(None, "", (), DIGESTS), served, 2) == []


def test_a_refusal_holds_until_the_alias_moves_or_the_files_change() -> None:
    def holds(found: Refusal, champion: int = 3, move: str = MOVE) -> bool:
        return 3 in refused_versions(Wanted(champion, move, (), DIGESTS, {3: found}))

    assert holds(refusal(3))
    assert not holds(refusal(3), move="2026-11-21T10:00:00Z"), "promoted again"
    assert not holds(refusal(3, left=True)), "moved away and back by other hands"
    assert not holds(replace(refusal(3), digest="other"))
    assert holds(refusal(3, left=True), champion=2), "it does not stand in for another that is refused"
    assert plan(Wanted(2, MOVE, (), DIGESTS, {3: refusal(3)}), Actual((2,), (2,), (2,), (2, "b")), 2) == [MarkLeft(3)]


def test_errors_after_the_switch_refuse_the_version_and_bring_back_the_one_before() -> None:
    actual = Actual((1, 2), (1, 2), (1, 2), (2, "b"), observation=Observation(2, "errors", "12 %"))
    assert plan(Wanted(2, MOVE, (1,), DIGESTS), actual, 2) == [
        Refuse(2, "12 %"),
        EndObservation(2, "12 %"),
        Publish(1, (), fallback=True),
    ]
    fine = replace(actual, observation=Observation(2, "fine", "0 %"))
    assert plan(Wanted(2, MOVE, (1,), DIGESTS), fine, 2) == [EndObservation(2, "0 %")]
    assert plan(Wanted(2, MOVE, (1,), DIGESTS), replace(actual, observation=Observation(2, "open")), 2) == []


@pytest.mark.parametrize(
    "actual",
    [
        Actual((2,), (2,), (1, 2), (2, "b")),  # killed between the configuration and the load
        Actual((1, 2), (1, 2), (1,), (2, "b")),
        Actual((1, 2), (2,), (2,), (2, "b")),  # killed before what was withdrawn was deleted
        Actual((2,), (2,), (2,), None),  # a new process trusts nothing
        Actual((2,), (2,), (2,), (2, "other")),
        Actual((2, 3), (2, 3), (2, 3), (3, "c")),
    ],
)
def test_whatever_differs_publishes_the_champion(actual: Actual) -> None:
    acts = plan(Wanted(2, MOVE, (), DIGESTS), actual, 1)
    assert acts == [Publish(2, (), fallback=False)]
