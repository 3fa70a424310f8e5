"""Headless Chromium over its debugging pipe: pages are opened, dragged and looked at.

The browser speaks JSON messages on two pipes (``--remote-debugging-pipe``), so no driver and no
further package is needed.
"""

from __future__ import annotations

import base64
import fcntl
import io
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MISSING = (
    f"no browser: none of {', '.join(NAMES)} is on the PATH; install Chromium "
    "(Debian, Ubuntu: apt-get install chromium) to test the page in it"
)
SECONDS = 60.0
KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "End": 35, "Home": 36, "Tab": 9, " ": 32}


def find() -> str | None:
    """Path of a Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One running Chromium without a window, without a profile and without the network."""

    def __init__(self, program: str, folder: Path) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        # Out of the way of 3 and 4, the numbers the browser expects.
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (theirs_in, theirs_out)]
        for fd in (theirs_in, theirs_out):
            os.close(fd)
        script = f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}'
        options = [
            "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu",
            "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder / 'profile'}", "about:blank",
        ]  # fmt: skip
        self._log = folder / "chromium.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", script, "bash", program, *options],
                pass_fds=theirs, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, env={**os.environ, "HOME": str(folder)},
            )  # fmt: skip
        for fd in theirs:
            os.close(fd)
        self._read, self._write = ours_in, ours_out
        self._buffer = b""
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    def close(self) -> None:
        """End the browser."""
        try:
            self.call("Browser.close")
            self._process.wait(SECONDS)
        finally:
            for fd in (self._read, self._write):
                os.close(fd)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; events on the way are kept."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer}"
                return dict(answer["result"])
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        until = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(until - time.monotonic(), 0))
            assert ready, f"the browser gave no answer; it said:\n{self._said()}"
            part = os.read(self._read, 1 << 20)
            assert part, f"the browser ended; it said:\n{self._said()}"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _said(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    def open(self, path: Path, *, before: str = "", **look: Any) -> Tab:
        """A new tab with the file, loaded.

        Args:
            path: The file.
            before: JavaScript that runs before the page's own.
            look: As for ``Tab.look``.
        """
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, target, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        tab.look(**look)
        tab.call("Page.addScriptToEvaluateOnNewDocument", source=before)
        tab.call("Page.navigate", url=path.as_uri())
        tab.wait("document.readyState === 'complete' && location.protocol === 'file:'")
        return tab


class Tab:
    """One page: what it shows, what it says, and hands to move it."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser, self._target, self._session = browser, target, session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command to this page."""
        return self._browser.call(method, self._session, **parameters)

    def close(self) -> None:
        """Close the page."""
        self._browser.call("Target.closeTarget", targetId=self._target)

    def look(
        self, *, width: int = 1280, height: int = 900, dark: bool = False, touch: bool = False
    ) -> None:
        """Set the window's size in pixels and the appearance the user prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=touch,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression; a promise is awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until a JavaScript condition holds."""
        until = time.monotonic() + SECONDS
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < until, f"never came true: {condition}"
            time.sleep(0.02)

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element in the window, scrolled into view."""
        return tuple(
            self.run(
                f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
                "e.scrollIntoView({block: 'nearest', behavior: 'instant'});"
                "const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; })()"
            )
        )

    def click(self, selector: str) -> None:
        """Press and release the mouse in the middle of an element."""
        left, top, width, height = self.box(selector)
        self.drag((left + width / 2, top + height / 2), (left + width / 2, top + height / 2))

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press at one point, move, and release at another."""
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        points = [("mouseMoved", start), ("mousePressed", start), ("mouseMoved", middle)]
        for kind, (x, y) in [*points, ("mouseMoved", end), ("mouseReleased", end)]:
            self.call(
                "Input.dispatchMouseEvent",
                type=kind, x=x, y=y, button="left", buttons=1, clickCount=1,
            )  # fmt: skip

    def press(self, key: str) -> None:
        """Press and release a key."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind, key=key, code="Space" if key == " " else key,
                windowsVirtualKeyCode=KEYS[key],
            )  # fmt: skip

    def pixels(self, selector: str | None = None) -> np.ndarray:
        """What the window shows, or one element of it, ``(height, width, 3)`` uint8."""
        clip = {}
        if selector is not None:
            left, top, width, height = self.box(selector)
            scrolled = self.run("[scrollX, scrollY]")
            clip["clip"] = {
                "x": left + scrolled[0], "y": top + scrolled[1],
                "width": width, "height": height, "scale": 1,
            }  # fmt: skip
        data = self.call("Page.captureScreenshot", format="png", **clip)["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))

    def events(self, *methods: str) -> list[dict[str, Any]]:
        """What the browser reported of this page so far, of the given kinds."""
        self.run("new Promise((done) => setTimeout(done, 50))")
        return [
            event["params"]
            for event in self._browser.events
            if event.get("sessionId") == self._session and event["method"] in methods
        ]

    def complaints(self) -> list[dict[str, Any]]:
        """Exceptions, console messages, refused or failed loads."""
        return self.events("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")

    def requests(self) -> list[str]:
        """Addresses the page asked for, those that hold their own content left out."""
        sent = self.events("Network.requestWillBeSent")
        return [e["request"]["url"] for e in sent if not e["request"]["url"].startswith("data:")]
