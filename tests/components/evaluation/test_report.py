"""What the report says in words."""


def test_losses_of_every_kind_are_told() -> None:
    from components.evaluation.report import _recipe_line
    from training.recipe import load_recipe, recipe_names

    for name in recipe_names():
        assert "losses dino 1" in _recipe_line(load_recipe(name).model_dump(mode="json"))
    line = _recipe_line(load_recipe("dinov3_vit7b16_gram").model_dump(mode="json"))
    assert "dino_local 1 to 0.5" in line and "gram 0 to 2" in line and "keep" not in line
