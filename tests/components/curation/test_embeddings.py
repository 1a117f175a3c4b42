from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.curation import embeddings
from components.curation.config import CurationConfig
from components.curation.embed import embed_share, main
from components.curation.embeddings import GivenEmbeddings, Parts, PoolFiles, Store, look_through, make_parts
from components.curation.pool import open_pool
from foundry.errors import UserError
from foundry.images import Preprocessing
from tests.components.curation.pictures import write_pool

CONFIG = CurationConfig.model_validate({"decode": {"workers": 1}, "embedding": {"device": "cpu", "dtype": "float32"}})


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from training.models.build import build_backbone
    from training.models.interchange import save_export

    folder = tmp_path_factory.mktemp("network")
    model = build_backbone({"arch": "vit", "dim": 24, "depth": 1, "heads": 2, "patch_size": 8, "registers": 1}, seed=1)
    save_export(model.eval(), folder, Preprocessing(resize=40, crop=32))
    return folder


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder, 21)
    return folder


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(embeddings, "PART_FILES", 8)
    monkeypatch.setattr(embeddings, "BATCH", 3)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # other tests share this process


def expected_vectors(network: Path, data: list[bytes]) -> np.ndarray:
    """By Pillow, transformers' own class and float64, an image at a time."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(network).double().eval()
    rows = []
    for content in data:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        short = min(image.size)
        image = image.resize(tuple(40 * side // short for side in image.size), Image.Resampling.BICUBIC)
        left, top = (image.width - 32) // 2, (image.height - 32) // 2
        pixels = np.asarray(image.crop((left, top, left + 32, top + 32)), np.float64) / 255
        pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        with torch.inference_mode():
            rows.append(model(torch.from_numpy(pixels.transpose(2, 0, 1))[None]).pooler_output[0].numpy())
    found = np.stack(rows)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.usefixtures("small_parts", "fresh_home")
def test_parts_hold_the_features_of_each_image_whoever_makes_them(network: Path, pool: Path) -> None:
    opened = open_pool(str(pool))
    assert opened.count() == 30
    files = look_through(opened, CONFIG.decode, range(4))
    assert len(files.sha256) == 30 and files.parts == 4 and (~files.decoded).sum() == 4
    store = Store.of(network, CONFIG.embedding)
    assert make_parts(opened, files, range(4), network, store, CONFIG) == 4
    paths = [store.path(files, number) for number in range(4)]
    whole = [path.read_bytes() for path in paths]
    rows = np.flatnonzero(files.decoded)
    vectors = Parts(paths).take(rows)
    data = [file.data for number, file in enumerate(opened.files()) if files.decoded[number]]
    np.testing.assert_allclose(vectors, expected_vectors(network, data), atol=2e-5)

    assert make_parts(opened, files, range(4), network, store, CONFIG) == 0, "they are found again"
    for path in paths:
        path.unlink()
    made = [embed_share(CONFIG, str(pool), network, part, 3) for part in (2, 0, 1)]
    assert made == [1, 2, 1] and [path.read_bytes() for path in paths] == whole
    paths[1].unlink()
    paths[3].unlink()
    assert make_parts(opened, files, range(4), network, store, CONFIG) == 2, "what a kill has left is gone on with"
    assert [path.read_bytes() for path in paths] == whole


@pytest.mark.usefixtures("small_parts")
def test_a_part_is_named_by_all_that_decides_it(network: Path, tmp_path: Path) -> None:
    files = PoolFiles(["a" * 64, "b" * 64], np.array([True, True]))
    store = Store.of(network, CONFIG.embedding)
    half = Store.of(network, CONFIG.embedding.model_copy(update={"dtype": "float16"}))
    names = {
        store.path(files, 0),
        half.path(files, 0),
        store.path(PoolFiles(["a" * 64, "c" * 64], files.decoded), 0),
        store.path(PoolFiles(files.sha256, np.array([True, False])), 0),
    }
    assert len(names) == 4
    files.write(tmp_path / "known.npz")
    assert store.path(PoolFiles.read(tmp_path / "known.npz"), 0) == store.path(files, 0)


@pytest.mark.usefixtures("small_parts", "fresh_home")
def test_a_pool_that_changes_meanwhile_is_told(network: Path, tmp_path: Path) -> None:
    write_pool(tmp_path / "pool", 3)
    opened = open_pool(str(tmp_path / "pool"))
    files = look_through(opened, CONFIG.decode, range(2))
    store = Store.of(network, CONFIG.embedding)
    (tmp_path / "pool" / "0" / "000.png").write_bytes((tmp_path / "pool" / "1" / "001.png").read_bytes())
    with pytest.raises(UserError, match=r"'0/000.png' changed while it was read"):
        make_parts(opened, files, range(2), network, store, CONFIG)


def test_take_reads_rows_of_any_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "PART_FILES", 4)
    rows = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float16)
    paths = [tmp_path / f"{number}.npy" for number in range(3)]
    for number, path in enumerate(paths):
        np.save(path, rows[4 * number : 4 * number + 4])
    wanted = np.array([1, 2, 8, 10])
    expected = rows[wanted].astype(np.float64)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    parts = Parts(paths)
    np.testing.assert_allclose(parts.take(wanted), expected, rtol=1e-6)
    mapped = parts.take(wanted, tmp_path / "work" / "vectors.npy")
    assert isinstance(mapped, np.memmap) and (mapped == parts.take(wanted)).all()


def test_given_embeddings_are_found_by_key(tmp_path: Path) -> None:
    digests = [f"{number:064x}"[::-1] for number in (5, 1, 9, 3)]
    vectors = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    np.save(tmp_path / "keys.npy", np.array([digest[:24] for digest in digests], "S"))
    given = GivenEmbeddings(tmp_path)
    found = given.take([digests[2], digests[0]], ["c", "a"])
    np.testing.assert_allclose(found, vectors[[2, 0]] / np.linalg.norm(vectors[[2, 0]], axis=1, keepdims=True))
    with pytest.raises(UserError, match=r"1 of 2 images have no embedding \(first b.png\)"):
        given.take([digests[1], "f" * 64], ["a.png", "b.png"])
    np.save(tmp_path / "keys.npy", np.array(["short"] * 4, "S"))
    with pytest.raises(UserError, match="a key for each row"):
        GivenEmbeddings(tmp_path)
    (tmp_path / "keys.npy").unlink()
    with pytest.raises(UserError, match=r"keys.npy is missing"):
        GivenEmbeddings(tmp_path)


def test_the_command_tells_wrong_shares_and_networks(network: Path, pool: Path, tmp_path: Path) -> None:
    arguments = ["--pool", str(pool), "--backbone", str(network), "--params", "params.yaml"]
    with pytest.raises(UserError, match="--part 2: give one of 0 to 1"):
        main([*arguments, "--part", "2", "--parts", "2"])
    with pytest.raises(UserError, match="leave --parts out"):
        main([*arguments, "--parts", "2", "--output", str(tmp_path / "out")])
