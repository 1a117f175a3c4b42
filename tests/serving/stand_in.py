"""A KServe v2 server in this process that answers as a test tells it: refusals, failures, other versions, silence."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

Rule = Callable[[list[bytes]], tuple[int, str] | None]
SIZE = 8


def vector_of(image: bytes) -> np.ndarray:
    """float32 (8,): what the stand-in answers for ``image``."""
    return np.frombuffer(hashlib.sha256(image).digest(), np.uint32).astype(np.float32)


class StandIn:
    """What the server does next, and what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.versions = [1]
        self.digest = "digest-of-one"
        self.largest = 16
        self.requests: list[list[bytes]] = []
        """The images of each inference, in the order of arrival."""
        self.most_at_once = 0
        self.rule: Rule = lambda images: None
        """(status, message) to answer with in place of embeddings; None where these are due."""
        self.lock = threading.Lock()
        self._now = 0

    def infer(self, version: int | None, images: list[bytes]) -> tuple[int, dict[str, object], bytes]:
        with self.lock:
            self.requests.append(images)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            if (failure := self.rule(images)) is not None:
                return failure[0], {"error": failure[1]}, b""
            version = version or self.versions[-1]
            if version not in self.versions:
                return 503, {"error": f"Request for unknown model: 'm' version {version} is not at ready state"}, b""
            vectors = np.stack([vector_of(image) for image in images]).tobytes()
            digests = b"".join(struct.pack("<I", len(self.digest)) + self.digest.encode() for _ in images)
            outputs = [
                {"name": "embedding", "datatype": "FP32", "shape": [len(images), SIZE], "data": vectors},
                {"name": "model_digest", "datatype": "BYTES", "shape": [len(images), 1], "data": digests},
            ]
            body = b"".join(output.pop("data") for output in outputs)  # type: ignore[misc]
            for output, size in zip(outputs, (len(vectors), len(digests)), strict=True):
                output["parameters"] = {"binary_data_size": size}
            return 200, {"model_name": "m", "model_version": str(version), "outputs": outputs}, body
        finally:
            with self.lock:
                self._now -= 1

    def describe(self, path: str) -> tuple[int, dict[str, object]]:
        if path == "/v2/models/m/config":
            return 200, {"name": "m", "max_batch_size": self.largest}
        if path == "/v2/models/m":
            outputs = [{"name": "embedding"}, {"name": "model_digest"}]
            versions = [str(version) for version in self.versions]
            return 200, {"name": "m", "versions": versions, "inputs": [{"name": "image"}], "outputs": outputs}
        if path == "/v2/models/other":
            return 200, {"name": "other", "versions": ["1"], "inputs": [{"name": "text"}], "outputs": []}
        return 404, {"error": "Request for unknown model is not found"}


def _handler(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._send(*stand_in.describe(self.path), b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            data = body[int(self.headers["Inference-Header-Content-Length"]) :]
            images = []
            while data:
                (size,) = struct.unpack_from("<I", data)
                images.append(data[4 : 4 + size])
                data = data[4 + size :]
            parts = self.path.split("/")
            version = int(parts[5]) if "versions" in parts else None
            status, answer, binary = stand_in.infer(version, images)
            if status == 0:  # as a server that is killed: the connection ends without an answer
                self.close_connection = True
                return
            self._send(status, answer, binary)

        def _send(self, status: int, answer: dict[str, object], binary: bytes) -> None:
            header = json.dumps(answer).encode()
            self.send_response(status)
            if binary:
                self.send_header("Inference-Header-Content-Length", str(len(header)))
            self.send_header("Content-Length", str(len(header) + len(binary)))
            self.end_headers()
            self.wfile.write(header + binary)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """A server on a free loopback port with the model 'm', for the length of the block."""
    state = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
