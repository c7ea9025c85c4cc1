"""Headless Chromium, driven over a pipe by the DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/. It is installed from Debian's packages where it is missing and
the tests run as root; elsewhere tests that need it are skipped.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sandbox.apt_lock import apt_lock

ANSWER_SECONDS = 60.0
INSTALL_SECONDS = 600.0
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str:
    """The program's path; skips the test, or fails it where CI=true, when it cannot be had."""
    if not _found() and os.geteuid() == 0 and shutil.which("apt-get"):
        with apt_lock():
            if not _found():  # another process may have been quicker
                _install()
    if path := _found():
        return path
    reason = "needs Chromium: apt-get install chromium (done by itself only as root, on Debian)"
    if os.environ.get("CI", "").lower() == "true" and os.geteuid() == 0:
        pytest.fail(reason)
    pytest.skip(reason)


def _found() -> str | None:
    return next(filter(None, map(shutil.which, _NAMES)), None)


def _install() -> None:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"]):
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(["apt-get", *arguments], env=environment, timeout=INSTALL_SECONDS, check=False, **quiet)


class Browser:
    """One tab of one Chromium. What its console says, and what its policy refused, is in ``complaints``."""

    def __init__(self, path: str, folder: Path) -> None:
        to_browser, self._to = _pipe()
        self._from, from_browser = _pipe()
        argv = [path, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        argv += [
            "--hide-scrollbars",
            "--remote-debugging-pipe",
            f"--user-data-dir={folder / 'profile'}",
            "about:blank",
        ]
        log = os.open(folder / "chromium.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        # Chromium reads its commands from descriptor 3 and answers on 4
        actions = [(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, to_browser, 3), (os.POSIX_SPAWN_DUP2, from_browser, 4)]
        environment = os.environ | {"HOME": str(folder)}
        self._pid = os.posix_spawn(path, argv, environment, file_actions=actions, setpgroup=0)
        for each in (to_browser, from_browser, log):
            os.close(each)
        self._read = b""
        self._number = 0
        self._session: str | None = None
        self.complaints: list[str] = []
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.do(f"{domain}.enable")

    def open(self, url: str, *, width: int = 1200, height: int = 900, dark: bool = False, **headers: str) -> None:
        """Opens a page in a window of this size and theme, and waits until it is there."""
        self.do("Network.setExtraHTTPHeaders", headers=headers)
        phone = width < 600
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.theme(dark=dark)
        self.do("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def theme(self, *, dark: bool) -> None:
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", features=[feature])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = self.do("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = ANSWER_SECONDS) -> None:
        """Waits until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {script}"
            select.select([self._from], [], [], 0.05)

    def text(self) -> str:
        """What a person reads."""
        return str(self.run("document.body.innerText"))

    def screenshot(self, path: Path) -> Path:
        """The whole page, however long, as a PNG."""
        shot = self.do("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def do(self, method: str, **parameters: Any) -> Any:
        """Sends one command and returns its result."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        command |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(command).encode() + b"\0")
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            message = self._next(deadline)
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._listen(message)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._to)
        os.close(self._from)

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "Chromium does not answer"
            piece = os.read(self._from, 1 << 20)
            assert piece, "Chromium is gone"
            self._read += piece
        message, _, self._read = self._read.partition(b"\0")
        return dict(json.loads(message))

    def _listen(self, message: dict[str, Any]) -> None:
        about = message.get("params", {})
        if message.get("method") == "Log.entryAdded":
            self.complaints.append(about["entry"]["text"])
        elif message.get("method") in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
            self.complaints.append(json.dumps(about))


@contextmanager
def opened(folder: Path) -> Iterator[Browser]:
    """A Chromium that ends with the block; its files are in ``folder``."""
    browser = Browser(chromium(), folder)
    try:
        yield browser
    finally:
        browser.close()


def _pipe() -> tuple[int, int]:
    """A pipe's two ends, above the descriptors that Chromium expects its own at."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(end)
    return ends[0], ends[1]
