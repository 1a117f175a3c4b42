"""A messy pool of real files: what Pillow decodes is decoded, the rest refused, and the pixels are OpenCV's."""

from __future__ import annotations

import csv
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from foundry.images import REASONS, ImageError, decode_image, inspect_image


def test_agrees_with_what_is_known_of_the_pool(data_folder: Path) -> None:
    archive = data_folder / "webpool" / "webpool.tar.gz"
    if not archive.is_file():
        pytest.skip("FOUNDRY_DATA has no webpool")
    with (archive.parent / "truth.csv").open(encoding="utf-8", newline="") as file:
        truth = {row["filename"]: row for row in csv.DictReader(file)}
    # every file that is odd (anything but a plain JPEG or PNG that decodes), and every fourth of the others
    odd = {
        name
        for name, row in truth.items()
        if row["decode"] != "ok" or row["format"] not in ("JPEG", "PNG") or row["mode"] not in ("RGB", "RGBA", "P")
    }
    chosen = odd | set(sorted(set(truth) - odd)[::4])
    reasons: Counter[str] = Counter()
    compared = 0
    cv2 = pytest.importorskip("cv2", reason="OpenCV is the decoder to compare with")
    with tarfile.open(archive) as tar:
        for member in tar:
            row = truth.get(member.name)
            if row is None or member.name not in chosen:
                continue
            stream = tar.extractfile(member)
            assert stream is not None
            data = stream.read()
            try:
                pixels = decode_image(data)
            except ImageError as error:
                assert row["decode"] != "ok", f"{member.name}: {error}"
                reasons[error.reason] += 1
                continue
            assert row["decode"] == "ok", f"{member.name} decoded, Pillow's verdict was {row['decode']}"
            header = inspect_image(data)
            assert (header.height, header.width) == pixels.shape[:2]
            assert {header.height, header.width} == {int(row["height"]), int(row["width"])}
            plain = row["format"] in ("JPEG", "PNG") and row["mode"] == "RGB" and b"tRNS" not in data[:4096]
            if plain and not any(mark in data for mark in (b"ICC_PROFILE", b"iCCP")):
                flags = cv2.IMREAD_COLOR | (cv2.IMREAD_IGNORE_ORIENTATION if row["format"] == "PNG" else 0)
                other = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
                if other is not None and other.shape == pixels.shape:
                    assert np.abs(other[..., ::-1].astype(int) - pixels).max() <= 1, member.name
                    compared += 1
    assert set(reasons) <= set(REASONS)
    assert reasons["empty"] == sum(row["transform"] == "empty" for row in truth.values())
    assert reasons["truncated"] >= 25 and reasons["not-an-image"] >= 8
    assert compared > 100
