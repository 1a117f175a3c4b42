import json
import pickle
import zipfile

import numpy as np
import pytest

from components.registration.pickles import find_pickles


def torch_file(path):
    import torch

    torch.save({"weight": torch.zeros(2)}, path)


def numpy_objects(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_are_found_whatever_they_are_called(tmp_path, protocol):
    (tmp_path / "weights.safetensors").write_bytes(pickle.dumps({"a": [1, 2.0, "x"]}, protocol=protocol))
    assert find_pickles(tmp_path) == ["weights.safetensors"]


def test_other_files_that_need_unpickling(tmp_path):
    torch_file(tmp_path / "network")
    numpy_objects(tmp_path / "objects.npy")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "pytorch_model.bin").write_bytes(b"anything")
    (tmp_path / "model.PKL").write_bytes(pickle.dumps(1, protocol=0))
    assert find_pickles(tmp_path) == ["model.PKL", "network", "objects.npy", "sub/pytorch_model.bin"]


def test_harmless_files_are_left_alone(tmp_path):
    from safetensors.numpy import save

    # The length of the header, which a safetensors file begins with, may look like the start of a pickle.
    for length in range(0x280, 0x2A0, 8):
        data = save({"a": np.zeros(1)}, metadata={"x": "y" * (length - 0x60)})
        (tmp_path / f"{length}.safetensors").write_bytes(data)
    assert any(path.read_bytes()[:2] == b"\x80\x02" for path in tmp_path.glob("*.safetensors"))
    np.save(tmp_path / "numbers.npy", np.zeros(3, np.float32))
    (tmp_path / "config.json").write_text(json.dumps({"a": 1}))
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("a.png", b"")
    assert find_pickles(tmp_path) == []
