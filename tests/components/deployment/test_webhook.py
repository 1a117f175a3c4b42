"""Webhooks as MLflow itself signs them are taken; forged, old, repeated and oversized ones are not."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator

import pytest

from components.deployment.webhook import MAX_AGE, MAX_BODY, WebhookReceiver, problem_of
from foundry.errors import UserError

SECRET, NOW = "correct horse", 1_800_000_000
BODY = b'{"entity": "model_version_alias", "action": "created", "data": {"alias": "champion", "name": "\xc3\xa4"}}'


def signed(body: bytes = BODY, secret: str = SECRET, at: float = NOW, delivery: str = "id-1") -> dict[str, str]:
    """Headers of a delivery, signed by MLflow's own function."""
    from mlflow.webhooks.constants import (
        WEBHOOK_DELIVERY_ID_HEADER,
        WEBHOOK_SIGNATURE_HEADER,
        WEBHOOK_TIMESTAMP_HEADER,
    )
    from mlflow.webhooks.delivery import _generate_hmac_signature

    stamp = str(int(at))
    return {
        WEBHOOK_DELIVERY_ID_HEADER: delivery,
        WEBHOOK_TIMESTAMP_HEADER: stamp,
        WEBHOOK_SIGNATURE_HEADER: _generate_hmac_signature(secret, delivery, stamp, body.decode()),
    }


def test_what_mlflow_signs_is_right_and_nothing_else() -> None:
    good = signed()
    assert problem_of(SECRET, good, BODY, NOW) is None
    assert problem_of(SECRET, good, BODY, NOW + MAX_AGE) is None
    assert problem_of(SECRET, good, BODY, NOW + MAX_AGE + 1) == "too old"
    assert problem_of(SECRET, good, BODY, NOW - MAX_AGE - 1) == "too old"
    assert problem_of(SECRET, signed(secret="another"), BODY, NOW) == "wrong signature"
    assert problem_of(SECRET, good, BODY + b" ", NOW) == "wrong signature"
    for name in good:
        missing = {key: value for key, value in good.items() if key != name}
        assert problem_of(SECRET, missing, BODY, NOW) in ("no signature", "no delivery id or no timestamp")
        if "Signature" not in name:  # all that decides is signed
            changed = good | {name: "1799999999" if "Timestamp" in name else "id-2"}
            assert problem_of(SECRET, changed, BODY, NOW) == "wrong signature"
    for wrong in ("v1", "v1,", "v2" + good["X-MLflow-Signature"][2:], "v1,%%%", "v1,é", "v1,AAAA"):
        assert problem_of(SECRET, good | {"X-MLflow-Signature": wrong}, BODY, NOW) in (
            "no signature",
            "wrong signature",
        )


@pytest.fixture
def receiver() -> Iterator[tuple[WebhookReceiver, list[int]]]:
    woken: list[int] = []
    with WebhookReceiver("127.0.0.1", 0, SECRET, lambda: woken.append(1), clock=lambda: NOW) as receiver:
        yield receiver, woken


def post(port: int, headers: dict[str, str], body: bytes = BODY) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", "/", body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_only_a_valid_new_delivery_wakes(receiver) -> None:  # type: ignore[no-untyped-def]
    server, woken = receiver
    assert post(server.port, signed()) == 204 and len(woken) == 1
    assert post(server.port, signed()) == 204 and len(woken) == 1, "a repetition is answered and does nothing"
    assert post(server.port, signed(delivery="id-2")) == 204 and len(woken) == 2
    assert post(server.port, signed(secret="guess", delivery="id-3")) == 401
    assert post(server.port, signed(at=NOW - MAX_AGE - 1, delivery="id-4")) == 401
    assert post(server.port, {}) == 401
    large = b"x" * (MAX_BODY + 1)
    assert post(server.port, signed(large, delivery="id-5") | {"Content-Length": str(len(large))}, b"") == 413
    assert post(server.port, {"Transfer-Encoding": "chunked"}, b"") == 411
    assert post(server.port, {"Content-Length": "-1"}, b"") == 411
    assert len(woken) == 2


def test_connections_that_say_nothing_keep_nobody_out(receiver) -> None:  # type: ignore[no-untyped-def]
    server, woken = receiver
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(40)]
    try:
        for connection in silent[:16]:
            connection.settimeout(20)
            assert connection.recv(1) == b"", "cut after a few seconds"
        assert post(server.port, signed()) == 204 and woken
    finally:
        for connection in silent:
            connection.close()
    assert threading.active_count() < 60


def test_no_secret_and_a_taken_port_are_plain_errors(receiver) -> None:  # type: ignore[no-untyped-def]
    server, _ = receiver
    with pytest.raises(UserError, match="FOUNDRY_WEBHOOK_SECRET"):
        WebhookReceiver("127.0.0.1", 0, "", lambda: None)
    with pytest.raises(UserError, match="choose another port"):
        WebhookReceiver("127.0.0.1", server.port, SECRET, lambda: None)
