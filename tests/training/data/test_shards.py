import os
import pickle

import fsspec
import pytest

from foundry.errors import UserError
from tests.training.curated import encoded, write_dataset
from training.data import shards
from training.data.shards import JointDataset, ShardDataset


def test_reads_each_image_by_its_byte_range(tmp_path):
    dataset = ShardDataset(str(write_dataset(tmp_path / "d", count=7)))
    assert len(dataset) == 7
    for index in range(7):
        assert dataset.read(index) == encoded(int(dataset.key(index).removeprefix("image")))


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "OPEN_SHARDS", 3)
    dataset = ShardDataset(str(write_dataset(tmp_path / "d", count=20, shards=10)))
    for index in [*range(20), *range(20)]:
        assert dataset.read(index) == encoded(int(dataset.key(index).removeprefix("image")))
    opened = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    assert sum(path.startswith(str(tmp_path / "d" / "shards")) for path in opened) == 3


def test_reads_from_an_object_store_and_after_pickling(tmp_path):
    folder = write_dataset(tmp_path / "d", count=4)
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/curated", recursive=True)
    try:
        dataset = pickle.loads(pickle.dumps(ShardDataset("memory://curated")))
        assert [dataset.read(i) for i in range(4)] == [ShardDataset(str(folder)).read(i) for i in range(4)]
    finally:
        memory.rm("/curated", recursive=True)


def test_bad_datasets_are_refused_plainly(tmp_path):
    with pytest.raises(UserError, match="not a curated dataset"):
        ShardDataset(str(tmp_path))
    folder = write_dataset(tmp_path / "d", count=4)
    shard = folder / "shards" / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(UserError, match="damaged"):
        ShardDataset(str(folder)).read(1)
    shard.unlink()
    with pytest.raises(UserError, match="shard is missing"):
        ShardDataset(str(folder)).read(0)
    (folder / "dataset.json").write_text('{"schema": 99}')
    with pytest.raises(UserError, match="schema 99"):
        ShardDataset(str(folder))


def test_images_from_elsewhere_are_read_once_up_to_the_cache_s_size(tmp_path):
    folder = write_dataset(tmp_path / "d", count=6)
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/cached", recursive=True)
    plain = [ShardDataset(str(folder)).read(i) for i in range(6)]
    room = sum(map(len, plain[:4])) + 10
    dataset = ShardDataset("memory://cached", tmp_path / "cache", room)
    assert [dataset.read(i) for i in range(6)] == plain
    memory.rm("/cached/shards", recursive=True)
    again = pickle.loads(pickle.dumps(dataset))
    assert [again.read(i) for i in range(4)] == plain[:4]
    with pytest.raises(FileNotFoundError):
        again.read(4)
    memory.rm("/cached", recursive=True)


def test_joined_datasets_are_numbered_under_each_other(tmp_path):
    first = ShardDataset(str(write_dataset(tmp_path / "a", count=3, shards=1)))
    second = ShardDataset(str(write_dataset(tmp_path / "b", count=5)))
    joined = JointDataset([first, second])
    assert len(joined) == 8 and list(joined.members(1)) == [3, 4, 5, 6, 7]
    assert joined.read(2) == first.read(2) and joined.read(3) == second.read(0) and joined.read(7) == second.read(4)
