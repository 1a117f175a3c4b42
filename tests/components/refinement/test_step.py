from __future__ import annotations

from components.refinement.step import STEP


def test_what_it_takes() -> None:
    assert {spec.name: (spec.required, spec.kind) for spec in STEP.inputs} == {
        "dataset": (True, "result"),
        "teacher": (True, "result"),
        "evaluation": (False, "url"),
    }
    assert STEP.config().recipe == "embedded_gram" and STEP.pure


def test_the_component_has_the_steps_inputs() -> None:
    from components.refinement.component import refine

    spec = refine.component_spec
    assert set(spec.inputs) == {"config", *(given.name for given in STEP.inputs)}
    assert set(spec.outputs) == {"refined", "metrics"}
    assert spec.description.strip() == STEP.summary
