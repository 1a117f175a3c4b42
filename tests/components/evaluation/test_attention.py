"""Attention and similarity maps against straightforward float64 versions, and the explorer in a browser."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from components.common.report.html import Markup, Section, page
from components.evaluation.attention import (
    CODE_BYTES,
    POINTS,
    SIMILARITY_SCRIPT,
    attention_tiles,
    cls_attention,
    encode_patches,
    explorers,
    patch_at,
    similarities,
    similarity_tiles,
)
from foundry.images import Preprocessing
from tests.components.browser import browser
from tests.components.pages import assert_self_contained, assert_shown, read_page
from training.models.build import build_backbone

VIT = {"arch": "vit", "dim": 24, "depth": 2, "heads": 3, "patch_size": 8, "registers": 2, "position": "learned"}


def regions(side: int, dim: int = 48, seed: int = 0) -> np.ndarray:
    """(side * side, dim) features of three regions: the left half, the right upper and the right lower quarter."""
    rng = np.random.default_rng(seed)
    row, column = np.divmod(np.arange(side * side), side)
    label = np.where(column < side // 2, 0, np.where(row < side // 2, 1, 2))
    return (rng.normal(size=(3, dim))[label] + 0.25 * rng.normal(size=(side * side, dim))).astype(np.float32)


def cosines(patches: np.ndarray, index: int) -> np.ndarray:
    x = patches.astype(np.float64)
    return np.array([x[index] @ row / np.sqrt((x[index] @ x[index]) * (row @ row)) for row in x])


def picture(side: int = 64) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_attention_of_the_cls_token_by_hand() -> None:
    """Of the last block: softmax of scaled products of the CLS token's query with all keys, patches only."""
    model = build_backbone(VIT, seed=0).eval()
    pixels = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    found = cls_attention(model, pixels)
    assert found.shape == (2, 3, 4, 6) and found.dtype == np.float32
    seen = {}
    block = model.blocks[-1]
    block.attn.qkv.register_forward_hook(lambda _module, _inputs, output: seen.update(qkv=output))
    with torch.inference_mode():
        model(pixels)
    qkv = seen["qkv"].double().reshape(2, -1, 3, 3, 8)  # image, token, q or k or v, head, dimension
    query, key = qkv[:, 0, 0], qkv[:, :, 1]
    scores = torch.einsum("bhd,bnhd->bhn", query, key) / 8**0.5
    expected = scores.softmax(-1)[:, :, 3:].reshape(2, 3, 4, 6)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_attention_tiles_are_of_networks_with_attention() -> None:
    preprocessing = Preprocessing(resize=32, crop=32)
    tiles = attention_tiles(build_backbone(VIT, seed=0).eval(), preprocessing, [picture(), picture(50)], "cpu", side=80)
    assert tiles is not None and [tile.shape for tile in tiles] == [(80, 80, 3)] * 2
    assert tiles[0].dtype == np.uint8 and tiles[0].std() > 5
    convnext = build_backbone({"arch": "convnext", "depths": [1, 1, 1, 1], "dims": [4, 8, 8, 8]}, seed=0).eval()
    assert attention_tiles(convnext, preprocessing, [picture()], "cpu") is None


def test_similarities_against_plain_cosines() -> None:
    patches = regions(10)
    found = similarities(patches, 37)
    np.testing.assert_allclose(found.reshape(-1), cosines(patches, 37), atol=1e-6)
    assert found[3, 7] == pytest.approx(1)


def test_points_are_patches() -> None:
    assert [patch_at(point, 9) for point in POINTS] == [4 * 9 + 4, 3 * 9 + 3, 6 * 9 + 6]
    assert patch_at((1.0, 0.0), 4) == 3 and patch_at((0.0, 1.0), 4) == 12


def test_maps_show_the_region_of_the_marked_patch() -> None:
    tiles = similarity_tiles(np.full((60, 60, 3), 128, np.uint8), regions(12), points=[(0.2, 0.5), (0.8, 0.2)], side=60)
    left, corner = (tile.astype(int)[..., :2].sum(-1) for tile in tiles)  # yellow has red and green, dark violet little
    assert left[5:20, 5:25].mean() > 1.3 * left[:, 35:].mean()
    assert corner[15:25, 40:].mean() > 1.3 * corner[:, :25].mean() and corner[:25, 40:].mean() > corner[35:, 40:].mean()
    assert tiles[0][30, 12].tolist() == [0, 0, 0], "the mark"


def test_codes_keep_the_cosines() -> None:
    patches = regions(16, dim=384)
    codes = encode_patches(patches)
    assert codes.values.dtype == np.int8 and codes.values.shape == (256, 32) and codes.side == 16
    few = regions(16, dim=20)
    assert encode_patches(few).values.shape == (256, 20)
    for index in (0, 100, 255):
        close = cosines(encode_patches(few).values, index) - cosines(few, index)
        assert np.abs(close).max() < 0.02, "nothing is left out but digits"
        rough = np.corrcoef(cosines(codes.values, index), cosines(patches, index))[0, 1]
        assert rough > 0.98, "of 384 dimensions 32 are kept"


def test_codes_stay_within_their_bytes() -> None:
    assert encode_patches(regions(20), limit=20 * 20 * 10).values.shape == (400, 10)
    small = encode_patches(regions(21), limit=1000)
    assert small.side == 10 and small.values.nbytes <= 1000
    assert np.corrcoef(cosines(small.values, 0), cosines(regions(10), 0))[0, 1] > 0.9, "means of 2 x 2 patches"
    assert encode_patches(regions(70)).values.nbytes <= CODE_BYTES


def test_equal_features_are_no_trouble() -> None:
    assert (encode_patches(np.zeros((16, 8), np.float32)).values == 0).all()
    assert similarity_tiles(picture(), np.ones((16, 8), np.float32))[0].shape == (112, 112, 3)


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shown = [(f"picture <{number}>", picture(96), regions(12, seed=number)) for number in range(2)]
    section = Section("s", "Similar patches", explorers(shown), scripts=(SIMILARITY_SCRIPT,))
    target = tmp_path_factory.mktemp("explorer") / "report.html"
    target.write_text(page("A page", Markup("<h1>A page</h1>"), [section]), encoding="utf-8")
    return target


def test_the_page_with_explorers_fetches_nothing(explored: Path) -> None:
    parsed, words = read_page(explored.parent)
    assert_self_contained(parsed, explored.read_text(encoding="utf-8"))
    assert "picture <1>" in words and parsed.scripts == [SIMILARITY_SCRIPT]
    with pytest.raises(ValueError, match="7 images are more than the 6"):
        explorers([("x", picture(), regions(4))] * 7)
    assert explorers([]) == ""


def test_a_click_shows_the_map_of_its_patch(explored: Path) -> None:
    """Text and colours of the canvas against cosines of the features themselves."""
    with browser() as tab:
        assert_shown(explored, tab=tab)
        tab.open(explored, 1000, height=1200)
        box = "document.querySelectorAll('.explorer')[1]"
        told = f"{box}.querySelector('p').textContent"
        wait = f"""new Promise((done) => {{
          const look = () => {box}.hidden ? requestAnimationFrame(look) : done(true);
          look();
        }})"""
        assert tab.value(wait) and "row 7, column 7 of 12 x 12" in tab.value(told)
        for target, row, column in (("canvas", 2, 9), ("img", 10, 1)):
            area = tab.value(f"{box}.querySelector('{target}').getBoundingClientRect().toJSON()")
            tab.click(area["x"] + (column + 0.5) * area["width"] / 12, area["y"] + (row + 0.5) * area["height"] / 12)
            assert f"row {row + 1}, column {column + 1} of" in tab.value(told)
            exact = cosines(regions(12, seed=1), row * 12 + column)
            least = float(re.search(r"cosine (-?[\d.]+\d)", tab.value(told)).group(1))
            assert least == pytest.approx(exact.min(), abs=0.1), "32 of 48 dimensions"
            pixels = canvas_of(tab, box).reshape(12, 8, 12, 8, 3)[:, 3:5, :, 3:5].mean((1, 3)).reshape(144, 3)
            heat = pixels[:, 0] + pixels[:, 1] - pixels.mean(0)[:2].sum()  # the picture below is noise
            assert np.corrcoef(heat, exact)[0, 1] > 0.8
        tab.value(f"{box}.querySelector('canvas').focus()")
        tab.press("ArrowRight", 39)
        tab.press("ArrowUp", 38)
        assert "row 10, column 3 of" in tab.value(told)
        first = tab.value("document.querySelectorAll('.explorer p')[0].textContent")
        assert "row 7, column 7 of" in first, "the other explorer stays as it was"
        tab.open(explored, 1000, scripts=False)
        assert tab.requests == []


def canvas_of(tab, box: str) -> np.ndarray:
    address = tab.value(f"{box}.querySelector('canvas').toDataURL('image/png')")
    data = base64.b64decode(address.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float64)
