import io
import json

import numpy as np
import pytest

from components.registration.golden import choose_samples, largest_difference, make_variants, read_golden
from foundry.errors import UserError


def test_samples_are_spread_over_clusters_and_always_the_same(dataset):
    """The dataset has six clusters ([0..2] x [0, 1]) of two images."""

    def clusters(images):
        keys = [int(image.source) for image in images]
        assert len(set(keys)) == len(keys)
        return [(key // 4, key % 2) for key in keys]

    six = choose_samples(dataset, 6, 1 << 20)
    assert len(set(clusters(six))) == 6 and six == choose_samples(dataset, 6, 1 << 20)
    assert len(set(clusters(choose_samples(dataset, 3, 1 << 20)))) == 3
    assert len(set(clusters(choose_samples(dataset, 8, 1 << 20)))) == 6
    assert len(choose_samples(dataset, 100, 1 << 20)) == 12
    assert len(choose_samples(dataset, 12, 1)) == 12, "all are larger than the limit"


def test_large_files_are_taken_last(dataset):
    sizes = sorted(len(image.data) for image in choose_samples(dataset, 12, 1 << 20))
    small = choose_samples(dataset, 6, sizes[7])
    assert sum(len(image.data) > sizes[7] for image in small) <= 1, "a cluster of large images gives its smallest"


def test_the_bytes_are_those_of_the_shard(dataset):
    from PIL import Image

    for image in choose_samples(dataset, 12, 1 << 20):
        assert Image.open(io.BytesIO(image.data)).format.lower() == image.format


def test_variants_are_what_their_names_say(dataset):
    from PIL import Image

    source = choose_samples(dataset, 1, 1 << 20)[0]
    opened = {image.format: Image.open(io.BytesIO(image.data)) for image in make_variants(source.data, source.source)}
    assert {name: (image.format, image.mode) for name, image in opened.items()} == {
        "jpeg": ("JPEG", "RGB"), "png": ("PNG", "RGB"), "webp": ("WEBP", "RGB"), "grey": ("PNG", "L"),
        "rgba": ("PNG", "RGBA"), "cmyk": ("JPEG", "CMYK"), "exif-rotated": ("JPEG", "RGB"), "16-bit": ("PNG", "I;16"),
    }  # fmt: skip
    assert opened["exif-rotated"].getexif()[0x0112] == 6
    assert opened["rgba"].getchannel("A").getextrema() == (0, 255)
    deep = np.asarray(opened["16-bit"])
    assert len(np.unique(deep)) > 256, "values that eight bits cannot hold"
    assert np.array_equal(deep >> 8, np.asarray(opened["grey"]))


def test_a_golden_folder_is_checked_on_read(downloaded, tmp_path):
    import shutil

    def damaged(change):
        folder = tmp_path / "golden"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(downloaded["vit"].golden, folder)
        for path in folder.rglob("*"):
            path.chmod(0o755)
        change(folder)
        return folder

    golden, images, embeddings = read_golden(damaged(lambda folder: None))
    assert embeddings.dtype == np.float32 and embeddings.shape == (len(images), golden.embedding_size) == (16, 32)
    assert set(golden.made_with) == {"torch", "transformers", "pillow", "numpy"}
    first = golden.images[0].file
    document = json.loads((downloaded["vit"].golden / "golden.json").read_text())
    cases = {
        "was changed": lambda folder: (folder / first).write_bytes(b"other"),
        "not a readable": lambda folder: (folder / first).unlink(),
        "does not fit": lambda folder: np.save(folder / "embeddings.npy", embeddings[:-1]),
        "schema 2": lambda folder: (folder / "golden.json").write_text(json.dumps({**document, "schema": 2})),
    }
    for words, change in cases.items():
        with pytest.raises(UserError, match=words):
            read_golden(damaged(change))


def test_decoded_digests_tell_decoding_from_network(downloaded):
    import hashlib

    from PIL import Image

    golden, images, _ = read_golden(downloaded["vit"].golden)
    checked = 0
    for entry, data in zip(golden.images, images, strict=True):
        if entry.format in ("png", "webp", "jpeg"):
            pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            assert hashlib.sha256(pixels.tobytes()).hexdigest() == entry.decoded_sha256
            assert pixels.shape[:2] == (entry.height, entry.width)
            checked += 1
    assert checked > 3


def test_largest_difference():
    one = np.array([[1.0, -20.0]], np.float32)
    assert largest_difference(one + np.float32([[0, 0.2]]), one) == pytest.approx(0.01, rel=1e-4)
    assert largest_difference(one * 0 + 0.5, one * 0) == 0.5, "relative to one where values are small"
    assert largest_difference(one, one[:, :1]) == float("inf")
    assert not largest_difference(one * float("nan"), one) <= 1.0
