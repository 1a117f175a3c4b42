from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from components.curation import closeup
from components.curation.config import DuplicateConfig
from components.curation.duplicates import (
    Groups,
    Images,
    Reader,
    connected_components,
    equal_pairs,
    find_duplicates,
    without_bridges,
)
from components.curation.measurement import measure
from tests.components.curation.pictures import crops, encode, photograph


def images_of(files: dict[str, bytes], evaluation: Sequence[str] = ()) -> Images:
    import hashlib

    from foundry.images import decode_image

    found = [measure(decode_image(data)) for data in files.values()]
    return Images(
        path=list(files),
        sha256=[hashlib.sha256(data).hexdigest() for data in files.values()],
        pixels_sha256=[item.pixels_sha256 for item in found],
        size=np.array([len(data) for data in files.values()]),
        width=np.array([item.width for item in found]),
        height=np.array([item.height for item in found]),
        hash=np.array([item.hash for item in found], dtype=np.uint64),
        grey=np.stack([item.grey for item in found]),
        colour=np.stack([item.colour for item in found]),
        evaluation=np.array([path in evaluation for path in files]),
    )


def reader(files: dict[str, bytes]) -> Reader:
    """Close-ups of ``files`` by position."""
    from foundry.images import decode_image

    contents = list(files.values())
    return lambda rows: (closeup.take(decode_image(contents[row])) for row in rows)


def kept_of(
    files: dict[str, bytes], evaluation: Sequence[str] = (), read: Reader | None = None, **settings: float
) -> dict[str, tuple[str, str]]:
    """{path: (path of the one kept of its group, reason)}."""
    images = images_of(files, evaluation)
    config = DuplicateConfig(**settings)  # type: ignore[arg-type]
    groups: Groups = find_duplicates(images, config, read or reader(files))
    names = list(files)
    return {
        name: (names[keeper], reason) for name, keeper, reason in zip(names, groups.kept, groups.reason, strict=True)
    }


def icon(text: str, colour: str = "black") -> bytes:
    image = Image.new("RGB", (96, 96), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((14, 14, 82, 82), outline="navy", width=5)
    draw.text((48, 48), text, fill=colour, anchor="mm", font=ImageFont.load_default(34))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


PHOTO = np.ascontiguousarray(photograph("coffee.png")[:360, :480])


def changed_copies() -> dict[str, bytes]:
    image = Image.fromarray(PHOTO)
    marked = image.copy()
    draw = ImageDraw.Draw(marked)
    for y in range(20, 360, 60):
        draw.text((30 + y % 80, y), "SAMPLE    SAMPLE    SAMPLE", fill="white", font=ImageFont.load_default(16))
    variants = {
        "smaller": image.resize((240, 180), Image.Resampling.LANCZOS),
        "grey": image.convert("L").convert("RGB"),
        "bright": image.point(lambda level: min(255, int(level * 1.25 + 10))),
        "caption": Image.fromarray(np.pad(PHOTO, ((0, 50), (0, 0), (0, 0)), constant_values=255)),
        "border": Image.fromarray(np.pad(PHOTO, ((25, 25), (25, 25), (0, 0)), constant_values=0)),
        "watermark": marked,
        "crop": image.crop((40, 20, 448, 326)),
        "mirror": image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "rotated": image.rotate(4),
    }
    files = {}
    for name, variant in variants.items():
        file = io.BytesIO()
        variant.save(file, "JPEG", quality=85)
        files[name] = file.getvalue()
    file = io.BytesIO()
    image.save(file, "JPEG", quality=25)
    return {**files, "jpeg": file.getvalue()}


def test_changed_copies_are_found_among_other_photographs() -> None:
    files = {"original": encode(PHOTO), **changed_copies()}
    others = {f"other-{number:02d}": encode(piece) for number, piece in enumerate(crops(40))}
    found = kept_of({**others, **files})
    assert {found[name][0] for name in files} == {"border"}, "one group; the largest is kept"
    assert {found[name][1] for name in files} == {"", "near-duplicate"}
    assert all(found[name] == (name, "") for name in others)


def test_nothing_is_kept_that_an_evaluation_set_has_a_copy_of() -> None:
    files = {"original": encode(PHOTO), **changed_copies()}
    others = {f"other-{number:02d}": encode(piece) for number, piece in enumerate(crops(8))}
    for held_out in ("original", "crop"):
        found = kept_of({**others, **files}, evaluation=[held_out, "other-03"])
        assert {found[name] for name in files if name != held_out} == {(held_out, "evaluation-copy")}
        assert all(found[name] == (name, "") for name in others)
    found = kept_of({"a": encode(PHOTO), "b": encode(PHOTO)}, evaluation=["b"], near=False)
    assert found == {"a": ("b", "evaluation-copy"), "b": ("b", "")}


def test_near_duplicates_may_stay() -> None:
    found = kept_of({"original": encode(PHOTO), **changed_copies()}, near=False)
    assert all(keeper == name for name, (keeper, _) in found.items())


def test_equal_bytes_and_equal_pixels_have_their_own_reasons() -> None:
    data = encode(PHOTO)
    files = {"b": data, "a": data, "large": encode(PHOTO, compress_level=0), "bmp": encode(PHOTO, "BMP")}
    found = kept_of(files, near=False)
    keeper = max(files, key=lambda name: len(files[name]))
    assert found["a"] == found["b"] == (keeper, "same-pixels")
    assert found[keeper] == (keeper, "")
    assert kept_of({"b": data, "a": data}) == {"b": ("a", "exact-duplicate"), "a": ("a", "")}


def test_the_best_of_a_group_is_kept() -> None:
    half = PHOTO[::2, ::2]
    grey = np.repeat(half.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    files = {
        "z-large": encode(PHOTO),
        "small-fine": encode(half, "JPEG", quality=95),
        "small-coarse": encode(half, "JPEG", quality=40),
        "a-grey": encode(grey),
    }
    images = images_of(files)
    assert np.array(list(files))[np.argsort(images.ranks())].tolist() == [
        "z-large",
        "small-fine",
        "small-coarse",
        "a-grey",
    ]
    groups = find_duplicates(images, DuplicateConfig())
    assert groups.kept.tolist() == [0, 0, 0, 0]
    assert groups.advantage == ["resolution"] * 4
    without = images_of({name: files[name] for name in ("a-grey", "small-coarse", "small-fine")})
    groups = find_duplicates(without, DuplicateConfig())
    assert groups.kept.tolist() == [2, 2, 2]
    assert groups.advantage == ["colour", "bytes", "bytes"]
    assert groups.sizes.tolist() == [3, 3, 3]


def test_look_alikes_stay_apart() -> None:
    files = {f"icon-{text}": icon(text) for text in ("A", "8", "OK", "X", "?")}
    red, green = PHOTO.copy(), PHOTO.copy()
    red[..., 1:] //= 3
    green[..., ::2] //= 3
    files |= {"red": encode(red), "green": encode(green)}
    files |= {f"piece-{number}": encode(piece) for number, piece in enumerate(crops(24, 64))}
    found = kept_of(files)
    assert {name: keeper for name, (keeper, _) in found.items() if keeper != name} == {}


def test_icons_that_differ_in_a_letter_stay_apart_and_their_copies_join() -> None:
    files = {f"icon-{text}": icon(text) for text in ("OC", "OG", "C", "G", "E", "F")}
    for text in ("OG", "E"):
        file = io.BytesIO()
        Image.open(io.BytesIO(files[f"icon-{text}"])).resize((72, 72), Image.Resampling.LANCZOS).save(file, "JPEG")
        files[f"copy-{text}"] = file.getvalue()
    found = kept_of(files)
    assert {name: found[name][0] for name in files if found[name][0] != name} == {
        "copy-OG": "icon-OG",
        "copy-E": "icon-E",
    }


def test_what_may_be_a_copy_of_an_evaluation_image_is_left_out_without_a_closer_look() -> None:
    files = {f"icon-{text}": icon(text) for text in ("OC", "OG", "F")}
    found = kept_of(files, evaluation=["icon-OG"])
    assert found["icon-OC"] == ("icon-OG", "evaluation-copy")
    assert found["icon-F"] == ("icon-F", "")


def test_only_doubtful_images_are_read_again_and_in_their_order() -> None:
    asked: list[int] = []
    files = {"photo": encode(PHOTO), "smaller": encode(PHOTO[::2, ::2])}
    files |= {f"icon-{text}": icon(text) for text in ("OC", "OG")}

    def read(rows: Sequence[int]) -> Iterator[np.ndarray]:
        asked.extend(rows)
        return reader(files)(rows)

    assert kept_of(files, read=read)["smaller"] == ("photo", "near-duplicate")
    assert asked == [2, 3]


def test_plain_images_are_joined_only_where_they_are_equal() -> None:
    def plain(level: int, side: int) -> bytes:
        return encode(np.full((side, side, 3), level, np.uint8))

    files = {"white": plain(255, 40), "white again": plain(255, 40), "large": plain(255, 50), "grey": plain(128, 40)}
    found = kept_of(files)
    assert found["white again"] == ("white", "exact-duplicate")
    assert [found[name][0] for name in ("white", "large", "grey")] == ["white", "large", "grey"]


def test_a_grey_picture_does_not_join_pictures_that_differ_in_colour_alone() -> None:
    """0 to 2 are coloured copies, 3 is another in colour; 4 and 5, grey, are copies of all; 6 of 3 alone."""
    coloured = np.array([True, True, True, True, False, False, False])
    pairs = [(0, 1), (1, 2), (4, 5), (0, 4), (2, 5), (3, 4), (3, 6)]
    joined = without_bridges(np.array(pairs), coloured)
    assert sorted(map(tuple, joined.tolist())) == [(0, 1), (0, 4), (1, 2), (2, 5), (3, 6), (4, 5)]
    even = without_bridges(np.array([(4, 3), (0, 4)]), coloured)
    assert even.tolist() == [[0, 4]]
    assert without_bridges(np.zeros((0, 2), np.int64), coloured).shape == (0, 2)


def test_a_grey_copy_of_earlier_joins_no_other_coloured_picture() -> None:
    coloured = np.array([True, False, True, False])
    pairs, before = np.array([(1, 2), (1, 3)]), np.array([(1, 0)])
    assert without_bridges(pairs, coloured, before).tolist() == [[1, 3]]
    assert without_bridges(pairs, coloured).tolist() == [[1, 3], [1, 2]]


@pytest.mark.parametrize("seed", range(5))
def test_components_against_a_search_through_the_graph(seed: int) -> None:
    generator = np.random.default_rng(seed)
    pairs = generator.integers(0, 60, (45, 2))
    expected = np.arange(60)
    for _ in range(60):
        for one, other in pairs:
            expected[[one, other]] = min(expected[one], expected[other])
    np.testing.assert_array_equal(connected_components(60, pairs), expected)
    assert connected_components(3, np.zeros((0, 2), np.int64)).tolist() == [0, 1, 2]


def test_equal_pairs() -> None:
    assert equal_pairs(["x", "y", "x", "z", "x", "y"]).tolist() == [[0, 2], [0, 4], [1, 5]]
    assert equal_pairs([]).shape == (0, 2)


def test_a_single_image() -> None:
    assert kept_of({"only": encode(PHOTO)}) == {"only": ("only", "")}
