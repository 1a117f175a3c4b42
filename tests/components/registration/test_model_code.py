"""The registered model against transformers, for every kind of file."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from components.registration.golden import read_golden

KINDS = {"jpeg", "png", "webp", "grey", "rgba", "cmyk", "exif-rotated", "16-bit"}
STUDENTS = ("convnext", "vit")


@pytest.fixture(scope="module", params=STUDENTS)
def loaded(request, downloaded, line):
    """(pyfunc model, golden folder, the network that transformers made)."""
    import mlflow

    version = downloaded[request.param]
    return mlflow.pyfunc.load_model(str(version.folder)), version.golden, line.networks[request.param, 1]


def straightforward_pixels(data):
    """What the export's preprocessor_config.json says, by Pillow and torch: edge 72, centre 64, normalised."""
    import torch
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    image = image.resize([int(72 * side / min(image.size)) for side in image.size], Image.Resampling.BICUBIC)
    left, top = (round((side - 64) / 2) for side in image.size)
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + 64, top + 64)))).permute(2, 0, 1).double() / 255
    mean, std = (torch.tensor(x).double()[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((pixels - mean) / std).float()[None]


def test_predict_equals_transformers_for_every_kind_of_file(loaded):
    import torch

    model, folder, network = loaded
    golden, images, recorded = read_golden(folder)
    assert KINDS <= {entry.format for entry in golden.images} and len(images) == 8 + 8
    embedder = model.unwrap_python_model()
    for entry, data, row in zip(golden.images, images, recorded, strict=True):
        pixels = embedder.pixels([data])
        with torch.inference_mode():
            expected = network(pixel_values=torch.from_numpy(pixels)).pooler_output.numpy()
        np.testing.assert_allclose(
            model.predict({"pixels": pixels})["embedding"], expected, atol=1e-5, err_msg=entry.file
        )
        np.testing.assert_allclose(embedder.embed([data]), expected, atol=1e-5)
        np.testing.assert_allclose(row[None], expected, atol=1e-5)


def test_an_encoded_photograph_goes_through_the_declared_preprocessing(loaded):
    """Pixels by Pillow and torch alone; formats whose decoding leaves no choice."""
    import torch

    model, folder, network = loaded
    golden, images, recorded = read_golden(folder)
    seen = set()
    for entry, data, row in zip(golden.images, images, recorded, strict=True):
        if entry.format not in ("jpeg", "png", "webp", "exif-rotated"):
            continue
        seen.add(entry.format)
        pixels = straightforward_pixels(data)
        # A crop of a resized image and a resized crop round differently in the last of 256 levels.
        assert np.abs(model.unwrap_python_model().pixels([data]) - pixels.numpy()).max() <= 1.01 / 255 / 0.224
        with torch.inference_mode():
            expected = network(pixel_values=pixels).pooler_output[0].numpy()
        assert np.abs(row - expected).max() < 0.05 * np.abs(expected).max()
    assert len(seen) == 4


def test_inputs_under_either_name_and_batches(loaded):
    model, folder, _ = loaded
    _, images, recorded = read_golden(folder)
    embedder = model.unwrap_python_model()
    pixels = embedder.pixels(images)
    assert pixels.dtype == np.float32 and pixels.shape == (len(images), 3, 64, 64)
    for given in ({"pixels": pixels}, {"image": images}, images, np.array(images, object), pixels):
        np.testing.assert_allclose(embedder.predict(None, given)["embedding"], recorded, atol=1e-5)
    np.testing.assert_allclose(model.predict(pixels)["embedding"], recorded, atol=1e-5)
    with pytest.raises(ValueError, match="pixels"):
        embedder.predict(None, {"picture": pixels})


def test_patch_features_on_request(loaded):
    import torch

    model, folder, network = loaded
    pixels = model.unwrap_python_model().pixels(read_golden(folder)[1][:2])
    assert set(model.predict({"pixels": pixels})) == {"embedding"}
    found = model.predict({"pixels": pixels}, params={"patch_features": True})["patch_features"]
    with torch.inference_mode():
        tokens = network(pixel_values=torch.from_numpy(pixels)).last_hidden_state.numpy()
    patches = 16 if network.config.model_type == "dinov3_vit" else 4
    assert found.shape == (2, patches, tokens.shape[-1])
    np.testing.assert_allclose(found, tokens[:, -patches:], atol=1e-5)


def test_the_signature_names_pixels_and_refuses_others(loaded):
    from mlflow.exceptions import MlflowException

    model, _, network = loaded
    (given,) = model.metadata.signature.inputs.inputs
    assert (given.name, given.shape, given.type) == ("pixels", (-1, 3, -1, -1), np.dtype("float32"))
    size = 32 if network.config.model_type == "dinov3_vit" else 40
    (answer,) = model.metadata.signature.outputs.inputs
    assert (answer.name, answer.shape) == ("embedding", (-1, size))
    double, channels_last = np.zeros((1, 3, 64, 64)), np.zeros((1, 64, 64, 3), np.float32)
    for wrong in ({"pixels": double}, {"pixels": channels_last}, {"x": np.zeros(1)}):
        with pytest.raises(MlflowException):
            model.predict(wrong)


def test_a_version_runs_without_this_repository(downloaded, tmp_path):
    """Its own copy of the decoding is used, nothing is printed."""
    script = """
import json, sys
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
import foundry
data = open(sys.argv[2], "rb").read()
print(json.dumps([foundry.__file__, model.unwrap_python_model().embed([data])[0].tolist()]))
"""
    version = downloaded["vit"]
    golden, _, recorded = read_golden(version.golden)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(version.folder), str(version.golden / golden.images[0].file)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    module, embedding = json.loads(done.stdout)
    assert module.startswith(str(version.folder)) and done.stderr == ""
    np.testing.assert_allclose(embedding, recorded[0], atol=1e-5)
