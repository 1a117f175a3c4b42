import json

import numpy as np
import pyarrow.parquet as parquet
import pytest

from foundry.errors import UserError
from tests.training.curated import write_dataset
from tests.training.small_runs import small_recipe
from training.data.loader import step_order
from training.data.mix import kinds_of, part_weights
from training.data.sampler import MixedOrders, OneOrder, Order
from training.data.shards import ShardDataset
from training.recipe import Mix, Recipe

PARTS = {"balanced": np.arange(0, 6), "retrieved:a": np.arange(4, 10), "raw:b": np.arange(10, 14)}
DRAWS = np.array([3.0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])


def recipe(**changes):
    return Recipe.model_validate(small_recipe(**changes))


def mixed_dataset(folder, mix):
    """24 images of schema 2: 0-11 balanced, 8-15 retrieved, 16-23 raw, by their order in the table."""
    write_dataset(folder)
    table = parquet.read_table(folder / "samples.parquet")
    spans = {"balanced": range(12), "retrieved:a": range(8, 16), "raw:b": range(16, 24)}
    parts = [[name for name, span in spans.items() if row in span] for row in range(24)]
    parquet.write_table(table.append_column("parts", [parts]), folder / "samples.parquet")
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**description, "schema": 2, "mix": mix}))
    return ShardDataset(str(folder)), {name: np.array(span) for name, span in spans.items()}


def test_parts_count_by_their_size_where_no_weights_are_given():
    expected = [3, 1, 1, 1, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert part_weights(PARTS, DRAWS, {}).tolist() == expected


def test_each_part_gives_its_share_of_the_weights():
    seen = part_weights(PARTS, DRAWS, {"balanced": 3, "raw:b": 1})
    assert seen[6:10].tolist() == [0] * 4
    np.testing.assert_allclose([seen[:6].sum(), seen[10:].sum()], [3, 1])
    assert seen[0] == pytest.approx(3 * seen[1])
    both = part_weights(PARTS, DRAWS, {"balanced": 1, "retrieved:a": 1})
    assert both[4] == pytest.approx(1 / 8 + 1 / 6)


def test_kinds_of_steps():
    (only,) = kinds_of(Mix(), PARTS, DRAWS, "d")
    assert only.share == 1 and only.members.tolist() == list(range(14))
    clean, rest = kinds_of(Mix(homogeneous={"raw:b": 0.1}), PARTS, DRAWS, "d")
    assert (clean.share, clean.members.tolist()) == (0.1, [10, 11, 12, 13])
    assert rest.share == pytest.approx(0.9) and rest.members.tolist() == list(range(10))
    _, rest = kinds_of(Mix(homogeneous={"raw:b": 0.1}, weights={"raw:b": 1, "balanced": 1}), PARTS, DRAWS, "d")
    assert set(rest.members) == {*range(6), *range(10, 14)}
    assert len(kinds_of(Mix(homogeneous={"raw:b": 0.4, "balanced": 0.6}), PARTS, DRAWS, "d")) == 2


def test_a_mix_that_cannot_be_is_told():
    with pytest.raises(UserError, match=r"d: the mix names a part 'raw:c'; there are: balanced, raw:b, retrieved:a"):
        kinds_of(Mix(weights={"raw:c": 1}), PARTS, DRAWS, "d")
    with pytest.raises(UserError, match="no part is left"):
        kinds_of(Mix(homogeneous={"raw:b": 0.5}), {"raw:b": PARTS["raw:b"]}, DRAWS, "d")
    for wrong in ({"homogeneous": {"a": 0.7, "b": 0.7}}, {"weights": {"a": 0.0}}, {"weights": {"a": -1.0}}):
        with pytest.raises(ValueError):
            Mix.model_validate(wrong)


def test_a_dataset_of_one_part_is_sampled_as_ever(tmp_path):
    weights = [1.0 + number % 3 for number in range(24)]
    images = ShardDataset(str(write_dataset(tmp_path, weights=weights)))
    steps = step_order(images, recipe())
    assert isinstance(steps, OneOrder)
    order = Order(24, recipe().seed, images.draws)
    for step in range(5):
        assert (steps.images(step, range(8)) == order.indices(8 * step, 8)).all()


def test_steps_obey_the_mix_of_the_dataset_and_the_recipe_overrules_it(tmp_path):
    mix = {"weights": {"balanced": 3, "retrieved:a": 1}, "homogeneous": {"raw:b": 0.25}}
    images, spans = mixed_dataset(tmp_path / "d", mix)
    assert {name: members.tolist() for name, members in images.parts.items()} == {
        name: members.tolist() for name, members in spans.items()
    }
    steps = step_order(images, recipe())
    assert isinstance(steps, MixedOrders)
    drawn = [steps.images(step, range(8)) for step in range(4000)]
    clean = [set(batch) <= set(spans["raw:b"]) for batch in drawn]
    assert np.mean(clean) == pytest.approx(0.25, abs=0.03)
    rest = np.concatenate([batch for batch, one in zip(drawn, clean, strict=True) if not one])
    frequency = np.bincount(rest, minlength=24) / len(rest)
    expected = np.zeros(24)
    expected[spans["balanced"]] += 0.75 / 12
    expected[spans["retrieved:a"]] += 0.25 / 8
    np.testing.assert_allclose(frequency, expected, atol=0.005)
    again = step_order(images, recipe())
    assert (again.images(3999, range(2, 6)) == drawn[3999][2:6]).all(), "a pure function of (seed, step)"
    other = step_order(images, recipe(mix={"weights": {"raw:b": 1}}))
    assert {image for step in range(9) for image in other.images(step, range(8))} == set(spans["raw:b"])
    with pytest.raises(UserError, match="the mix names a part 'raw:x'"):
        step_order(images, recipe(mix={"homogeneous": {"raw:x": 0.5}}))


def test_a_mix_and_a_mixture_of_datasets_exclude_each_other():
    with pytest.raises(ValueError, match="mix is for the parts of one dataset"):
        recipe(mix={}, mixture=[{"datasets": ["a"], "share": 1}])
