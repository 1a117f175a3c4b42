from __future__ import annotations

from components.distillation.step import STEP


def test_what_it_takes() -> None:
    assert {spec.name: (spec.required, spec.kind) for spec in STEP.inputs} == {
        "dataset": (True, "result"),
        "teacher": (True, "result"),
        "evaluation": (False, "url"),
    }
    assert STEP.config().recipe == "embedded_distillation" and STEP.pure


def test_the_component_has_the_steps_inputs() -> None:
    from components.distillation.component import distil

    spec = distil.component_spec
    assert set(spec.inputs) == {"config", *(given.name for given in STEP.inputs)}
    assert set(spec.outputs) == {"students", "metrics"}
    assert spec.description.strip() == STEP.summary
