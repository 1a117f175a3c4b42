"""A page of a report in a real browser: headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--no-default-browser-check", "--password-store=basic", "--use-mock-keychain", "--hide-scrollbars"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-port=0"),
)
TIMEOUT = 120.0
"""Seconds that a browser may take to start or to answer."""


class Tab:
    """A blank tab of a browser; :meth:`open` shows a file in it. What goes wrong is kept."""

    def __init__(self, url: str) -> None:
        import websocket

        # no Origin header: the browser refuses unknown ones
        self._socket = websocket.create_connection(url, timeout=TIMEOUT, suppress_origin=True)
        self._ids = itertools.count(1)
        self._address = ""
        self._loaded = False
        self.requests: list[str] = []
        """Addresses that the page asked for, itself and ``data:`` left out."""
        self.errors: list[str] = []
        """What stands in the console as an error, and uncaught exceptions."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Network.setBlockedURLs", urls=["http://*", "https://*", "ws://*", "wss://*", "ftp://*"])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command; events that come before it are taken in."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._take_in(message)

    def _take_in(self, event: dict[str, Any]) -> None:
        kind, facts = event.get("method"), event.get("params", {})
        if kind == "Page.loadEventFired":
            self._loaded = True
        elif kind == "Network.requestWillBeSent":
            address = facts["request"]["url"]
            if address.split("#")[0] != self._address and not address.startswith("data:"):
                self.requests.append(address)
        elif kind == "Network.webSocketCreated":
            self.requests.append(facts["url"])
        elif kind == "Runtime.exceptionThrown":
            details = facts["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif kind == "Runtime.consoleAPICalled" and facts["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(each.get("value", each)) for each in facts["args"]))
        elif kind == "Log.entryAdded" and facts["entry"]["level"] == "error":
            self.errors.append(facts["entry"]["text"])

    def open(self, path: Path, width: int, height: int = 900, *, scripts: bool = True, dark: bool = False) -> None:
        """Show ``path`` in a window of ``width`` CSS pixels, waiting until it has loaded."""
        self.requests, self.errors, self._loaded = [], [], False
        self._address = path.resolve().as_uri()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        assert path.is_file(), f"{path} is no file"  # Chromium would show a page of its own
        self.call("Page.navigate", url=self._address)
        while not self._loaded:
            self._take_in(json.loads(self._socket.recv()))

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives (a promise is waited for), as JSON."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and let go of a key, as a keyboard would: ``press("Enter", 13, "\\r")``."""
        facts = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **facts)
        self.call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def click(self, x: float, y: float) -> None:
        """Press and let go of the left button at a place of the window, in CSS pixels."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, target: Path) -> None:
        """The whole page as a PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        target.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End the browser."""
        self.call("Browser.close")
        self._socket.close()


@contextmanager
def browser() -> Iterator[Tab]:
    """A tab of a Chromium of its own, which ends with the context; the test is skipped where there is no Chromium."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium here")
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        command = [program, *SWITCHES, f"--user-data-dir={folder}", "about:blank"]
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            tab = Tab(_address_of_tab(process, log))
            yield tab
            tab.close()
            process.wait(30)
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait(30)


def _address_of_tab(process: subprocess.Popen[bytes], log: Path) -> str:
    """The websocket of the browser's first tab."""
    from urllib.request import ProxyHandler, build_opener

    deadline = time.monotonic() + TIMEOUT
    direct = build_opener(ProxyHandler({}))
    while time.monotonic() < deadline:
        told = log.read_text(errors="replace")
        if found := re.search(r"DevTools listening on ws://([\d.:]+)/", told):
            with direct.open(f"http://{found.group(1)}/json", timeout=TIMEOUT) as answer:
                tabs = json.load(answer)
            for tab in tabs:
                if tab["type"] == "page":
                    return tab["webSocketDebuggerUrl"]
        assert process.poll() is None, f"Chromium ended: {told[-2000:]}"
        time.sleep(0.02)
    raise AssertionError(f"Chromium did not start: {log.read_text(errors='replace')[-2000:]}")
