"""Many images into one output: order, refusals, retries, versions, and going on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

import serving.bulk_requests
import serving.parts
from foundry.errors import run_command
from foundry.lifetime import free_port
from serving.__main__ import main
from serving.client import EmbeddingClient, NotServed, Unanswered
from serving.parts import Parts, folder_of
from tests.conftest import REPOSITORY
from tests.serving.stand_in import SIZE, StandIn, stand_in, vector_of


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setattr(serving.bulk_requests, "LONGEST_DELAY", 0.05)
    with stand_in() as state:
        yield state


def write_images(folder: Path, count: int) -> list[bytes]:
    folder.mkdir()
    contents = [f"image {index}".encode() for index in range(count)]
    for index, content in enumerate(contents):
        (folder / f"{index:04d}.jpg").write_bytes(content)
    return contents


Embed = Callable[..., int]


@pytest.fixture
def embed(server: StandIn) -> Embed:
    def run(*arguments: object) -> int:
        return run_command(main, ["embed", "--url", server.url, "--model", "m", *map(str, arguments)])

    return run


def vectors(contents: list[bytes]) -> np.ndarray:
    return np.stack([vector_of(content) for content in contents])


def column(table, name: str = "embedding") -> np.ndarray:  # type: ignore[no-untyped-def]
    return np.array(table.column(name).to_pylist(), np.float32)


def test_rows_have_the_order_of_the_images_whatever_came_first(server: StandIn, embed: Embed, tmp_path: Path) -> None:
    contents = write_images(tmp_path / "images", 100)
    gate = threading.Event()

    def later(images: list[bytes]) -> None:
        if contents[0] in images:
            assert gate.wait(30)
        elif contents[20] in images:
            gate.set()

    server.rule = later
    output = tmp_path / "vectors.parquet"
    assert embed(tmp_path / "images", "--output", output, "--batch", 5, "--concurrency", 3) == 0
    table = parquet.read_table(output)
    assert table.column_names == ["path", "embedding", "version", "digest", "error"]
    assert table.schema.field("embedding").type.list_size == SIZE
    assert table.column("path").to_pylist() == [str(tmp_path / "images" / f"{index:04d}.jpg") for index in range(100)]
    np.testing.assert_array_equal(column(table), vectors(contents))
    assert set(table.column("version").to_pylist()) == {1} and set(table.column("error").to_pylist()) == {None}
    assert table.schema.metadata[b"model"] == b"m" and table.schema.metadata[b"schema_version"] == b"1"
    assert 1 < server.most_at_once <= 3
    assert max(map(len, server.requests)) == 5 and len(server.requests) == 20
    assert not folder_of(output).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "vectors.parquet"]


def test_each_format_says_the_same(
    server: StandIn, embed: Embed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = write_images(tmp_path / "images", 9)
    bad = contents[4]
    server.rule = lambda images: (400, f"image {images.index(bad)}: no image [corrupt]") if bad in images else None
    outputs = [tmp_path / f"vectors.{ending}" for ending in ("parquet", "npy", "json")]
    for output in outputs:
        assert embed(tmp_path / "images", "--output", output) == 3
    capsys.readouterr()
    assert embed(tmp_path / "images") == 3
    captured = capsys.readouterr()
    path = tmp_path / "images" / "0004.jpg"
    assert captured.err == f"refused: {path}: no image [corrupt] (reason in the output)\n"
    rows = json.loads(captured.out)
    assert rows == json.loads(outputs[2].read_text())
    assert rows[4] == {"image": str(path), "error": "no image [corrupt]"}
    good = [index for index in range(9) if index != 4]
    expected = vectors(contents)
    np.testing.assert_array_equal([rows[index]["embedding"] for index in good], expected[good])
    table = parquet.read_table(outputs[0])
    np.testing.assert_array_equal(column(table.take(good)), expected[good])
    assert np.isnan(column(table)[4]).all() and table.column("version").to_pylist()[4] is None
    array = np.load(outputs[1])
    assert array.dtype == np.float32 and np.isnan(array[4]).all()
    np.testing.assert_array_equal(array[good], expected[good])
    beside = parquet.read_table(tmp_path / "vectors.rows.parquet")
    assert beside.equals(table.drop_columns("embedding"))


def test_a_refused_image_costs_no_other(server: StandIn, embed: Embed, tmp_path: Path) -> None:
    """The rest of its request is asked for again without it, once for each refused one; good requests are not."""
    contents = write_images(tmp_path / "images", 24)
    bad = {contents[3], contents[5], contents[23]}

    def refuse(images: list[bytes]) -> tuple[int, str] | None:
        wrong = [index for index, image in enumerate(images) if image in bad]
        more = f"; and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return (400, f"image {wrong[0]}: truncated [truncated]{more}") if wrong else None

    server.rule = refuse
    output = tmp_path / "vectors.parquet"
    assert embed(tmp_path / "images", "--output", output, "--batch", 8, "--concurrency", 1) == 3
    errors = parquet.read_table(output).column("error").to_pylist()
    assert [index for index, error in enumerate(errors) if error] == [3, 5, 23]
    assert errors[3] == "truncated [truncated]"
    assert list(map(len, server.requests)) == [8, 7, 6, 8, 8, 7]


def test_a_refusal_that_names_no_image_is_narrowed_down(server: StandIn, embed: Embed, tmp_path: Path) -> None:
    contents = write_images(tmp_path / "images", 16)
    server.rule = lambda images: (413, "Request Entity Too Large") if contents[9] in images or len(images) > 4 else None
    output = tmp_path / "vectors.parquet"
    assert embed(tmp_path / "images", "--output", output, "--batch", 16) == 3
    table = parquet.read_table(output)
    errors = table.column("error").to_pylist()
    assert [index for index, error in enumerate(errors) if error] == [9] and errors[9] == "Request Entity Too Large"
    good = [index for index in range(16) if index != 9]
    np.testing.assert_array_equal(column(table.take(good)), vectors(contents)[good])


def test_a_refusal_that_names_an_image_that_was_not_sent_ends(server: StandIn, embed: Embed, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 3)
    server.rule = lambda images: (400, "image 5: odd [corrupt]")
    output = tmp_path / "vectors.parquet"
    assert embed(tmp_path / "images", "--output", output) == 3
    assert parquet.read_table(output).column("error").to_pylist() == ["odd [corrupt]"] * 3
    assert list(map(len, server.requests)) == [3, 1, 2, 1, 1]


def test_all_refused_is_an_output_of_reasons(server: StandIn, embed: Embed, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 3)
    server.rule = lambda images: (400, "image 0: no [corrupt]")
    for ending in ("parquet", "npy", "json"):
        assert embed(tmp_path / "images", "--output", tmp_path / f"v.{ending}") == 3
    assert parquet.read_table(tmp_path / "v.parquet").column("error").to_pylist() == ["no [corrupt]"] * 3
    assert np.load(tmp_path / "v.npy").shape == (3, 0)


def test_an_unreadable_file_is_a_row_with_its_reason(server: StandIn, embed: Embed, tmp_path: Path) -> None:
    contents = write_images(tmp_path / "images", 2)
    (tmp_path / "list.txt").write_text(f"{tmp_path}/images/0001.jpg\n{tmp_path}/lost.jpg\n{tmp_path}/images/0000.jpg\n")
    output = tmp_path / "vectors.parquet"
    assert embed("--from", tmp_path / "list.txt", "--output", output) == 3
    table = parquet.read_table(output)
    assert table.column("error").to_pylist() == [None, "cannot be read (no such file or directory)", None]
    np.testing.assert_array_equal(column(table.take([0, 2])), vectors([contents[1], contents[0]]))


@pytest.mark.parametrize(
    "failure",
    [
        (503, "Exceeds maximum queue size"),
        (500, "Stub process 'm_0_0' is not healthy."),
        (404, "Request for unknown model: 'm' is not found"),
        (502, "Bad Gateway"),
        (0, "the connection ends"),
    ],
)
def test_what_passes_is_asked_again(server: StandIn, embed: Embed, tmp_path: Path, failure: tuple[int, str]) -> None:
    contents = write_images(tmp_path / "images", 12)
    asked: dict[bytes, int] = {}

    def fail_twice(images: list[bytes]) -> tuple[int, str] | None:
        with server.lock:
            asked[images[0]] = asked.get(images[0], 0) + 1
            return failure if asked[images[0]] <= 2 else None

    server.rule = fail_twice
    output = tmp_path / "vectors.npy"
    assert embed(tmp_path / "images", "--output", output, "--batch", 4) == 0
    np.testing.assert_array_equal(np.load(output), vectors(contents))
    assert set(asked.values()) == {3} and len(asked) == 3


def test_a_refusal_is_never_asked_again(server: StandIn, embed: Embed, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 5)
    server.rule = lambda images: (400, "image 0: no [corrupt]")
    assert embed(tmp_path / "images", "--output", tmp_path / "v.parquet", "--batch", 1) == 3
    assert sorted(server.requests) == sorted([f"image {index}".encode()] for index in range(5))


def test_patience_ends_and_the_same_command_goes_on(
    server: StandIn, embed: Embed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = write_images(tmp_path / "images", 20)
    server.rule = lambda images: (503, "full") if contents[8] in images else None
    output = tmp_path / "vectors.parquet"
    arguments = (tmp_path / "images", "--output", output, "--batch", 4, "--patience", 0.3, "--concurrency", 1)
    assert embed(*arguments) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith(f"error: {server.url}: model 'm': full; no answer for 0.")
        and "; 8 of 20 images are done" in error
    )
    assert not output.exists()
    server.rule = lambda images: None
    server.requests.clear()
    assert embed(*arguments) == 0
    assert server.requests == [contents[start : start + 4] for start in (8, 12, 16)]
    np.testing.assert_array_equal(column(parquet.read_table(output)), vectors(contents))


def test_errors_at_the_start_are_one_line_and_leave_nothing(
    server: StandIn, embed: Embed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images", 2)
    (tmp_path / "empty").mkdir()
    images, output = str(tmp_path / "images"), tmp_path / "v.parquet"
    nobody = f"http://127.0.0.1:{free_port()}"
    cases = [
        (["--url", nobody, "--model", "m", images], f"{nobody}: no server answers there"),
        (["--url", server.url, "--model", "n", images], "model 'n': Request for unknown model"),
        (["--url", server.url, "--model", "other", images], "model 'other' has no 'image' among its inputs"),
        (["--url", server.url, "--model", "m", "--version", "7", images], "has no version 7 now; served: 1"),
        (["--url", server.url, "--model", "m"], "no images: name files, folders or patterns"),
        (["--url", server.url, "--model", "m", str(tmp_path / "*.png")], "no file matches this pattern"),
        (["--url", server.url, "--model", "m", str(tmp_path / "empty")], "no file below this folder has an image's"),
        (["--url", server.url, "--model", "m", str(tmp_path / "no.jpg")], "cannot be read (no such file"),
        (["--url", server.url, "--model", "m", images, "--batch", "0"], "--batch 0: give 1 or more"),
    ]
    for arguments, message in cases:
        assert run_command(main, ["embed", *arguments, "--output", str(output)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error, error
    assert embed(images, "--output", tmp_path / "v.csv") == 2
    assert "name a file that ends in .parquet, .npy or .json" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "images"]


def test_the_batch_is_what_the_model_takes(server: StandIn, embed: Embed, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 10)
    server.largest = 4
    assert embed(tmp_path / "images", "--output", tmp_path / "v.npy", "--batch", 64) == 0
    assert sorted(map(len, server.requests)) == [2, 4, 4]


def test_the_newest_version_of_the_start_answers_to_the_end(server: StandIn, embed: Embed, tmp_path: Path) -> None:
    """A version published in the middle does not mix with the one that began."""
    contents = write_images(tmp_path / "images", 12)

    def publish(images: list[bytes]) -> None:
        if contents[4] in images:
            server.versions = [1, 2]

    server.rule = publish
    assert embed(tmp_path / "images", "--output", tmp_path / "v.parquet", "--batch", 2, "--concurrency", 1) == 0
    assert parquet.read_table(tmp_path / "v.parquet").column("version").to_pylist() == [1] * 12


@pytest.mark.parametrize("change", ["withdrawn", "digest"])
def test_a_change_in_the_middle_ends_the_run_unless_allowed(
    server: StandIn,
    embed: Embed,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    monkeypatch.setattr(serving.bulk_requests, "WITHDRAWN", 0.1)
    contents = write_images(tmp_path / "images", 12)

    def switch(images: list[bytes]) -> None:
        if contents[4] in images:
            server.digest = "digest-of-two"
            server.versions = [2] if change == "withdrawn" else [1]

    server.rule = switch
    output = tmp_path / "v.parquet"
    arguments = (tmp_path / "images", "--output", output, "--batch", 2, "--concurrency", 1)
    assert embed(*arguments) == 2
    error = capsys.readouterr().err
    expected = {
        "withdrawn": "version 1, which this run asks, is not served any more (served: 2); begin anew with --anew, or",
        "digest": "version 1 (digest digest-of-tw) answers now, the rows before are of version 1 (digest digest-of-on)",
    }
    assert expected[change] in error and error.count("\n") == 1 and not output.exists()

    # The rows that are there are of the old one: the next run says the same, and goes on only if told to.
    assert embed(*arguments) == 2
    assert embed(*arguments, "--allow-change") == 0
    captured = capsys.readouterr().err
    assert "answers now, the rows before are of version 1" in captured and "several versions answered" in captured
    table = parquet.read_table(output)
    assert table.column("digest").to_pylist() == ["digest-of-one"] * 4 + ["digest-of-two"] * 8
    np.testing.assert_array_equal(column(table), vectors(contents))


def test_anew_forgets_what_was_begun(
    server: StandIn, embed: Embed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = write_images(tmp_path / "images", 6)
    server.rule = lambda images: (500, "dead") if contents[4] in images else None
    output = tmp_path / "v.parquet"
    arguments = ("--output", output, "--batch", 2, "--patience", 0.1, "--concurrency", 1)
    assert embed(tmp_path / "images", *arguments) == 2
    server.rule = lambda images: None
    (tmp_path / "images" / "0009.jpg").write_bytes(b"new")
    capsys.readouterr()
    assert embed(tmp_path / "images", *arguments) == 2
    error = capsys.readouterr().err
    assert "holds an unfinished run with another 'images' (6, now 7)" in error and "--anew" in error
    server.requests.clear()
    assert embed(tmp_path / "images", *arguments, "--anew") == 0
    assert len(server.requests) == 4 and parquet.read_table(output).num_rows == 7


def test_two_runs_do_not_share_an_output(tmp_path: Path) -> None:
    with Parts(tmp_path / "v.parquet.parts", {}), pytest.raises(Exception, match="another process writes there"):
        Parts(tmp_path / "v.parquet.parts", {}).__enter__()


SMALL_PARTS = """
import sys
import serving.parts
from foundry.errors import run_command
from serving.__main__ import main
serving.parts.ROWS = 6
sys.exit(run_command(main))
"""


def test_a_killed_run_goes_on_with_the_parts_it_wrote(server: StandIn, tmp_path: Path) -> None:
    contents = write_images(tmp_path / "images", 60)
    output = tmp_path / "v.parquet"
    arguments = ["embed", "--url", server.url, "--model", "m", str(tmp_path / "images"), "--output", str(output)]
    command = [sys.executable, "-c", SMALL_PARTS, *arguments, "--batch", "3", "--concurrency", "2"]
    processes: list[subprocess.Popen[str]] = []
    started = threading.Event()

    def kill(images: list[bytes]) -> tuple[int, str] | None:
        if contents[45] in images:
            assert started.wait(30)
            os.kill(processes[0].pid, signal.SIGKILL)
            return 503, "nobody reads this"
        return None

    server.rule = kill
    processes.append(subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True))
    started.set()
    processes[0].communicate()
    assert processes[0].returncode == -signal.SIGKILL and not output.exists()
    parts = sorted(folder_of(output).glob("part-*.parquet"))
    kept = sum(parquet.read_metadata(part).num_rows for part in parts)
    assert 30 <= kept <= 45, "at most a part and what was under way are lost"
    parts[-1].write_bytes(parts[-1].read_bytes()[:100])  # and a part that the disk lost is made again
    kept -= 6

    server.rule = lambda images: None
    server.requests.clear()
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"note: goes on after {kept} of 60 images" in again.stderr
    assert sorted(image for images in server.requests for image in images) == sorted(contents[kept:])
    table = parquet.read_table(output)
    np.testing.assert_array_equal(column(table), vectors(contents))
    assert not folder_of(output).exists()


def test_memory_does_not_grow_with_the_run(server: StandIn, embed: Embed, tmp_path: Path) -> None:
    """Rows leave memory a part at a time, and requests do not run ahead of an answer that is late."""
    contents = write_images(tmp_path / "images", 80)
    seen: list[int] = []
    ahead: list[int] = []

    class Watched(Parts):
        def flush(self) -> None:
            seen.append(len(self._pending))
            super().flush()

    def late(images: list[bytes]) -> None:
        if contents[0] in images:
            threading.Event().wait(0.5)  # time for all the others, if they were asked for
            ahead.append(len(server.requests))

    server.rule = late
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving.parts, "ROWS", 10)
        patch.setattr("serving.bulk.Parts", Watched)
        assert embed(tmp_path / "images", "--output", tmp_path / "v.npy", "--batch", 1, "--concurrency", 2) == 0
    assert max(seen) == 10
    assert ahead[0] <= 6


def test_the_client_tells_errors_apart(server: StandIn) -> None:
    with EmbeddingClient(server.url, "m") as client:
        server.rule = lambda images: (404, "no such model")
        with pytest.raises(NotServed, match="model 'm': no such model"):
            client.embed([b"x"])
        for status in (0, 500, 503):
            server.rule = lambda images, status=status: (status, "later")  # type: ignore[misc]
            with pytest.raises(Unanswered):
                client.embed([b"x"])
