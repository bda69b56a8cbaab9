"""A headless Chromium for tests, spoken to over a pipe. Without the program, tests are skipped."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from patience import PATIENCE

PROGRAM = "chromium"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    "--remote-debugging-pipe",
)


class Browser:
    """One page, with everything that it logs and asks for."""

    def __init__(self, folder: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self._count = 0
        self._session: str | None = None
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # Chromium reads commands from descriptor 3 and writes to 4; the shell puts the pipes there.
        flags = " ".join([*FLAGS, f"--user-data-dir={folder}"])
        command = f"exec {PROGRAM} {flags} about:blank 3<&{to_browser} 4>&{from_browser}"
        self._process = subprocess.Popen(
            ["bash", "-c", command],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._messages = self._lines()

    def __enter__(self) -> Browser:
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session = None
        try:
            self.call("Browser.close")
            self._process.wait(20)
        except (RuntimeError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        for answer in self._messages:
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)
        raise RuntimeError(f"{PROGRAM} did not answer {method}")

    def open(self, path: Path, *, width: int = 1200, height: int = 900) -> None:
        """Load a file in a window of this size, and forget the events of the page before."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.events.clear()
        address = path.resolve().as_uri()
        self.call("Page.navigate", url=address)
        while True:  # an event may be that of the page before
            if self._is_loaded() and self._state() == ["complete", address]:
                return
            event = next(self._messages, None)
            if event is None:
                raise RuntimeError(f"{PROGRAM} did not load {path}")
            self.events.append(event)

    def _is_loaded(self) -> bool:
        return any(event.get("method") == "Page.loadEventFired" for event in self.events)

    def _state(self) -> Any:
        try:
            return self.evaluate("[document.readyState, location.href]")
        except RuntimeError:  # the page before has just gone
            return None

    def evaluate(self, expression: str) -> Any:
        got = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in got:
            raise RuntimeError(f"{expression}: {got['exceptionDetails']['text']}")
        return got["result"].get("value")

    def complaints(self) -> list[str]:
        """What the page has logged, thrown or been refused."""
        named = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in named]

    def addresses(self) -> list[str]:
        """What the page has asked for, in short."""
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [params["request"]["url"][:80] for params in sent]

    def _lines(self) -> Iterator[dict[str, Any]]:
        rest = b""
        while select.select([self._read], [], [], PATIENCE)[0] and (data := os.read(self._read, 1 << 16)):
            *whole, rest = (rest + data).split(b"\0")
            yield from map(json.loads, whole)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    need_browser()
    with Browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


def need_browser() -> None:
    """Skip a test without Chromium; where ULTRAGIST_TESTS_NEED names it, fail it."""
    if shutil.which(PROGRAM) is None:
        needed = re.split(r"[ ,]+", os.environ.get("ULTRAGIST_TESTS_NEED", ""))
        stop = pytest.fail if PROGRAM in needed else pytest.skip
        stop(f"not installed: {PROGRAM} (apt-get install chromium)")
