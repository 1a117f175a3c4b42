"""Every recipe of the project: its network at full size on the meta device, and two real steps of it, shrunk."""

from pathlib import Path

import pytest

from foundry.errors import UserError
from tests.training.curated import write_dataset
from tests.training.small_runs import events, rows, small_recipe
from training.engine.exports import latest_export
from training.engine.learner import build_network
from training.engine.loop import Trainer
from training.models.architectures import architecture
from training.recipe import RECIPES, Recipe, Schedule, load_recipe, recipe_names, scaled_learning_rate

BACKBONES = {  # published counts (dino_vits16 and so on), changed where a recipe has another grid, patch or registers
    "dino_vits16": 21_665_664,
    "dinov2_vitl16_short": 304_368_640 + 3 * 1024 * (16**2 - 14**2) - 1024 * (37**2 - 14**2),
    "dinov2_vitg14": 1_136_480_768 - 1536 * (37**2 - 16**2),
    "dinov3_vitl16": 303_154_176 - 4 * 1024,
    "dinov3_vit7b16_pretrain": 6_716_043_264,
    "dinov3_vitl16_satellite": 303_156_224,
}
HEADS = {  # millions, as published or derived from published widths
    "dino_vits16": (22.3, None),
    "dinov2_vitg14": (58.5, 41.4),
    "dinov3_vitl16": (23.6, 23.6),
    "dinov3_vit7b16_pretrain": (239.1, 72.9),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("curated") / "dataset", side=64)


def shrunk_model(spec):
    config = architecture(spec)
    if config.arch == "convnext":
        small = {"depths": [1] * len(config.depths), "dims": [8 * (1 + n) for n in range(len(config.dims))]}
    else:
        small = {"depth": 2, "dim": 32, "heads": 2, "ffn_hidden": None, "position_grid": 2}
    return {**config.model_dump(mode="json"), **small}


def shrunk(recipe: Recipe) -> Recipe:
    """The same stage, objectives, schedules and options on a network, heads, crops and a batch of next to nothing."""
    models = [recipe.model, *(student.model for student in recipe.students)]
    patch = max((architecture(model).stride for model in models if model and "arch" in model), default=16)

    def sizes(each):
        gram = {"gram_size": 3 * patch if each.gram_size else 0}
        return {"global_size": 2 * patch, "local_size": patch, **gram}

    crops = {**sizes(recipe.crops), "local_count": min(2, recipe.crops.local_count)}
    crops["mixture"] = [{**sizes(each), "probability": each.probability} for each in recipe.crops.mixture]
    head = {"prototypes": 24, "hidden": 32, "bottleneck": 16}
    values = recipe.model_dump(mode="json")
    for name, change in {
        "crops": crops,
        "heads": {kind: {**values["heads"][kind], **head} for kind in ("dino", "ibot")},
        "losses": {"koleo_group": 4},
        "cadence": {"log": 1, "checkpoint": 2, "evaluate": 2, "coherence_images": 4},
    }.items():
        values[name] = {**values[name], **change}
    values["teacher"]["gram_from"] = "newest"
    values |= {"steps": 2, "batch": 8, "device": "cpu", "workers": 0, "compile": False, "export_size": 0}
    if recipe.precision == "bf16":
        values["precision"] = "bf16-emulated"
    if recipe.model and "arch" in recipe.model:
        values["model"] = shrunk_model(recipe.model)
    for student in values["students"]:
        student["model"] = shrunk_model(student["model"])
    return Recipe.model_validate(values)


def pretrained(recipe: Recipe, data: Path, folder: Path) -> Path:
    """A run that ``recipe`` can continue: same heads; the network of the recipe before it in its series."""
    model = {"arch": "vit", "dim": 32, "depth": 2, "heads": 2, "patch_size": 16, "layer_scale": 0.1}
    if recipe.stage == "distil":
        model["patch_size"] = architecture(recipe.students[0].model).stride
    crops = {**recipe.crops.model_dump(mode="json"), "gram_size": 0, "mixture": []}
    heads = {**recipe.heads.model_dump(mode="json"), "matching": "scores"}
    first = Recipe.model_validate(small_recipe(model=model, crops=crops, heads=heads, steps=2, workers=0))
    Trainer(first, str(data), str(folder)).run()
    return folder


@pytest.mark.parametrize("name", recipe_names())
def test_two_real_steps_of_every_recipe_shrunk(name, data, tmp_path):
    recipe = shrunk(load_recipe(name))
    datasets = {name: str(data) for mixed in recipe.mixture for name in mixed.datasets} or str(data)
    more = {}
    if recipe.stage != "pretrain":
        more["teacher"] = str(pretrained(recipe, data, tmp_path / "before"))
    elif recipe.warm_start is not None:
        more["start"] = str(latest_export(pretrained(recipe, data, tmp_path / "before")))
    Trainer(recipe, datasets, str(tmp_path / "run"), **more).run()
    assert events(tmp_path / "run")[0] == "started" and events(tmp_path / "run")[-1] == "finished"
    losses = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert len(losses) == 2 and all(loss == loss and abs(loss) < 1e3 for loss in losses)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_builds_on_the_meta_device(name):
    recipe = load_recipe(name)
    for spec in [recipe.model, *(student.model for student in recipe.students)]:
        if spec is None or "arch" not in spec:  # of the teacher
            continue
        network = build_network(architecture(spec), recipe.heads, 0, "meta")
        assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
        if name in BACKBONES:
            assert sum(p.numel() for p in network.backbone.parameters()) == BACKBONES[name]
        for head, millions in zip((network.dino_head, network.ibot_head), HEADS.get(name, ()), strict=False):
            if millions:  # without the gains, one for each prototype
                count = sum(p.numel() for key, p in head.named_parameters() if not key.endswith("weight_g"))
                assert count / 1e6 == pytest.approx(millions, abs=0.1)
        assert (network.ibot_head is network.dino_head) == recipe.heads.shared


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("dino_vits16", 0.002),
        ("dinov2_vitl16_short", 5.657e-3),
        ("dinov2_vitg14", 3.464e-4),
        ("dinov3_vitl16", 5.657e-3),
        ("dinov3_vit7b16_pretrain", 4.0e-4),
        ("dinov3_vit7b16_gram", 2.4e-4),
        ("dinov3_vit7b16_highres", 7.071e-5),
    ],
)
def test_learning_rates_are_the_published_ones(name, rate):
    recipe = load_recipe(name)
    factor, _ = scaled_learning_rate(recipe.optimiser, recipe.guards, recipe.batch)
    assert factor * recipe.optimiser.learning_rate.peak == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_says_how_it_is_run_and_what_to_expect(name):
    head = []
    for line in (RECIPES / f"{name}.yaml").read_text().splitlines():
        if not line.startswith("#"):
            break
        head.append(line)
    text = " ".join(head)
    assert head and ("python -m training" in head[0] or "torchrun" in head[0] or "make run" in head[0])
    assert f"--recipe {name}" in text or "make run" in text
    if "make run" not in text:
        assert "Hardware and time:" in text and "Published:" in text


def test_schedules_against_published_points():
    gram = load_recipe("dinov3_vit7b16_gram")
    assert isinstance(gram.losses.gram, Schedule) and isinstance(gram.losses.dino_local, Schedule)
    assert gram.losses.gram.at(0, gram.steps) == 0 and gram.losses.gram.at(500, gram.steps) == pytest.approx(1.0)
    assert gram.losses.gram.at(1000, gram.steps) == gram.losses.gram.at(199_999, gram.steps) == 2.0
    assert gram.losses.dino_local.at(0, gram.steps) == 1.0 and gram.losses.dino_local.at(5000, gram.steps) == 0.5
    short = load_recipe("dinov2_vitl16_short")
    assert short.teacher.temperature.at(37_500, short.steps) == 0.07
    assert short.teacher.momentum.at(124_999, short.steps) == pytest.approx(1.0)


def test_the_order_in_which_a_network_is_described_leaves_no_trace():
    from training.recipe import dump_recipe

    described = {"arch": "vit", "dim": 32, "depth": 2, "heads": 2}
    recipes = [small_recipe(model=model) for model in (described, dict(reversed(described.items())))]
    assert len({dump_recipe(Recipe.model_validate(recipe)) for recipe in recipes}) == 1


def test_a_mixture_wants_its_datasets(data, tmp_path):
    recipe = shrunk(load_recipe("dinov3_vit7b16_pretrain"))
    with pytest.raises(UserError, match="give --data web=URL"):
        Trainer(recipe, {"clean": str(data)}, str(tmp_path / "run"))
    with pytest.raises(UserError, match="takes the dataset 'other'"):
        Trainer(recipe, dict.fromkeys(("clean", "web", "other"), str(data)), str(tmp_path / "run"))
    plain = shrunk(load_recipe("dinov3_vitl16"))
    with pytest.raises(UserError, match="has no 'mixture'"):
        Trainer(plain, dict.fromkeys(("clean", "web"), str(data)), str(tmp_path / "run"))


def test_high_resolution_steps_draw_their_sizes_for_all_processes_alike():
    from training.data.loader import sizes_at

    recipe = load_recipe("dinov3_vit7b16_highres")
    drawn = [(each.global_size, each.local_size) for each in (sizes_at(recipe, step) for step in range(4000))]
    shares = {size: drawn.count(size) / 4000 for size in set(drawn)}
    assert shares[512, 112] == pytest.approx(0.3, abs=0.03) and shares[768, 336] == pytest.approx(0.05, abs=0.02)


def test_the_page_of_recipes_tells_their_settings():
    page = (RECIPES.parents[1] / "docs" / "recipes.md").read_text().split("## Networks")[0]
    told = dict(line.strip("| ").split(" | ", 1) for line in page.splitlines() if line.startswith("| `"))
    for name in recipe_names():
        if not name.startswith("embedded"):
            recipe = load_recipe(name)
            _, _, batch, steps, *_ = told[f"`{name}`"].split(" | ")
            assert (batch, steps) == (f"{recipe.batch:,}", f"{recipe.steps:,}"), name
