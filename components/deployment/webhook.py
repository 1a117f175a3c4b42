"""MLflow's webhooks, received: a signed, recent and small request wakes whoever waits; nothing else of it is used.

MLflow (3.17) sends with each delivery ``X-MLflow-Delivery-Id``, ``X-MLflow-Timestamp`` (Unix seconds) and, where the
webhook has a secret, ``X-MLflow-Signature: v1,<base64 of HMAC-SHA256>`` over ``<id>.<timestamp>.<body>``. A delivery
that is retried keeps its id and timestamp.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from foundry.errors import UserError

SIGNATURE, TIMESTAMP, DELIVERY = "X-MLflow-Signature", "X-MLflow-Timestamp", "X-MLflow-Delivery-Id"
MAX_BODY = 64 << 10
"""Bytes; MLflow's own are below one kilobyte."""
MAX_AGE = 300.0
"""Seconds that the time of a delivery may be away from ours; MLflow retries for about that long."""
_REMEMBERED = 4096
_CONNECTIONS = 16
_SECONDS = 5.0


def problem_of(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> str | None:
    """What is wrong with a delivery, or None where ``secret`` signed it within :data:`MAX_AGE` seconds of ``now``."""
    delivery, timestamp = headers.get(DELIVERY, ""), headers.get(TIMESTAMP, "")
    version, _, signature = headers.get(SIGNATURE, "").partition(",")
    if not re.fullmatch(r"[!-~]{1,128}", delivery) or not re.fullmatch(r"[0-9]{1,12}", timestamp):
        return "no delivery id or no timestamp"
    if version != "v1":
        return "no signature"
    try:
        given = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError):
        return "wrong signature"
    signed = f"{delivery}.{timestamp}.".encode() + body
    if not hmac.compare_digest(given, hmac.new(secret.encode(), signed, hashlib.sha256).digest()):
        return "wrong signature"
    if abs(now - int(timestamp)) > MAX_AGE:
        return "too old"
    return None


class WebhookReceiver:
    """An HTTP server on ``host``:``port`` (0: a free one) that calls ``wake`` for each new valid delivery.

    Answers 204 to a valid delivery (also to one that came before), 401 to one that is not, 411 and 413 by its length.
    Raises :class:`UserError` where the port is taken or the secret is empty.
    """

    def __init__(
        self, host: str, port: int, secret: str, wake: Callable[[], None], clock: Callable[[], float] = time.time
    ) -> None:
        if not secret:
            raise UserError("webhook: no secret; set FOUNDRY_WEBHOOK_SECRET to the one given to MLflow")
        self._secret, self._wake, self._clock = secret, wake, clock
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()
        try:
            self._server = _BoundedServer((host, port), _handler(self))
        except (OSError, OverflowError) as error:
            raise UserError(f"webhook: cannot listen on {host}:{port} ({error}); choose another port") from None
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    def __enter__(self) -> WebhookReceiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def take(self, headers: Mapping[str, str], body: bytes) -> str | None:
        """Check one delivery and wake; returns what is wrong with it, or None."""
        problem = problem_of(self._secret, headers, body, self._clock())
        if problem is not None:
            return problem
        with self._lock:
            known = headers[DELIVERY] in self._seen
            self._seen[headers[DELIVERY]] = None
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        if not known:
            self._wake()
        return None


class _BoundedServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):  # MLflow tries again
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        timer = threading.Timer(_SECONDS, _cut, [request])  # however slowly a body drips
        timer.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks off is nobody's error."""


def _cut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def _handler(receiver: WebhookReceiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _SECONDS
        server_version, sys_version = "webhook", ""

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not re.fullmatch(r"[0-9]{1,12}", length):
                self._answer(411, "no length")
            elif int(length) > MAX_BODY:
                self._answer(413, f"more than {MAX_BODY} bytes")
            else:
                body = self.rfile.read(int(length))
                problem = receiver.take({name: self.headers.get(name, "") for name in _NAMES}, body)
                self._answer(204 if problem is None else 401, problem or "")

        def _answer(self, status: int, text: str) -> None:
            self.close_connection = True
            self.send_response(status)
            self.send_header("Connection", "close")
            if status != 204:
                self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if status != 204:
                self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Quiet: what is refused could be anybody's noise."""

    return Handler


_NAMES = (SIGNATURE, TIMESTAMP, DELIVERY)
