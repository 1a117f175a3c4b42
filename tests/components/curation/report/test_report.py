"""The page of a curated dataset, against what the pool and the tables say by other means."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image
from scipy.stats import entropy

from components.curation.config import CurationConfig
from components.curation.dataset import CuratedDataset, content_digest
from components.curation.pool import open_pool
from components.curation.report import write_report
from components.curation.report.__main__ import main
from components.curation.report.facts import read_facts
from components.curation.report.reasons import GROUPS
from components.curation.step import run
from foundry.errors import UserError
from tests.components.curation.pictures import crops, encode, write_pool
from tests.components.pages import assert_self_contained, read_page

REPOSITORY = Path(__file__).parents[4]
HOSTILE = (
    "<img src=x onerror=alert(1)>.png",
    "\"quoted' & &amp;.png",
    "<script>alert(1)<.png",
    "evil\u202egnp.exe.png",
    "two\nlines.png",
)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder, 60)
    for number, name in enumerate(HOSTILE):
        (folder / name).write_bytes(encode(np.full((30 + number, 40, 3), 40 * number, np.uint8)))
    (folder / f"copy of {HOSTILE[0]}").write_bytes((folder / "1" / "001.png").read_bytes())
    (folder / f"broken {HOSTILE[2]}").write_bytes(b"no image")
    Path(os.fsdecode(os.fsencode(folder) + b"/latin-\xe9.png")).write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def curated(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curated")
    config = CurationConfig.model_validate({"decode": {"workers": 1}, "balance": {"fraction": 0.7}})
    run(config, {"pool": str(pool)}, folder)
    return folder


@pytest.fixture
def copy(curated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(curated, tmp_path / "dataset"))


def cells_of(folder: Path, heading: str) -> dict[str, list[str]]:
    """The rows below the heading row that begins with ``heading``, by first cell."""
    rows = iter(read_page(folder)[0].rows)
    width = len(next(row for row in rows if row[0] == heading))
    found: dict[str, list[str]] = {}
    for row in rows:
        if len(row) != width or row[0] in found:
            break
        found[row[0]] = row[1:]
    return found


def number(cell: str) -> float:
    return float(cell.replace(",", ""))


def test_it_is_one_self_contained_file_with_every_part(curated: Path) -> None:
    page, words = read_page(curated)
    assert_self_contained(page, (curated / "report.html").read_text(encoding="utf-8"))
    for heading in ("Every file", "Rejected files", "Copies", "Concepts", "What concepts show", "Sizes", "Origin"):
        assert heading in words
    assert "svg" in page.tags and len(page.images) > 40
    digests = json.loads((curated / "dataset.json").read_text())["digests"]
    assert all(digest in words for digest in digests.values()) and "balance.fraction 0.7 0.9" in words


def test_every_file_is_in_one_row_and_in_the_sentence(curated: Path, pool: Path) -> None:
    files = sum(len(names) for _, _, names in os.walk(os.fsencode(pool)))
    rows = cells_of(curated, "Reason")
    total = rows.pop("all")
    counts = {reason: int(number(row[1])) for reason, row in rows.items()}
    assert sum(counts.values()) == files == number(total[1])
    table = parquet.read_table(curated / "rejected.parquet")
    reasons = Counter(table["reason"].to_pylist())
    assert counts == {"kept": len(parquet.read_table(curated / "samples.parquet")), **reasons}
    words = read_page(curated)[1]
    copies = sum(reasons[reason] for reason in ("exact-duplicate", "same-pixels", "near-duplicate"))
    assert f"Of {files} files in the pool, {counts['kept']} are kept" in words
    assert f"{copies} are copies of another file" in words and f"{reasons['balance']} were not drawn" in words


def test_a_dataset_that_lost_files_says_so(copy: Path) -> None:
    description = json.loads((copy / "dataset.json").read_text())
    description["counts"]["files"] += 1
    (copy / "dataset.json").write_text(json.dumps(description))
    write_report(copy, copy / "report.html")
    assert "Not accounted for" in read_page(copy)[1]


def test_sizes_are_those_of_the_files(curated: Path, pool: Path) -> None:
    sizes: dict[str, tuple[int, int]] = {}
    for path in pool.rglob("*"):
        try:
            with Image.open(path) as image:
                image.load()
                sizes[path.relative_to(pool).as_posix()] = image.size
        except OSError:
            pass
    rejected = parquet.read_table(curated / "rejected.parquet").to_pylist()
    known = {row["path"]: (row["width"], row["height"]) for row in rejected if row["width"] is not None}
    assert known == {path: sizes[path] for path in {row["path"] for row in rejected} & set(sizes)}
    rows = cells_of(curated, "Side in pixels")
    sides = np.sqrt([width * height for width, height in sizes.values()])
    expected = [len(sides), *np.percentile(sides, [0, 5, 50, 95, 100])]
    assert [number(cell) for cell in rows["Before"]] == [round(value) for value in expected]
    shapes = cells_of(curated, "Width : height")
    squares = sum(0.95 <= width / height < 1 / 0.95 for width, height in sizes.values())
    assert number(shapes["square, within 5 %"][1]) == squares
    assert sum(number(row[1]) for row in shapes.values()) == len(sizes)


def test_concepts_by_their_definition(curated: Path) -> None:
    samples = parquet.read_table(curated / "samples.parquet").to_pylist()
    rejected = parquet.read_table(curated / "rejected.parquet").to_pylist()
    undrawn = [row for row in rejected if row["reason"] == "balance"]
    assert all(row["detail"].startswith(f"cluster {row['cluster']}:") for row in undrawn)
    assert all(row["cluster"] is None for row in rejected if row["reason"] != "balance")
    before = Counter(row["cluster"] for row in [*samples, *undrawn])
    after = Counter({row["cluster"]: 0.0 for row in samples})
    for row in samples:
        after[row["cluster"]] += row["weight"]
    rows = cells_of(curated, "Which images")
    for title, sizes in (("Before", before), ("After", after)):
        values = list(sizes.values())
        spread = float(entropy(values))
        assert number(rows[title][0]) == sum(values)
        assert rows[title][2:4] == [f"{spread:.3f}", f"{np.exp(spread):.1f}"]
    drawn, generator = int(sum(after.values())), np.random.default_rng(5)
    everything = np.repeat(np.arange(len(before)), list(before.values()))
    draws = [np.bincount(generator.choice(everything, drawn, replace=False)) for _ in range(300)]
    uniform = np.exp([entropy(draw) for draw in draws])
    concepts = read_facts(CuratedDataset.open(curated)).concepts
    assert concepts is not None
    assert abs(concepts.uniform - uniform.mean()) < 5 * uniform.std() / np.sqrt(20)
    assert float(rows["After"][3]) > float(rows["Uniform sample"][3])


def test_pictures_show_what_their_words_say(curated: Path, pool: Path) -> None:
    page, _ = read_page(curated)
    checked = 0
    for image in page.images:
        kind, path = image["alt"].split(": ", 1)
        if not (pool / path).is_file():
            continue  # a name that is shown with escapes
        data = base64.b64decode(image["src"].partition(",")[2])
        shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=float)
        original = Image.open(pool / path).convert("RGB")
        size = (int(image["width"]), int(image["height"]))
        assert shown.shape[:2] == size[::-1] and max(size) <= 112
        assert np.abs(shown - np.asarray(original.resize(size), dtype=float)).mean() < 12, path
        checked += kind.startswith("rejected as")
    assert checked > 8
    alternatives = {image["alt"] for image in page.images}
    assert "rejected as blank: plain/white.png" in alternatives
    assert "exact-duplicate: again/copy.png" in alternatives


def test_names_cannot_disturb_the_page(curated: Path) -> None:
    html = (curated / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html and "<img src=x" not in html and "\u202e" not in html
    _, words = read_page(curated)
    for shown in (HOSTILE[0], HOSTILE[1], "evil\\u202egnp.exe.png", "two\\nlines.png", "latin-\\xe9.png"):
        assert shown in words


def test_the_same_dataset_gives_the_same_page(curated: Path, pool: Path, tmp_path: Path) -> None:
    opened = open_pool(str(pool))
    write_report(curated, tmp_path / "again.html", pool=opened, url=str(pool))
    assert (tmp_path / "again.html").read_bytes() == (curated / "report.html").read_bytes()
    assert main([str(curated), "--output", str(tmp_path / "command.html"), "--pool", str(pool)]) == 0
    moved = Path(shutil.copytree(pool, tmp_path / pool.name))
    shutil.copytree(curated, tmp_path / "moved")
    assert main([str(tmp_path / "moved"), "--output", str(tmp_path / "moved.html"), "--pool", str(moved)]) == 0
    written = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("command.html", "moved.html")}
    assert written == {hashlib.sha256((curated / "report.html").read_bytes()).hexdigest()}


def test_without_the_pool_files_are_named(curated: Path, tmp_path: Path) -> None:
    assert main([str(curated), "--output", str(tmp_path / "report.html")]) == 0
    page, words = read_page(tmp_path)
    assert not any(image["alt"].startswith("rejected as") for image in page.images)
    assert "again/copy.png" in words and "broken/page.jpg" in words
    with pytest.raises(UserError, match="no such folder or file"):
        main([str(curated), "--output", str(tmp_path / "report.html"), "--pool", str(tmp_path / "gone")])


def test_datasets_of_earlier_versions_are_read(copy: Path) -> None:
    table = parquet.read_table(copy / "rejected.parquet")
    parquet.write_table(table.drop_columns(["width", "height", "cluster"]), copy / "rejected.parquet")
    dataset = CuratedDataset.open(copy)
    assert dataset.rejected.schema.names == table.schema.names and dataset.rejected["width"].null_count == len(table)
    write_report(copy, copy / "report.html")
    _, words = read_page(copy)
    assert "does not tell the sizes" in words and "does not tell the clusters" in words
    assert "Before" not in cells_of(copy, "Side in pixels")


def test_one_image_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "only.png").write_bytes(encode(crops(1)[0]))
    (tmp_path / "out").mkdir()
    run(CurationConfig.model_validate({"decode": {"workers": 1}}), {"pool": str(tmp_path / "pool")}, tmp_path / "out")
    page, words = read_page(tmp_path / "out")
    assert "Of 1 files in the pool, 1 are kept (100.0 %)." in words
    assert [image["alt"] for image in page.images] == ["concept 0/0: only.png"] and "Copies" not in words


def test_a_page_stays_small_whatever_the_dataset(copy: Path) -> None:
    """Twenty thousand samples of a picture that hardly compresses, as many rejected files with endless names."""
    count, generator = 20_000, np.random.default_rng(0)
    data = encode(generator.integers(0, 256, (160, 160, 3), dtype=np.uint8))
    (copy / "shards" / "shard-000000.tar").write_bytes(data)
    digests = [hashlib.sha256(str(row).encode()).hexdigest() for row in range(2 * count)]
    texts = {
        "key": sorted(digest[:24] for digest in digests[:count]),
        "shard": ["shard-000000.tar"] * count,
        "ext": ["png"] * count,
        "sha256": digests[:count],
        "source": [f"{'s' * 1000}{row}" for row in range(count)],
        "cluster": [f"{row % 7}/{'c' * 500}{int(row**0.5)}" for row in range(count)],
        "kept_because": ["best of 2 copies by name"] * count,
        "parts": [["balanced"]] * count,
    }
    numbers = {"offset": 0, "length": len(data), "width": 160, "height": 160, "weight": 1.0}
    schema = parquet.read_schema(copy / "samples.parquet")
    columns = {**texts, **{name: [value] * count for name, value in numbers.items()}}
    samples = arrow.table({name: columns[name] for name in schema.names}, schema=schema)
    rejected = {
        "path": [f"{'p' * 4000}{row}" for row in range(count)],
        "reason": [f"{'reason' * 100}{row % 60}" for row in range(count)],
        "detail": ["d" * 4000] * count,
        "of": [texts["key"][row // 9] for row in range(count)],
        "sha256": digests[count:],
        "width": [160] * count,
        "height": [160] * count,
        "cluster": [None] * count,
    }
    table = arrow.table(rejected, schema=parquet.read_schema(copy / "rejected.parquet"))
    parquet.write_table(samples, copy / "samples.parquet")
    parquet.write_table(table, copy / "rejected.parquet")
    description = json.loads((copy / "dataset.json").read_text())
    description["counts"] |= {"samples": count, "rejected": count, "files": 2 * count}
    description["digests"]["content"] = content_digest(samples, description["mix"])
    (copy / "dataset.json").write_text(json.dumps(description))
    write_report(copy, copy / "report.html")
    page, words = read_page(copy)
    assert (copy / "report.html").stat().st_size < 3e6
    assert len(page.images) > 80 and "s…s" in words


def test_every_documented_reason_has_words() -> None:
    text = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
    section = text.partition("## Reasons in rejected.parquet")[2].partition("\n## ")[0]
    documented = {
        reason
        for line in section.splitlines()
        if line.startswith("| `")
        for reason in re.findall(r"`([^`]+)`", line.split("|")[1])
    }
    assert len(documented) > 15 and documented <= {reason for group in GROUPS for reason in group.reasons}
