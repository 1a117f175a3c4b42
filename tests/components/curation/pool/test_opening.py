from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as arrow
import pytest
from pyarrow import parquet

from components.curation.pool import PoolFile, open_pool, pool_digest, read_pool
from components.curation.pool.files import Member, load
from components.curation.pool.opening import expand_braces
from foundry.errors import UserError

FILES = {"a/1.png": b"one", "a/2.png": b"two", "b.jpg": b"three", "c/d/e.gif": b"four"}


def content(url: str | Path, **options: int) -> list[tuple[str, bytes | None]]:
    return [(file.path, file.data) for file in read_pool(str(url), **options)]


def write_folder(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_tar(path: Path, entries: list[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_a_folder_gives_every_file_in_path_order(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pool", {**FILES, ".DS_Store": b"x", "a.txt": b"y"})
    assert content(folder) == [
        (".DS_Store", b"x"),
        ("a/1.png", b"one"),
        ("a/2.png", b"two"),
        ("a.txt", b"y"),
        ("b.jpg", b"three"),
        ("c/d/e.gif", b"four"),
    ]


def test_reading_may_start_anywhere(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pool")
    for start in range(6):
        assert content(folder, start=start) == sorted(FILES.items())[start:]


def test_files_that_cannot_be_had_have_a_reason(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pool", {"big.png": bytes(100), "good.png": b"ok"})
    (folder / "dangling.png").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.png")
    found = {file.path: file for file in read_pool(str(folder), max_bytes=99)}
    assert found["good.png"] == PoolFile("good.png", b"ok")
    assert (found["big.png"].data, found["big.png"].reason) == (None, "too-many-bytes")
    assert "100 bytes" in found["big.png"].detail
    for name in ("dangling.png", "pipe.png"):
        assert (found[name].data, found[name].reason) == (None, "unreadable")


def test_no_more_memory_is_asked_for_than_the_list_says_and_a_file_that_grew_is_whole() -> None:
    content, asked = b"0123456789", []

    def read(limit: int) -> bytes:
        asked.append(limit)
        return content[:limit]

    def loaded(size: int | None, limit: int) -> tuple[bytes | None, str, list[int]]:
        asked.clear()
        file = load(Member("x", size, read, independent=True), limit)
        return file.data, file.reason, list(asked)

    assert loaded(10, 100) == (content, "", [11])
    assert loaded(4, 100) == (content, "", [5, 101])
    assert loaded(None, 100) == (content, "", [101])
    assert loaded(4, 9) == (None, "too-many-bytes", [5, 10])
    assert loaded(10, 9) == (None, "too-many-bytes", [])


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    outside = write_folder(tmp_path / "outside", {"x.png": b"x"})
    folder = write_folder(tmp_path / "pool", {"y.png": b"y"})
    (folder / "linked").symlink_to(outside, target_is_directory=True)
    (folder / "circle").symlink_to(folder, target_is_directory=True)
    assert content(folder) == [("linked/x.png", b"x"), ("y.png", b"y")]


def test_a_name_that_is_no_text_is_shown_and_read(tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    folder.mkdir()
    with open(os.path.join(os.fsencode(folder), b"caf\xe9.png"), "wb") as file:
        file.write(b"data")
    assert content(folder) == [("caf\\xe9.png", b"data")]
    assert len(pool_digest(str(folder))) == 64


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.xz"])
def test_a_tar_gives_its_files_in_stored_order(tmp_path: Path, suffix: str) -> None:
    entries = [("./b.jpg", b"three"), ("a/1.png", b"one"), ("a/1.png", b"again")]
    mode = {".tar": "w", ".tar.xz": "w:xz"}.get(suffix, "w:gz")
    path = write_tar(tmp_path / f"pool{suffix}", entries, mode)
    assert content(path) == [("b.jpg", b"three"), ("a/1.png", b"one"), ("a/1.png", b"again")]
    assert content(path, start=2) == [("a/1.png", b"again")]


def test_links_and_devices_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "pool.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("empty.png"))
    assert [(file.path, file.data, file.reason) for file in read_pool(str(path))] == [
        ("link.png", None, "unreadable"),
        ("empty.png", b"", ""),
    ]


def test_a_zip_gives_its_files(tmp_path: Path) -> None:
    path = tmp_path / "pool.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("a")
        for name, data in FILES.items():
            archive.writestr(name, data)
    assert content(path) == list(FILES.items())


def test_a_zip_member_that_inflates_beyond_the_limit_is_not_inflated(tmp_path: Path) -> None:
    path = tmp_path / "pool.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(10_000_000))
    assert path.stat().st_size < 20_000
    (file,) = read_pool(str(path), max_bytes=1_000_000)
    assert (file.data, file.reason) == (None, "too-many-bytes")


def test_sidecars_of_webdataset_shards_are_no_files_of_the_pool(tmp_path: Path) -> None:
    entries = [
        ("000.jpg", b"A"),
        ("000.json", b"{}"),
        ("000.txt", b"caption"),
        ("001.cls", b"7"),
        ("001.png", b"B"),
        ("002.txt", b"alone"),
        ("x/003.seg.png", b"C"),
        ("x/003.jpg", b"D"),
    ]
    path = write_tar(tmp_path / "shard-0.tar", entries)
    expected = [
        ("000.jpg", b"A"),
        ("001.png", b"B"),
        ("002.txt", b"alone"),
        ("x/003.seg.png", b"C"),
        ("x/003.jpg", b"D"),
    ]
    assert content(path) == expected


def test_sidecars_are_told_as_webdataset_tells_them(tmp_path: Path) -> None:
    import webdataset

    entries = [(f"{n:03d}.{ext}", f"{n}{ext}".encode()) for n in range(5) for ext in ("json", "jpg", "txt")]
    path = write_tar(tmp_path / "shard-0.tar", entries)
    groups = webdataset.WebDataset(str(path), shardshuffle=False)
    assert [data for _, data in content(path)] == [sample["jpg"] for sample in groups]


def test_shards_by_folder_and_by_pattern(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(
            tmp_path / "shards" / f"s-{number:03d}.tar", [(f"{number}.jpg", b"%d" % number), (f"{number}.json", b"")]
        )
    assert content(tmp_path / "shards") == [(f"s-{n:03d}.tar/{n}.jpg", b"%d" % n) for n in range(3)]
    assert content(tmp_path / "shards" / "s-{000..001}.tar") == [
        (f"s-{n:03d}.tar/{n}.jpg", b"%d" % n) for n in range(2)
    ]
    with pytest.raises(UserError, match=r"no such file: .*s-003\.tar"):
        open_pool(str(tmp_path / "shards" / "s-{002..003}.tar"))


def test_braces() -> None:
    assert expand_braces("x/{08..10}-{a,b}.tar") == [f"x/{n}-{x}.tar" for n in ("08", "09", "10") for x in "ab"]
    assert expand_braces("plain.tar") == ["plain.tar"]


def test_archives_inside_a_folder_are_opened_and_a_broken_one_is_one_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pool", {"x.png": b"x"})
    whole = write_tar(folder / "whole.tar", [("1.png", b"1")]).read_bytes()
    (folder / "broken.tar").write_bytes(whole[:700])
    (folder / "noise.zip").write_bytes(b"not a zip at all")
    found = [(file.path, file.data, file.reason) for file in read_pool(str(folder))]
    assert ("whole.tar/1.png", b"1", "") in found
    assert ("x.png", b"x", "") in found
    assert ("broken.tar", None, "unreadable") in found
    assert ("noise.zip", None, "unreadable") in found


@pytest.mark.parametrize("struct", [False, True])
def test_parquet_with_image_bytes(tmp_path: Path, struct: bool) -> None:
    values = [b"one", b"two", None]
    images = [{"bytes": value, "path": f"{n}.png"} for n, value in enumerate(values)] if struct else values
    table = arrow.table({"caption": ["x", "y", "z"], "image": images})
    parquet.write_table(table, tmp_path / "pool.parquet")
    names = ["0.png", "1.png", "2.png"] if struct else [f"row-{n:09d}" for n in range(3)]
    assert content(tmp_path / "pool.parquet") == list(zip(names, [b"one", b"two", b""], strict=True))
    assert content(tmp_path) == [(f"pool.parquet/{n}", d) for n, d in zip(names, [b"one", b"two", b""], strict=True)]


def test_parquet_rows_are_named_by_their_own_column(tmp_path: Path) -> None:
    table = arrow.table({"bytes": [b"one", b"two"], "filename": ["x.png", "y.png"]})
    parquet.write_table(table, tmp_path / "pool.parquet", row_group_size=1)
    assert content(tmp_path / "pool.parquet", start=1) == [("y.png", b"two")]


def test_parquet_without_images_says_so(tmp_path: Path) -> None:
    parquet.write_table(arrow.table({"caption": ["x"]}), tmp_path / "pool.parquet")
    with pytest.raises(UserError, match="no column of encoded images"):
        content(tmp_path / "pool.parquet")
    assert [name for name, _ in content(tmp_path)] == ["pool.parquet"]


def test_a_text_manifest(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    write_folder(tmp_path)
    memory.pipe("/bucket/z.png", b"far")
    lines = [
        "# images",
        "a/1.png",
        "",
        str(tmp_path / "b.jpg"),
        "memory://bucket/z.png",
        "memory://bucket/no.png",
        "gone.png",
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    found = list(read_pool(str(tmp_path / "list.txt")))
    assert [(file.path, file.data) for file in found[:3]] == [
        ("a/1.png", b"one"),
        (str(tmp_path / "b.jpg"), b"three"),
        ("memory://bucket/z.png", b"far"),
    ]
    assert [(file.path, file.reason) for file in found[3:]] == [
        ("memory://bucket/no.png", "unreadable"),
        ("gone.png", "unreadable"),
    ]


def test_a_csv_manifest(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "list.csv").write_text("caption,url\nhello,b.jpg\n'x',a/2.png\n")
    assert content(tmp_path / "list.csv") == [("b.jpg", b"three"), ("a/2.png", b"two")]
    (tmp_path / "bad.csv").write_text("caption,label\nhello,1\n")
    with pytest.raises(UserError, match="no column of image URLs.*caption, label"):
        open_pool(str(tmp_path / "bad.csv"))


def test_an_object_store(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    for name, data in FILES.items():
        memory.pipe(f"/bucket/pool/{name}", data)
    memory.pipe("/bucket/shard.tar", write_tar(tmp_path / "s.tar", [("1.png", b"1")]).read_bytes())
    assert content("memory://bucket/pool") == sorted(FILES.items())
    assert content("memory://bucket/pool", start=2) == sorted(FILES.items())[2:]
    assert content("memory://bucket/shard.tar") == [("1.png", b"1")]
    before = pool_digest("memory://bucket/pool")
    assert before == pool_digest("memory://bucket/pool")
    memory.pipe("/bucket/pool/b.jpg", b"changed")
    assert pool_digest("memory://bucket/pool") != before


def test_a_dvc_dataset_at_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    from dvc.repo import Repo

    repository = tmp_path / "repository"
    repository.mkdir()
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "init", "-q"], cwd=repository, check=True)
    with Repo.init(str(repository)) as repo:
        for version in (b"one", b"two"):
            write_folder(repository / "images", {"x.png": version})
            repo.add(str(repository / "images"))
            subprocess.run(["git", "add", "-A"], cwd=repository, check=True)
            subprocess.run(["git", *identity, "commit", "-qm", "x"], cwd=repository, check=True)
            subprocess.run(["git", "tag", version.decode()], cwd=repository, check=True)
    urls = {version: f"dvc://images?repo={repository}&rev={version}" for version in ("one", "two")}
    assert {version: content(url) for version, url in urls.items()} == {
        "one": [("x.png", b"one")],
        "two": [("x.png", b"two")],
    }
    assert pool_digest(urls["one"]) != pool_digest(urls["two"])
    monkeypatch.chdir(repository)
    assert content("dvc://images?rev=one") == [("x.png", b"one")]
    with pytest.raises(UserError, match="cannot be opened"):
        open_pool(f"dvc://images?repo={repository}&rev=three")
    with pytest.raises(UserError, match="unknown option 'revision'"):
        open_pool("dvc://images?revision=one")


def test_errors_of_people_name_the_pool(tmp_path: Path) -> None:
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    (tmp_path / "picture.png").write_bytes(b"x")
    (tmp_path / "nothing.txt").write_text("# only a comment\n")
    for name, message in {
        "absent/pool": "no such folder or file",
        "absent.tar": "no such folder or file",
        "empty": "the folder is empty",
        "picture.png": "not a pool of images",
        "nothing.txt": "lists no image",
    }.items():
        with pytest.raises(UserError, match=message) as error:
            open_pool(str(tmp_path / name))
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(UserError, match="cannot be opened"):
        open_pool("nowhere://bucket/pool")


@pytest.mark.parametrize("name", ["pool.tar", "pool.tar.gz", "pool.zip"])
def test_a_damaged_archive_is_an_error(tmp_path: Path, name: str) -> None:
    source = write_folder(tmp_path / "source", {f"{n}.png": os.urandom(2000) for n in range(20)})
    kind = {"pool.tar": "tar", "pool.tar.gz": "gztar", "pool.zip": "zip"}[name]
    whole = Path(shutil.make_archive(str(tmp_path / "whole"), kind, source)).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(UserError, match="unreadable archive.*copy or download it again"):
        content(tmp_path / name)
    (tmp_path / name).write_bytes(b"no archive" * 100)
    with pytest.raises(UserError, match="unreadable archive"):
        content(tmp_path / name)


def test_the_digest_follows_names_and_content_and_nothing_else(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pool")
    before = pool_digest(str(folder))
    os.utime(folder / "b.jpg", ns=(1, 1))
    assert pool_digest(str(folder)) == before
    assert pool_digest(str(folder.rename(tmp_path / "moved"))) == before
    folder = tmp_path / "moved"
    (folder / "b.jpg").rename(folder / "bb.jpg")
    renamed = pool_digest(str(folder))
    (folder / "bb.jpg").write_bytes(b"other")
    assert len({before, renamed, pool_digest(str(folder))}) == 3
    archive = write_tar(tmp_path / "one.tar", [("x.png", b"x")])
    assert pool_digest(str(archive)) == pool_digest(str(shutil.copy(archive, tmp_path / "two.tar")))


def test_the_digest_of_a_manifest_follows_its_images(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "list.txt").write_text("b.jpg\n")
    before = pool_digest(str(tmp_path / "list.txt"))
    (tmp_path / "b.jpg").write_bytes(b"changed")
    assert pool_digest(str(tmp_path / "list.txt")) != before


def test_a_settled_file_is_hashed_once(tmp_path: Path, fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.curation.pool import digests

    folder = write_folder(tmp_path / "pool", {"old.png": b"old", "new.png": b"new"})
    os.utime(folder / "old.png", (1_000_000_000, 1_000_000_000))
    read: list[str] = []
    original = digests.sha256_of_file
    monkeypatch.setattr(digests, "sha256_of_file", lambda path: (read.append(path.name), original(path))[1])
    first = pool_digest(str(folder))
    assert pool_digest(str(folder)) == first
    assert read.count("old.png") == 1
    assert read.count("new.png") == 2, "a file changed a moment ago may change again within the same tick"
