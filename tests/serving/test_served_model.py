"""Answers of the real Triton server, compared with PyTorch, and its errors."""

from __future__ import annotations

import base64
import json
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foundry.errors import UserError
from foundry.images import Preprocessing, decode_image
from serving.client import EmbeddingClient, RefusedImage
from serving.export import OnnxExport
from serving.server import RunningServer
from tests.serving.tiny_models import SIZE, encoded, picture, torch_outputs

TOLERANCE = 1e-4


def files() -> dict[str, bytes]:
    """One image in every kind of file that must be served alike."""
    from PIL import Image

    rgb = picture(5)
    grey = rgb[..., 0]
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = np.dstack([rgb, np.linspace(0, 255, rgb[..., 0].size).reshape(rgb.shape[:2]).astype(np.uint8)])
    wide = grey.astype(np.uint16) * 257 + np.arange(grey.shape[1], dtype=np.uint16)
    cmyk = np.asarray(Image.fromarray(rgb).convert("CMYK"))
    return {
        "jpeg": encoded(rgb, "JPEG", quality=90),
        "png": encoded(rgb, "PNG"),
        "webp": encoded(rgb, "WEBP", quality=90),
        "grey": encoded(grey, "PNG"),
        "rgba": encoded(alpha, "PNG"),
        "cmyk": _cmyk_jpeg(cmyk),
        "exif-rotated": encoded(rgb, "JPEG", quality=90, exif=exif),
        "16-bit": encoded(wide, "PNG"),
    }


def _cmyk_jpeg(pixels: np.ndarray) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels, "CMYK").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pixels_of(exports: dict[str, Path]):  # type: ignore[no-untyped-def]
    preprocessing = Preprocessing.from_config(json.loads((exports["vit"] / "preprocessor_config.json").read_text()))
    return lambda data: preprocessing(decode_image(data))


def post(server: RunningServer, model: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """(status, answer) of a plain JSON request, as curl sends it."""
    request = urllib.request.Request(f"{server.url}/v2/models/{model}/infer", data=json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "grey", "rgba", "cmyk", "exif-rotated", "16-bit"])
@pytest.mark.parametrize("architecture", ["vit", "convnext"])
def test_embedding_equals_pytorch(
    served: RunningServer,
    exports: dict[str, Path],
    onnx: dict[str, tuple[Path, OnnxExport]],
    pixels_of,  # type: ignore[no-untyped-def]
    architecture: str,
    kind: str,
) -> None:
    data = files()[kind]
    expected, expected_features = torch_outputs(exports[architecture], pixels_of(data)[None])
    with EmbeddingClient(served.url, architecture) as client:
        answer = client.embed([data], patch_features=True)
    assert answer.embedding.dtype == np.float32 and answer.patch_features is not None
    print(f"{architecture}, {kind}: differs by {np.abs(answer.embedding - expected).max():.1e}")
    np.testing.assert_allclose(answer.embedding, expected, atol=TOLERANCE)
    np.testing.assert_allclose(answer.patch_features, expected_features, atol=TOLERANCE)
    assert (answer.model, answer.version, answer.digest) == (architecture, 1, onnx[architecture][1].digest)
    other, _ = torch_outputs(exports[architecture], pixels_of(encoded(picture(6)))[None])
    assert np.abs(answer.embedding - other).max() > 10 * TOLERANCE, "the comparison could not fail"


def test_pixels_give_the_same_as_the_image(served: RunningServer, pixels_of) -> None:  # type: ignore[no-untyped-def]
    images = [encoded(picture(seed)) for seed in range(3)]
    with EmbeddingClient(served.url, "vit") as client:
        by_image = client.embed(images)
        by_pixels = client.embed_pixels(np.stack([pixels_of(image) for image in images]))
    assert by_image.embedding.shape == (3, 64) and by_image.patch_features is None
    np.testing.assert_allclose(by_pixels.embedding, by_image.embedding, atol=1e-6)


def test_plain_json_with_a_data_uri(served: RunningServer, pixels_of, exports: dict[str, Path]) -> None:  # type: ignore[no-untyped-def]
    data = encoded(picture(1))
    uri = "data:image/jpeg;base64," + base64.b64encode(data).decode()
    tensor = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": [uri]}
    status, answer = post(served, "vit", {"inputs": [tensor], "outputs": [{"name": "embedding"}]})
    assert status == 200 and answer["model_version"] == "1"
    (output,) = answer["outputs"]
    expected, _ = torch_outputs(exports["vit"], pixels_of(data)[None])
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), expected, atol=TOLERANCE)


def test_all_outputs_when_none_is_named(served: RunningServer) -> None:
    tensor = {"name": "pixels", "shape": [1, 3, SIZE, SIZE], "datatype": "FP32", "data": [0.0] * (3 * SIZE * SIZE)}
    status, answer = post(served, "convnext", {"inputs": [tensor]})
    shapes = {output["name"]: output["shape"] for output in answer["outputs"]}
    assert status == 200
    assert shapes == {"embedding": [1, 64], "patch_features": [1, 9, 64], "model_digest": [1, 1]}


BAD_IMAGES = {
    "truncated": (lambda: encoded(picture(1))[:900], r"image 0: .*\[truncated\]"),
    "text": (lambda: b"<html>404</html>", r"image 0: the content is not an image.*\[not-an-image\]"),
    "empty": (lambda: b"", r"image 0: the file is empty \[empty\]"),
    "too many bytes": (
        lambda: encoded(np.random.default_rng(0).integers(0, 255, (400, 400, 3), dtype=np.uint8), "PNG"),
        r"\[too-many-bytes\]",
    ),
    "too many pixels": (lambda: encoded(np.zeros((1001, 1000), np.uint8), "PNG"), r"\[too-many-pixels\]"),
    "data URI of junk": (lambda: b"data:image/png;base64,####", r"image 0: .*base64.*\[corrupt\]"),
    "other URI": (lambda: b"data:image/png,abc", r"image 0: .*data: URI.*\[not-an-image\]"),
    "large data URI": (lambda: b"data:image/png;base64," + b"A" * 300_000, r"\[too-many-bytes\]"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_image_is_answered_with_its_reason_and_the_server_goes_on(served: RunningServer, case: str) -> None:
    make, message = BAD_IMAGES[case]
    with EmbeddingClient(served.url, "vit") as client:
        with pytest.raises(RefusedImage, match=message) as refusal:
            client.embed([make()])
        assert "Traceback" not in str(refusal.value) and "/" not in str(refusal.value).replace("image/TYPE", "")
        assert client.embed([encoded(picture(1))]).embedding.shape == (1, 64)


def _image(count: int = 1) -> dict[str, Any]:
    data = "data:image/jpeg;base64," + base64.b64encode(encoded(picture(1))).decode()
    return {"name": "image", "shape": [count, 1], "datatype": "BYTES", "data": [data] * count}


def _pixels(size: int = SIZE, datatype: str = "FP32", count: int = 1) -> dict[str, Any]:
    data = [0] * (count * 3 * size * size)
    return {"name": "pixels", "shape": [count, 3, size, size], "datatype": datatype, "data": data}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([_image(), _pixels()], "exactly one of the inputs 'image' and 'pixels'"),
        ([], "request has 0 inputs|exactly one"),
        ([_pixels(size=64)], r"'pixels' has shape \[1, 3, 64, 64\], this model takes \[B, 3, 96, 96\]"),
        ([_pixels(datatype="FP64")], "data-type is 'FP64', but model 'vit' expects 'FP32'"),
        ([_image(count=9)], "batch-size must be <= 8"),
        ([{**_image(), "name": "picture"}], "unexpected inference input 'picture'"),
    ],
)
def test_wrong_requests_get_400_and_say_why(served: RunningServer, inputs: list[dict[str, Any]], message: str) -> None:
    status, answer = post(served, "vit", {"inputs": inputs, "outputs": [{"name": "embedding"}]})
    assert status == 400
    assert re.search(message, answer["error"])


def test_values_that_are_not_finite_are_refused(served: RunningServer) -> None:
    pixels = np.zeros((2, 3, SIZE, SIZE), np.float32)
    pixels[1, 0, 0, 0] = np.nan
    with EmbeddingClient(served.url, "vit") as client, pytest.raises(RefusedImage, match="not finite"):
        client.embed_pixels(pixels)


def test_one_bad_image_among_several_of_a_request_is_named(served: RunningServer) -> None:
    good = encoded(picture(1))
    with EmbeddingClient(served.url, "vit") as client:
        with pytest.raises(RefusedImage, match=r"image 1: .*\[not-an-image\]; and 1 more"):
            client.embed([good, b"junk", good, b""])


def test_mixed_requests_at_once_each_get_their_own_answer(
    served: RunningServer,
    exports: dict[str, Path],
    pixels_of,  # type: ignore[no-untyped-def]
) -> None:
    """Images, pixels, several a request, broken ones: batched together by the server, answered one by one."""
    images = [encoded(picture(seed)) for seed in range(24)]
    expected, expected_features = torch_outputs(exports["vit"], np.stack([pixels_of(image) for image in images]))
    before = _executions(served)
    problems: list[str] = []
    barrier = threading.Barrier(6)

    def ask(worker: int) -> None:
        try:
            with EmbeddingClient(served.url, "vit") as client:
                barrier.wait()
                for step in range(4):
                    rows = [4 * worker + step, (7 * worker + step) % 24]
                    features = (worker + step) % 2 == 0
                    if worker == 5:
                        answers = list(client.embed_each([images[rows[0]], b"broken", images[rows[1]]], features))
                        assert isinstance(answers[1], RefusedImage)
                        found = np.concatenate([answers[0].embedding, answers[2].embedding])
                    elif worker % 2:
                        answer = client.embed_pixels(np.stack([pixels_of(images[row]) for row in rows]), features)
                        found = answer.embedding
                    else:
                        answer = client.embed([images[row] for row in rows], features)
                        found = answer.embedding
                        if features:
                            np.testing.assert_allclose(answer.patch_features, expected_features[rows], atol=TOLERANCE)
                    np.testing.assert_allclose(found, expected[rows], atol=TOLERANCE)
        except BaseException as error:
            problems.append(f"worker {worker}: {error!r}")

    threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    after = _executions(served)
    requests, executions = (after[key] - before[key] for key in ("requests", "executions"))
    assert requests == 5 * 4 + 4 * 3
    assert executions < requests, "the server joined no requests to a batch"


def _executions(server: RunningServer) -> dict[str, int]:
    with urllib.request.urlopen(f"{server.url}/v2/models/vit/stats") as response:
        (statistics,) = json.loads(response.read())["model_stats"]
    return {"requests": statistics["inference_stats"]["success"]["count"], "executions": statistics["execution_count"]}


def test_metrics_count_images_by_outcome(served: RunningServer) -> None:
    def value(pattern: str) -> float:
        with urllib.request.urlopen(served.metrics_url) as response:
            text = response.read().decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(pattern, line))

    def read() -> list[float]:
        patterns = [
            r'foundry_serving_images_total\{model="convnext",outcome="ok",version="1"\}',
            r'foundry_serving_images_total\{model="convnext",outcome="not-an-image",version="1"\}',
            r'foundry_serving_decode_seconds_count\{model="convnext",version="1"\}',
            r'foundry_serving_infer_seconds_count\{model="convnext",version="1"\}',
        ]
        return [value(pattern) for pattern in patterns]

    before = read()
    with EmbeddingClient(served.url, "convnext") as client:
        client.embed([encoded(picture(1)), encoded(picture(2))])
        with pytest.raises(RefusedImage):
            client.embed([b"junk"])
    assert [after - earlier for earlier, after in zip(before, read(), strict=True)] == [2, 1, 2, 1]


def test_unknown_model_version_and_server_are_plain_errors(served: RunningServer) -> None:
    data = encoded(picture(1))
    cases = [(served.url, "vti", None), (served.url, "vit", 9), ("http://127.0.0.1:1", "vit", None)]
    for url, model, version in cases:
        with EmbeddingClient(url, model, version) as client, pytest.raises(UserError) as error:
            client.embed([data])
        assert not isinstance(error.value, RefusedImage) and url in str(error.value)
    with pytest.raises(UserError, match="not the address of a server"):
        EmbeddingClient("ftp://somewhere", "vit")


def test_loading_needs_the_key(served: RunningServer) -> None:
    request = urllib.request.Request(f"{served.url}/v2/repository/models/vit/unload", data=b"{}")
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request)
    assert error.value.code == 403
    assert served.control().ready_versions("vit") == [1]
