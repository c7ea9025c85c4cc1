"""Headless Chromium, controlled through a pipe with the DevTools protocol.

    with opened(folder) as browser:
        browser.open("http://127.0.0.1:3002/", dark=True)
        browser.screenshot(folder / "page.png")

https://chromedevtools.github.io/devtools-protocol/. A missing Chromium is installed from Debian's packages when this
runs as root.
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

from sandbox.apt_lock import apt_lock
from sandbox.servers import ServerMissing

ANSWER_SECONDS = 60.0
INSTALL_SECONDS = 600.0
PHONE_PIXELS = 600  # a narrower window is a phone's
_NAMES = ("chromium", "chromium-browser", "google-chrome")


class BrowserError(Exception):
    """Chromium did not answer, refused a command, or a script on the page failed."""


def chromium() -> str:
    """The program's path. Raises ServerMissing."""
    if not _found() and os.geteuid() == 0 and shutil.which("apt-get"):
        with apt_lock():
            if not _found():  # another process may have done it
                _install()
    if path := _found():
        return path
    raise ServerMissing("needs Chromium: apt-get install chromium (done automatically only as root, on Debian)")


def _found() -> str | None:
    return next(filter(None, map(shutil.which, _NAMES)), None)


def _install() -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"]):
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["apt-get", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=INSTALL_SECONDS,
                check=False,
            )


class Browser:
    """One tab of one Chromium. Console errors and what the page's policy refused are in ``complaints``.

    Every method raises BrowserError.
    """

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
        """Opens a page in a window of this size and theme, and waits until it is loaded."""
        self.do("Network.setExtraHTTPHeaders", headers=headers)
        phone = width < PHONE_PIXELS
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.theme(dark=dark)
        self.do("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def theme(self, *, dark: bool) -> None:
        """Switches the theme of the open page."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", features=[feature])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = self.do("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = ANSWER_SECONDS) -> None:
        """Waits until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(script):
            if time.monotonic() > deadline:
                raise BrowserError(f"not within {seconds:g} s: {script}")
            select.select([self._from], [], [], 0.05)

    def text(self) -> str:
        """The visible text of the page."""
        return str(self.run("document.body.innerText"))

    def screenshot(self, path: Path, *, height: int | None = None) -> Path:
        """A PNG of the whole page, however long it is, or of its uppermost ``height`` pixels."""
        clip = {}
        if height is not None:
            width = self.run("document.documentElement.clientWidth")
            clip = {"clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}}
        shot = self.do("Page.captureScreenshot", captureBeyondViewport=True, format="png", **clip)
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
                if "error" in message:
                    raise BrowserError(f"{method}: {message['error']}")
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
            piece = os.read(self._from, 1 << 20) if ready else b""
            if not piece:
                raise BrowserError("Chromium has ended" if ready else "Chromium does not answer")
            self._read += piece
        message, _, self._read = self._read.partition(b"\0")
        return dict(json.loads(message))

    def _listen(self, message: dict[str, Any]) -> None:
        event = message.get("params", {})
        if message.get("method") == "Log.entryAdded":
            self.complaints.append(event["entry"]["text"])
        elif message.get("method") in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
            self.complaints.append(json.dumps(event))


@contextmanager
def opened(folder: Path) -> Iterator[Browser]:
    """A Chromium that ends with the block; its files are in ``folder``. Raises ServerMissing, BrowserError."""
    browser = Browser(chromium(), folder)
    try:
        yield browser
    finally:
        browser.close()


def _pipe() -> tuple[int, int]:
    """The two ends of a pipe, numbered above the descriptors that Chromium uses for its own."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(end)
    return ends[0], ends[1]
