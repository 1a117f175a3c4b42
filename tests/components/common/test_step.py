from __future__ import annotations

import pytest

from components.common.step import InputSpec, Step, labelled
from foundry.errors import UserError
from foundry.settings import Settings

STEP = Step(
    name="toy",
    summary="Nothing.",
    config=Settings,
    inputs=(InputSpec("pool", "images", kind="url"), InputSpec("seeds", "more", False, "url", several=True)),
    run=lambda *_: {},
    code=(),
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/data/caltech20", {"caltech20": "/data/caltech20"}),
        ("s3://bucket/birds.tar.gz", {"birds": "s3://bucket/birds.tar.gz"}),
        ("a=/x; b=/y with space/", {"a": "/x", "b": "/y with space/"}),
        ("dvc://data/photos?repo=https://h/r.git&rev=v1", {"photos": "dvc://data/photos?repo=https://h/r.git&rev=v1"}),
        ("sample:evaluation", {"evaluation": "sample:evaluation"}),
        ("/my pictures/best of!", {"best-of": "/my pictures/best of!"}),
        ("", {}),
    ],
)
def test_labelled_urls(value: str, expected: dict[str, str]) -> None:
    assert labelled(value) == expected


@pytest.mark.parametrize(("value", "message"), [("/a/x;/b/x", "'x' is given twice"), ("/...", "give it a name")])
def test_labels_are_distinct_names(value: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        labelled(value)


def test_several_inputs_are_given_by_their_labels() -> None:
    together = STEP.check_inputs({"pool": "/p", "seeds": "a=/x;b=/y"})
    assert together == {"pool": "/p", "seeds.a": "/x", "seeds.b": "/y"}
    assert STEP.check_inputs({"pool": "/p", "seeds.b": "/y", "seeds.a": "/x"}) == together
    assert STEP.check_inputs({"pool": "/p", "seeds": ""}) == {"pool": "/p"}
    assert STEP.input("seeds.a").name == "seeds"
    with pytest.raises(UserError, match="'seeds.a' is given twice"):
        STEP.check_inputs({"pool": "/p", "seeds": "a=/x", "seeds.a": "/y"})
    with pytest.raises(UserError, match="no input named 'pool.a'"):
        STEP.check_inputs({"pool.a": "/p"})
