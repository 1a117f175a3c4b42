from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from components.curation.closeup import SIDE, Difference, differences, take
from components.curation.duplicates import same_closely
from tests.components.curation.pictures import photograph

IDENTITY = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
GRAPHIC = np.array([0.6])
PHOTO = photograph("coffee.png")[:360, :360]


def chart(label: str = "y1", line: bool = False, side: int = 300, last: str = "steelblue") -> np.ndarray:
    image = Image.new("RGB", (300, 300), "white")
    draw = ImageDraw.Draw(image)
    for place, height in enumerate((90, 160, 120, 210, 60)):
        colour = last if place == 4 else "steelblue"
        draw.rectangle((40 + 50 * place, 260 - height, 80 + 50 * place, 260), fill=colour)
    draw.line((30, 20, 30, 260, 290, 260), fill="black", width=2)
    draw.text((50, 258), label, fill="black", font=ImageFont.load_default(36))
    if line:
        draw.line((40, 200, 280, 90), fill="red", width=3)
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))


def jpeg(pixels: np.ndarray, quality: int = 35) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def between(one: np.ndarray, other: np.ndarray, maps: np.ndarray = IDENTITY, mirrored: bool = False) -> Difference:
    sizes = np.array([picture.shape[1::-1] for picture in (one, other)])
    pair = np.array([0]), np.array([1]), np.array([mirrored])
    return differences(np.stack([take(one), take(other)]), sizes, *pair, maps[None])


COPIES = {
    "jpeg": jpeg(chart()),
    "half": chart(side=150),
    "bright": np.clip(chart() * 1.3 - 20, 0, 255).astype(np.uint8),
    "grey": np.repeat(np.asarray(Image.fromarray(chart()).convert("L"))[..., None], 3, axis=2),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_of_a_chart_differs_little(kind: str) -> None:
    seen = between(chart(), COPIES[kind])
    assert seen.largest[0] < 0.4
    assert same_closely(seen, np.array([0.45]), GRAPHIC)[0]
    assert same_closely(between(COPIES[kind], chart()), np.array([0.45]), GRAPHIC)[0]


@pytest.mark.parametrize("other", [chart("x2"), chart(line=True), jpeg(chart("y7"))])
def test_another_letter_or_line_is_seen(other: np.ndarray) -> None:
    seen = between(chart(), other)
    assert seen.largest[0] > 0.45
    assert not same_closely(seen, np.array([0.45]), GRAPHIC)[0]


def test_another_colour_of_the_same_luminance_is_seen() -> None:
    violet = chart(last="#a058c0")  # its luminance is that of the blue to within 2 levels
    seen = between(chart(), violet)
    assert seen.largest[0] < 0.4 and seen.tint[0] > 50
    assert not same_closely(seen, np.array([0.45]), GRAPHIC)[0]
    assert same_closely(seen, np.array([0.45]), np.array([0.1]))[0], "of photographs colours are not asked so closely"


@pytest.mark.parametrize("kind", ["jpeg", "half"])
def test_copies_have_the_colours_of_their_originals(kind: str) -> None:
    seen = between(chart(), COPIES[kind])
    assert seen.tint[0] < 20 and seen.tint_gain[0] == pytest.approx(1, abs=0.05)


def test_colour_is_not_asked_for_where_one_is_grey_or_relit() -> None:
    grey = between(chart(), COPIES["grey"])
    assert (grey.tint[0], grey.tint_gain[0]) == (0, 1)
    pale = (255 - (255 - chart(last="#a058c0").astype(np.float32)) * 0.7).astype(np.uint8)
    assert between(chart(), pale).tint_gain[0] == pytest.approx(0.7, abs=0.05)
    assert same_closely(between(chart(), pale), np.array([0.45]), GRAPHIC)[0]


def test_a_watermark_is_told_from_a_change() -> None:
    image = Image.fromarray(PHOTO)
    draw = ImageDraw.Draw(image)
    for y in range(10, 360, 50):
        for x in range(10, 360, 90):
            draw.text((x, y), "SAMPLE", fill="white", font=ImageFont.load_default(18))
    marked = between(PHOTO, jpeg(np.asarray(image), 85))
    assert marked.largest[0] > 0.45
    assert marked.one_sided[0] > 0.9
    assert marked.spread[0] > 0.7
    assert same_closely(marked, np.array([0.45]), GRAPHIC)[0]
    strange = between(PHOTO, photograph("chelsea.png")[:300, :360])
    assert strange.one_sided[0] < 0.9
    assert not same_closely(strange, np.array([0.45]), GRAPHIC)[0]


def test_an_alignment_is_taken_and_improved() -> None:
    crop = chart()[15:285, 15:285]
    shifted = np.array([[0.9, 0, 0.01], [0, 0.9, -0.01]], np.float32)
    assert between(chart(), crop, shifted).largest[0] < 0.4
    mirrored = chart()[:, ::-1]
    assert between(chart(), np.ascontiguousarray(mirrored), mirrored=True).largest[0] < 0.05
    assert between(chart(), np.ascontiguousarray(mirrored)).largest[0] > 0.45


def test_the_gain_is_that_of_the_template_over_the_source() -> None:
    darker = (PHOTO * 0.6).astype(np.uint8)
    assert between(PHOTO, darker).gain[0] == pytest.approx(0.6, abs=0.03)
    assert between(darker, PHOTO).gain[0] == pytest.approx(1 / 0.6, abs=0.1)
    assert not same_closely(between(darker, PHOTO), np.array([0.45]), GRAPHIC)[0], "more than MAX_GAIN"


def test_plain_pictures_and_no_pairs() -> None:
    seen = between(np.full((80, 80, 3), 90, np.uint8), np.full((80, 80, 3), 90, np.uint8))
    assert seen.largest[0] == 0 and not same_closely(seen, np.array([0.45]), GRAPHIC)[0], "nothing to agree in: no gain"
    none = np.zeros(0, np.int64)
    empty = differences(
        np.zeros((1, SIDE, SIDE, 3), np.uint8), np.ones((1, 2)), none, none, none > 0, IDENTITY[None][:0]
    )
    assert len(empty.largest) == len(empty.gain) == 0


def test_the_result_does_not_depend_on_blocks_or_threads() -> None:
    pictures = np.stack([take(chart(str(number))) for number in range(9)])
    pairs = np.array([(one, other) for one in range(9) for other in range(one)])
    given = (pairs[:, 0], pairs[:, 1], np.zeros(len(pairs), bool), np.tile(IDENTITY, (len(pairs), 1, 1)))
    sizes = np.full((9, 2), 300)
    found = [differences(pictures, sizes, *given, threads=threads) for threads in (1, 3)]
    for name, values in vars(found[0]).items():
        np.testing.assert_array_equal(values, getattr(found[1], name))
    last = differences(pictures, sizes, *(column[-1:] for column in given))
    np.testing.assert_allclose(last.largest, found[0].largest[-1:], rtol=1e-4)
