"""A headless Chromium that is told what to do over a pipe (DevTools protocol): what a page does, and how it looks."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

_COMMAND = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"),
    *("--disable-background-networking", "--disable-sync", "--disable-component-update"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


class Page:
    """One tab. `events` are those that it sent, by method: console messages, requests, exceptions."""

    def __init__(self, browser: subprocess.Popen[bytes], read: int, write: int) -> None:
        self._browser, self._read, self._write = browser, os.fdopen(read, "rb", 0), os.fdopen(write, "wb", 0)
        self._rest, self._number, self._session = b"", 0, None
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.tell(f"{domain}.enable")

    def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command, and its result; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = self._read.read(1 << 20)
            assert data, "the browser ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        message = dict(json.loads(line))
        if "method" in message:
            self.events.append((message["method"], message["params"]))
        return message

    def open(self, url: str, width: int = 1280, dark: bool = False) -> None:
        """Load a page in a window of so many CSS pixels."""
        self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.tell("Emulation.setEmulatedMedia", media="screen", features=[scheme])
        self.events.clear()
        self.tell("Page.navigate", url=url)
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            self._next()

    def value(self, script: str) -> Any:
        """What an expression of JavaScript gives."""
        result = self.tell("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def complaints(self) -> list[dict[str, Any]]:
        """What the page wrote to the console, and exceptions."""
        kinds = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [parameters for method, parameters in self.events if method in kinds]

    def requested(self) -> list[str]:
        """The addresses that were asked for; data within the page is none."""
        asked = [facts["request"]["url"] for method, facts in self.events if method == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith("data:")]

    def colour(self, selector: str, name: str) -> list[int]:
        """Red, green and blue of the first such element."""
        script = f"getComputedStyle(document.querySelector({json.dumps(selector)})).{name}"
        return [int(part) for part in re.findall(r"\d+", self.value(script))[:3]]

    def as_printed(self, width: int) -> None:
        """From now on the styles of print, for someone who prefers dark colours on the screen."""
        scheme = {"name": "prefers-color-scheme", "value": "dark"}
        self.tell("Emulation.setEmulatedMedia", media="print", features=[scheme])
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=700, deviceScaleFactor=1, mobile=False)

    def picture(self, path: Path) -> Path:
        """A PNG of the whole page."""
        size = self.tell("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.tell("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def pdf(self, path: Path) -> Path:
        """The page as it is printed."""
        printed = self.tell("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        path.write_bytes(base64.b64decode(printed["data"]))
        return path

    def __enter__(self) -> Page:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._write.close()
        try:
            self._browser.wait(10)
        except subprocess.TimeoutExpired:
            self._browser.kill()
            self._browser.wait()
        self._read.close()


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser with a profile of its own, and no network."""
    (told, to_tell), (to_hear, heard) = os.pipe(), os.pipe()
    low = max(told, heard, 4)  # no descriptor of ours is overwritten while they are put in their places

    def place() -> None:  # the browser's own are 3 and 4
        os.dup2(told, low + 1)
        os.dup2(heard, low + 2)
        os.dup2(low + 1, 3)
        os.dup2(low + 2, 4)

    process = subprocess.Popen(
        [*_COMMAND, f"--user-data-dir={profile}"],
        preexec_fn=place,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(told)
    os.close(heard)
    with Page(process, to_hear, to_tell) as page:
        yield page
