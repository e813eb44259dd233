"""A headless Chromium that tests drive as a user does: by keys and by a mouse, over its debugging pipe."""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

import pytest

_WAIT = 60.0  # seconds; the machine may be busy
_KEYS = {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
_SHIFT = 8
# Chromium reads commands from descriptor 3, and writes answers to descriptor 4.
_EXECUTE = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


def find() -> str:
    """Return the path of Chromium; skip the test where it is not installed."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    # A browser is no Python package, so the README's test command cannot install it.
    pytest.skip("Chromium is not installed")


class Browser:
    """One tab of a running Chromium; see `start`.

    Attributes:
      requests: URLs that its pages have asked for.
      problems: errors and refusals that its pages have logged, such as those of their Content-Security-Policy.
    """

    def __init__(self, commands: BinaryIO, answers: BinaryIO) -> None:
        self._commands, self._answers = commands, answers
        self._number, self._session, self._buffer = 0, "", b""
        self.requests: list[str] = []
        self.problems: list[str] = []
        self._loaded = False
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")
        self.resize(1280, 900)

    def command(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Run a command of the DevTools protocol."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])

    def open(self, url: str) -> None:
        """Open a page, and wait until it is loaded."""
        self._loaded = False
        result = self.command("Page.navigate", url=url)
        assert "errorText" not in result, (url, result)
        self._wait_for_load()

    def close(self) -> None:
        """End Chromium."""
        self._session = ""
        self.command("Browser.close")

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, as JSON has it; a promise is awaited."""
        result = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, (expression, result["exceptionDetails"])
        return result["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until a JavaScript expression is true, and return its value."""
        deadline = time.monotonic() + _WAIT
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"never true: {expression}; problems: {self.problems}"
            time.sleep(0.03)
        return value

    def key(self, key: str, times: int = 1, *, shift: bool = False) -> None:
        """Press a key; a printable one writes its character."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = _KEYS.get(key) or ord(key.upper())
        common = {"key": key, "windowsVirtualKeyCode": code, "modifiers": _SHIFT if shift else 0}
        common["code"] = key if len(key) > 1 else {" ": "Space"}.get(key, f"Key{key.upper()}" if key.isalpha() else "")
        for _ in range(times):
            pressed = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
            self.command("Input.dispatchKeyEvent", **common, **pressed)
            self.command("Input.dispatchKeyEvent", **common, type="keyUp")

    def type(self, text: str) -> None:
        """Write a text into the element that has the focus."""
        self.command("Input.insertText", text=text)

    def tab_to(self, selector: str, most: int = 60, *, shift: bool = False) -> None:
        """Press Tab until the element of a CSS selector has the focus."""
        for _ in range(most):
            self.key("Tab", shift=shift)
            if self.evaluate(f"document.activeElement.matches({json.dumps(selector)})"):
                return
        raise AssertionError(f"{selector} is not reached by the key Tab")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Send a mouse event: `mouseMoved`, `mousePressed`, `mouseReleased` or `mouseWheel`."""
        self.command("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, selector: str) -> None:
        """Click at the centre of an element."""
        x, y = self.centre(selector)
        button = {"button": "left", "clickCount": 1}
        self.mouse("mouseMoved", x, y)
        self.mouse("mousePressed", x, y, **button)
        self.mouse("mouseReleased", x, y, **button)

    def centre(self, selector: str) -> tuple[float, float]:
        """Scroll to an element, and return the position of its centre in the window."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.evaluate(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({element}.getBoundingClientRect())")
        return box[0], box[1]

    def resize(self, width: int, height: int, scale: float = 1.0) -> None:
        """Give the window another size in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **size)

    def screenshot(self, path: pathlib.Path) -> None:
        """Write what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"]))

    def names(self) -> list[tuple[str, str]]:
        """Return role and name of everything on the page, as a screen reader gets them."""
        self.command("Accessibility.enable")
        nodes: list[dict[str, Any]] = []
        while len(nodes) < 2:  # the tree is made after the page
            nodes = [node for node in self.command("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
        self.command("Accessibility.disable")
        return [(node["role"]["value"], node["name"]["value"]) for node in nodes if "name" in node]

    def _wait_for_load(self) -> None:
        while not self._loaded:
            self._next()

    def _next(self) -> dict[str, Any]:
        """Read one message; keep what events say."""
        while b"\0" not in self._buffer:
            data = os.read(self._answers.fileno(), 1 << 16)
            assert data, "Chromium has ended"
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = dict(json.loads(text))
        details = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(details["request"]["url"])
            case "Log.entryAdded" if details["entry"]["level"] == "error":
                self.problems.append(f"{details['entry']['text']} {details['entry'].get('url', '')}")
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(details["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if details["type"] in ("error", "warning", "assert"):
                self.problems.append(json.dumps(details["args"]))
        return message


@contextlib.contextmanager
def start(folder: pathlib.Path) -> Iterator[Browser]:
    """Run Chromium with a profile in `folder`, without network but for this machine."""
    path = find()
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    words = [path, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
    words += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--lang=en"]
    words += ["--proxy-server=127.0.0.1:9", "--proxy-bypass-list=127.0.0.1;localhost", f"--user-data-dir={folder}"]
    with subprocess.Popen(
        [sys.executable, "-c", _EXECUTE, str(in_read), str(out_write), *words, "about:blank"],
        pass_fds=(in_read, out_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        os.close(in_read)
        os.close(out_write)
        try:
            with os.fdopen(in_write, "wb") as commands, os.fdopen(out_read, "rb") as answers:
                browser = Browser(commands, answers)
                yield browser
                browser.close()
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
