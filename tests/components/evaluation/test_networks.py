"""Networks from every kind of address, and a hub that is a small server of this machine."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
import transformers

import components.evaluation.networks as networks
from components.common.networks import network_digest
from components.evaluation import hub
from components.evaluation.networks import (
    digest_of_network,
    folder_of_network,
    open_network,
    parse_networks,
    settled_network,
)
from foundry.errors import UserError
from foundry.images import Preprocessing
from training.models.build import build_backbone
from training.models.foreign import OWN_KINDS, known_kinds
from training.models.foreign_preprocessing import ForeignPreprocessing
from training.models.interchange import save_export

VIT = {"arch": "vit", "dim": 48, "depth": 2, "heads": 3}
SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
COMMITS = {"main": "a" * 40, "refs/pr/3": "b" * 40, "bin": "c" * 40, "bare": "d" * 40}
HUB_MODEL = "lab/tiny-vit"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOUNDRY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # the tests set it, and the library has read it
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)


def foreign_folder(folder: Path) -> Path:
    torch.manual_seed(0)
    transformers.ViTModel(transformers.ViTConfig(**SIZE), add_pooling_layer=False).save_pretrained(folder)
    processor = {
        "size": 32,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "feature_extractor_type": "ViTFeatureExtractor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def export(folder: Path) -> Path:
    save_export(build_backbone(VIT, seed=1).eval(), folder, Preprocessing(resize=40, crop=32))
    return folder


def test_labels() -> None:
    assert parse_networks("") == {}
    assert parse_networks("facebook/dinov2-small") == {"dinov2-small": "facebook/dinov2-small"}
    assert parse_networks("ours=/runs/a; models:/vit@champion;clip=openai/clip-vit-base-patch32") == {
        "ours": "/runs/a",
        "vit-champion": "models:/vit@champion",
        "clip": "openai/clip-vit-base-patch32",
    }
    with pytest.raises(UserError, match="given twice"):
        parse_networks("a/x;b/x")


def test_every_kind_has_a_name() -> None:
    kinds = {kind.removesuffix("_vision_model") for kind in (*known_kinds(), *OWN_KINDS)}
    assert kinds == set(networks._NAMES)


def test_a_run_and_a_foreign_folder_side_by_side(tmp_path: Path) -> None:
    newest = export(tmp_path / "run" / "export" / "step-000000020")
    (tmp_path / "run" / "export" / "latest").write_text("step-000000020\n")
    foreign_folder(tmp_path / "vit")
    found = {
        name: open_network(url, name) for name, url in parse_networks(f"ours={tmp_path}/run;{tmp_path}/vit").items()
    }
    ours, other = found["ours"], found["vit"]
    assert (ours.title, ours.source, ours.name) == ("run", str(tmp_path / "run"), "ours")
    expected = {"architecture": "DINOv3 ViT 2x48, patch 16", "width": 48, "patch_size": 16, "input_side": 32}
    assert {key: ours.description[key] for key in expected} == expected
    assert ours.description["digest"] == network_digest(newest) == digest_of_network(str(tmp_path / "run"))
    assert ours.preprocessing == Preprocessing(resize=40, crop=32)
    assert other.preprocessing == ForeignPreprocessing(32, 32, (0.5,) * 3, (0.5,) * 3, whole=True, resample=2)
    assert other.description["architecture"] == "ViT 2x32, patch 8"
    plain = transformers.ViTModel(transformers.ViTConfig(**SIZE), add_pooling_layer=False)
    assert other.description["parameters"] == sum(p.numel() for p in plain.parameters())
    for network in found.values():
        with torch.no_grad():
            features = network.model(torch.zeros(2, 3, 64, 32))
        description = network.description
        assert features["cls"].shape == (2, description["width"])
        assert features["patches"].shape[1] == 64 * 32 // description["patch_size"] ** 2
        assert len(network.model.intermediate_layers(torch.zeros(1, 3, 32, 32), 2)) == 2


def test_convnext_and_our_network_with_foreign_preprocessing(tmp_path: Path) -> None:
    own = tmp_path / "convnext"
    model = build_backbone({"arch": "convnext", "depths": [1, 1], "dims": [8, 16]})
    save_export(model.eval(), own, Preprocessing(resize=40, crop=32))
    described = open_network(str(own)).description
    assert (described["architecture"], described["patch_size"]) == ("DINOv3 ConvNeXt 8-16", 8)
    folder = export(tmp_path / "published")
    size = {"height": 32, "width": 32}
    processor = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": size, "resample": 2, "do_resize": True}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**processor, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    found = open_network(str(folder))
    assert found.preprocessing == ForeignPreprocessing(32, 32, (0.5,) * 3, (0.5,) * 3, whole=True, resample=2)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="weights in pytorch_model.bin only"):
        open_network(str(folder))


def test_a_registered_model_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = foreign_folder(tmp_path / "download")
    asked: list[str] = []

    def fetch(value: str) -> Path:
        asked.append(value)
        return folder

    monkeypatch.setattr(networks, "settled", lambda value: value.replace("@champion", "/7"))
    monkeypatch.setattr(networks, "network_folder", fetch)
    found = open_network("models:/vit@champion")
    assert (found.name, found.title, found.source) == ("vit-champion", "vit v7", "models:/vit/7")
    assert asked == ["models:/vit/7"]


class Hub(BaseHTTPRequestHandler):
    """The part of a hub that a download asks: a model's commit and files, the tree of a commit, and contents."""

    files: dict[str, dict[str, bytes]] = {}
    log: list[str] = []

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = unquote(self.path.partition("?")[0]).strip("/")
        self.log.append(f"{self.command} {path}")
        api = f"api/models/{HUB_MODEL}"
        if path.startswith(f"{api}/revision/"):
            revision = path.removeprefix(f"{api}/revision/")
            commit = COMMITS.get(revision, revision)
            if commit not in self.files:
                return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.files[commit].items()]
            return self.send(200, json.dumps({"id": HUB_MODEL, "sha": commit, "siblings": siblings}).encode(), {}, body)
        if path.startswith(f"{api}/tree/"):
            files = self.files[path.removeprefix(f"{api}/tree/")]
            rows = [
                {"type": "file", "path": name, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}
                for name, data in files.items()
            ]
            return self.send(200, json.dumps(rows).encode(), {}, body)
        if path.startswith("api/models/lab/gated"):
            return self.send(403, b"{}", {"X-Error-Code": "GatedRepo"}, body)
        if path.startswith(f"{HUB_MODEL}/resolve/"):
            commit, _, name = path.removeprefix(f"{HUB_MODEL}/resolve/").partition("/")
            data = self.files[commit][name]
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit}
            return self.send(200, data, headers, body)
        return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

    def send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    folder = foreign_folder(tmp_path / "origin")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    pickled = {name: data for name, data in files.items() if name != "model.safetensors"} | {"pytorch_model.bin": b"x"}
    Hub.files = {
        COMMITS["main"]: {**files, "pytorch_model.bin": b"x" * 1000, "README.md": b"words"},
        COMMITS["refs/pr/3"]: files,
        COMMITS["bin"]: pickled,
        COMMITS["bare"]: {"config.json": b"{}"},
    }
    Hub.log = []
    running = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{running.server_port}")
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def test_a_hub_model_is_downloaded_once_and_named_by_its_commit(
    tmp_path: Path, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = f"{HUB_MODEL}@{COMMITS['main']}"
    digest = digest_of_network(HUB_MODEL)
    assert digest == digest_of_network(named) != digest_of_network(f"{HUB_MODEL}@refs/pr/3")
    assert not any("resolve" in line for line in Hub.log)  # a fingerprint downloads nothing
    found = open_network(HUB_MODEL)
    assert (found.name, found.title, found.source) == ("tiny-vit", HUB_MODEL, named)
    assert found.description["digest"] == network_digest(tmp_path / "origin")
    fetched = {line.rpartition("/")[2] for line in Hub.log if line.startswith("GET") and "resolve" in line}
    assert fetched == {"config.json", "preprocessor_config.json", "model.safetensors"}
    folder = folder_of_network(named)
    assert folder.is_relative_to(tmp_path / "home") and sorted(path.name for path in folder.iterdir()) == sorted(
        fetched
    )

    Hub.log.clear()
    assert open_network(named).source == named
    assert Hub.log == []  # a commit is never asked for again
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert settled_network(HUB_MODEL) == named and digest_of_network(HUB_MODEL) == digest
    assert "HF_HUB_OFFLINE is set); commit aaaaaaaaaaaa is used" in capsys.readouterr().err
    with pytest.raises(UserError, match="refs/pr/4|no such folder"):
        settled_network(f"{HUB_MODEL}@refs/pr/4")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    Hub.files = {}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="not on this disk, and HF_HUB_OFFLINE is set"):
        open_network(f"{HUB_MODEL}@{'e' * 40}")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("lab/absent", "lab/absent: no such folder, and the hub knows no such model"),
        ("lab/gated", "accept its terms.*HF_TOKEN"),
        (f"{HUB_MODEL}@v9", "no revision 'v9'"),
        (f"{HUB_MODEL}@bin", "no safetensors of it.*refs/pr/NUMBER"),
        (f"{HUB_MODEL}@bare", "no preprocessor_config.json"),
    ],
)
@pytest.mark.usefixtures("server")
def test_what_the_hub_does_not_give(value: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_network(value)
    assert "\n" not in str(caught.value)


def test_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line soon: where nothing listens, where nobody answers, and where asking is forbidden."""
    monkeypatch.setattr(hub, "WAIT", 0.5)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as closed:
        port = closed.server_port
    silent = ThreadingHTTPServer(("127.0.0.1", 0), Hub)  # accepts (the kernel does) and never answers
    for address, reason in ((port, "Connect"), (silent.server_port, "no answer within")):
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{address}")
        start = time.monotonic()
        with pytest.raises(UserError, match=f"facebook/dinov2-small: no such folder, and no hub .*{reason}") as caught:
            open_network("facebook/dinov2-small")
        assert time.monotonic() - start < 15 and "\n" not in str(caught.value)
    silent.server_close()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        digest_of_network("facebook/dinov2-small")


def test_a_folder_comes_before_a_hub_and_addresses_are_none(tmp_path: Path) -> None:
    foreign_folder(tmp_path / "lab" / "tiny-vit")
    assert hub.hub_model(HUB_MODEL) is None and open_network(HUB_MODEL).title == "tiny-vit"
    for value in ("/lab/x", "./lab/x", "s3://lab/x", "models:/lab/1", "a/b/c", "one", "../lab/x", "a/b@../../x y"):
        assert hub.hub_model(value) is None
    with pytest.raises(UserError, match="no such folder"):
        open_network(str(tmp_path / "absent"))
