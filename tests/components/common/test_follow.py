from __future__ import annotations

import json
from pathlib import Path

from components.common.follow import RowReader, follow_rows


def line(step: int) -> str:
    return json.dumps({"step": step}) + "\n"


def test_only_whole_new_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader = RowReader(path)
    assert reader.new_rows() == []
    path.write_text(line(0) + line(1)[:5])
    assert reader.new_rows() == [{"step": 0}]
    with path.open("a") as file:
        file.write(line(1)[5:] + "no json\n" + line(2))
    assert reader.new_rows() == [{"step": 1}, {"step": 2}]
    assert reader.new_rows() == []


def test_a_replaced_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(0) + line(1))
    reader = RowReader(path)
    reader.new_rows()
    (tmp_path / "cut").write_text(line(0) + line(7))  # as long as before
    (tmp_path / "cut").replace(path)
    assert reader.new_rows() == [{"step": 0}, {"step": 7}]


def test_every_row_arrives_in_order_also_those_of_the_last_moment(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(0))
    received: list[int] = []
    with follow_rows(path, lambda rows: received.extend(row["step"] for row in rows)):
        with path.open("a") as file:
            file.write(line(1))
    assert received == [0, 1]
