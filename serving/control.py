"""Explicit control of a Triton server over HTTP: load, unload, list. Standard library only."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from typing import Any

from foundry.errors import UserError

ADMIN_HEADER = "admin-key"


class ServerControl:
    """The server at ``url`` ('http://127.0.0.1:8000'); ``admin_key`` opens its model-repository API."""

    def __init__(self, url: str, admin_key: str = "", timeout: float = 300.0) -> None:
        self.url, self._key, self._timeout = url.rstrip("/"), admin_key, timeout
        # Proxies of the environment are for the world outside, not for a server named by its own address.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def is_ready(self, model: str | None = None, version: int | None = None) -> bool:
        """Whether the server, or one of its models, takes requests."""
        path = "/v2/health/ready" if model is None else f"/v2/models/{model}{_version(version)}/ready"
        try:
            self._request("GET", path)
        except UserError:
            return False
        return True

    def load(self, model: str) -> None:
        """Load ``model`` as its config.pbtxt stands now; on failure what was loaded before keeps answering.

        Raises :class:`UserError` with Triton's reason.
        """
        self._request("POST", f"/v2/repository/models/{model}/load", {})

    def unload(self, model: str) -> None:
        """Unload every version of ``model`` and wait until its processes are gone."""
        self._request("POST", f"/v2/repository/models/{model}/unload", {})
        deadline = time.monotonic() + self._timeout
        while any(row["name"] == model and row.get("state") in ("READY", "UNLOADING") for row in self.index()):
            if time.monotonic() > deadline:
                raise UserError(f"{self.url}: model '{model}' is still unloading after {self._timeout:.0f} s")
            time.sleep(0.02)

    def index(self) -> list[dict[str, Any]]:
        """A row for each model version that the server knows: name, version, state, reason."""
        return list(self._request("POST", "/v2/repository/index", {}))

    def ready_versions(self, model: str) -> list[int]:
        """The versions of ``model`` that answer, ascending."""
        rows = [row for row in self.index() if row["name"] == model]
        return sorted(int(row["version"]) for row in rows if row.get("state") == "READY")

    def metadata(self, model: str, version: int | None = None) -> dict[str, Any]:
        """Inputs, outputs and versions of ``model``. Raises :class:`UserError` when it is not loaded."""
        return dict(self._request("GET", f"/v2/models/{model}{_version(version)}"))

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self._key and path.startswith("/v2/repository"):
            headers[ADMIN_HEADER] = self._key
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            raise UserError(f"{self.url}{path}: {_reason(error.read(), error.code)}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise UserError(f"{self.url}: no Triton server answers there ({reason})") from None
        return json.loads(text) if text else None


def _version(version: int | None) -> str:
    return "" if version is None else f"/versions/{version}"


def _reason(body: bytes, status: int) -> str:
    """Triton's words without the places in its own and in Python's files."""
    try:
        text = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"status {status}"
    return " ".join(text.partition("\n\nAt:\n")[0].split()) or f"status {status}"
