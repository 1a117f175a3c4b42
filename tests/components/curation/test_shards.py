from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.curation.pool import PoolFile
from components.curation.shards import Place, Sample, key_of, lay_out, shard_name, write_shards
from foundry.errors import UserError
from tests.components.curation.pictures import crops, encode

FILES = [encode(piece, "JPEG" if number % 2 else "PNG") for number, piece in enumerate(crops(9, 40))]


def sample(row: int, data: bytes) -> Sample:
    digest = hashlib.sha256(data).hexdigest()
    extension = "jpg" if data[:2] == b"\xff\xd8" else "png"
    return Sample(row, key_of(digest), extension, digest, len(data), 40, 40, f"pool/naïve {row}.png")


SAMPLES = sorted((sample(row, data) for row, data in enumerate(FILES)), key=lambda item: item.key)


def pool(files: list[bytes] = FILES) -> Iterator[PoolFile]:
    return (PoolFile(f"pool/naïve {row}.png", data) for row, data in enumerate(files))


def write(folder: Path, shard_bytes: int, files: Iterator[PoolFile] | None = None) -> list[Place]:
    places, sizes = lay_out(SAMPLES, shard_bytes)
    write_shards(folder, SAMPLES, places, sizes, files or pool(), "the pool")
    return places


@pytest.mark.parametrize("shard_bytes", [1, 12_000, 25_000, 10_000_000])
def test_shards_hold_the_original_bytes_where_the_layout_says(tmp_path: Path, shard_bytes: int) -> None:
    places = write(tmp_path, shard_bytes)
    found: dict[str, bytes] = {}
    for number in range(max(place.shard for place in places) + 1):
        path = tmp_path / shard_name(number)
        with tarfile.open(path) as archive:
            members = archive.getmembers()
            assert path.stat().st_size <= max(shard_bytes, 0) + 10_240 or len(members) == 2
            for member in members:
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
                assert member.mode == 0o644 and member.isfile()
                content = archive.extractfile(member)
                assert content is not None
                found[member.name] = content.read()
    assert len(found) == 2 * len(SAMPLES)
    for item, place in zip(SAMPLES, places, strict=True):
        data = FILES[item.row]
        assert found[f"{item.key}.{item.extension}"] == data
        facts = {"key": item.key, "sha256": item.sha256, "width": 40, "height": 40, "source": item.source}
        assert json.loads(found[f"{item.key}.json"]) == facts
        with (tmp_path / shard_name(place.shard)).open("rb") as shard:
            shard.seek(place.offset)
            assert shard.read(item.length) == data


def test_a_shard_is_as_full_as_its_size_allows() -> None:
    places, sizes = lay_out(SAMPLES, 30_000)
    assert all(size <= 30_000 + 10_240 for size in sizes)
    for number in range(len(sizes) - 1):
        following = next(i for i, place in enumerate(places) if place.shard == number + 1)
        used = sum(
            1024 + -(-SAMPLES[i].length // 512) * 512 + 512 for i, place in enumerate(places) if place.shard == number
        )
        assert used + 1024 + SAMPLES[following].length + 512 > 30_000 - 2048
    assert lay_out([], 100) == ([], [])


def test_webdataset_and_gnu_tar_read_them(tmp_path: Path) -> None:
    import webdataset

    write(tmp_path, 10_000_000)
    shard = tmp_path / shard_name(0)
    found = {item["__key__"]: item for item in webdataset.WebDataset(str(shard), shardshuffle=False).decode("rgb8")}
    assert set(found) == {item.key for item in SAMPLES}
    for item in SAMPLES:
        assert found[item.key][item.extension].shape[2] == 3
        assert found[item.key]["json"]["sha256"] == item.sha256
    listed = subprocess.run(["tar", "tf", str(shard)], capture_output=True, text=True, check=True)
    assert listed.stderr == "" and len(listed.stdout.split()) == 2 * len(SAMPLES)


def test_the_order_of_the_pool_and_a_second_writing_change_no_byte(tmp_path: Path) -> None:
    write(tmp_path / "one", 12_000)
    shards = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    write(tmp_path / "one", 12_000)
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()} == shards


def test_few_shards_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.curation import shards

    write(tmp_path / "many", 1)
    monkeypatch.setattr(shards, "OPEN_SHARDS", 2)
    write(tmp_path / "few", 1)
    names = sorted(path.name for path in (tmp_path / "many").iterdir())
    assert len(names) == len(SAMPLES)
    assert all((tmp_path / "few" / name).read_bytes() == (tmp_path / "many" / name).read_bytes() for name in names)


@pytest.mark.parametrize("change", ["other bytes", "gone", "shorter"])
def test_a_pool_that_changed_meanwhile_is_an_error(tmp_path: Path, change: str) -> None:
    files = list(pool())
    if change == "other bytes":
        files[4] = PoolFile(files[4].path, FILES[3])
    elif change == "gone":
        files[4] = PoolFile(files[4].path, None, "unreadable", "")
    else:
        del files[-1]
    with pytest.raises(UserError, match="the pool: 'pool/naïve [48].png' changed while the pool was read"):
        write(tmp_path, 12_000, iter(files))


def test_keys_come_from_the_content() -> None:
    assert key_of(hashlib.sha256(b"x").hexdigest()) == hashlib.sha256(b"x").hexdigest()[:24]
    assert len({item.key for item in SAMPLES}) == len(SAMPLES)
