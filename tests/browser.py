"""A page in a real Chromium without a window, used as a person would: with pointer, keys and fingers."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Browser:
    """Messages end in a zero byte: Chromium reads them from its file 3 and writes to its file 4.

    Attributes:
        problems: what the page wrote to its console, errors, and addresses that it asked for, but itself.
    """

    def __enter__(self):
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        to_read, self.write = os.pipe()
        self.read, to_write = os.pipe()

        def as_files_3_and_4():
            read, write = os.dup(to_read), os.dup(to_write)  # out of the way of 3 and 4
            os.dup2(read, 3)
            os.dup2(write, 4)

        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        command += ["--disable-dev-shm-usage", f"--user-data-dir={self.profile}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, preexec_fn=as_files_3_and_4, close_fds=False, **quiet)
        os.close(to_read)
        os.close(to_write)
        self.session, self.sent, self.buffer, self.problems = None, 0, b"", []
        (page,) = [t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        target = {"targetId": page["targetId"], "flatten": True}
        self.session = self.send("Target.attachToTarget", **target)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.read)
        os.close(self.write)
        shutil.rmtree(self.profile, ignore_errors=True)

    def send(self, method, **parameters):
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.sent:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _next(self):
        while b"\0" not in self.buffer:
            if not (some := os.read(self.read, 1 << 20)):
                raise RuntimeError("Chromium has ended")
            self.buffer += some
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def _note(self, event):
        kind, told = event.get("method"), event.get("params", {})
        if kind in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.problems.append(told)
        if kind == "Network.requestWillBeSent" and not told["request"]["url"].startswith(("file:", "data:", "about:")):
            self.problems.append(told["request"]["url"])

    def open(self, path, width=1280, height=900, phone=False, dark=False):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url="about:blank")  # the same page again, with another #, would not load again
        file, _, mark = str(path).partition("#")
        self.send("Page.navigate", url=Path(file).resolve().as_uri() + (f"#{mark}" if mark else ""))
        self.wait()

    def wait(self, until='document.readyState === "complete" && $("page").getAttribute("aria-busy") === "false"'):
        for _ in range(200):
            answer = self.send("Runtime.evaluate", expression=until, returnByValue=True)
            if answer["result"].get("value"):
                return
            time.sleep(0.05)
        raise TimeoutError(f"never came true: {until}")

    def ask(self, expression):
        """The value of an expression of JavaScript in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def text(self, selector):
        return self.ask(f"document.querySelector({selector!r}).textContent")

    def count(self, selector):
        return self.ask(f"document.querySelectorAll({selector!r}).length")

    def place(self, selector, across, down):
        """A place of an element, in shares of its sides, where it is on the screen."""
        x, y, width, height = self.ask(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'nearest'}});"
            "const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
        )
        return {"x": x + across * width, "y": y + down * height}

    def mouse(self, selector, across=0.5, down=0.5, click=False):
        at = self.place(selector, across, down)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", **at)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def tap(self, selector, across=0.5, down=0.5):
        points = [self.place(selector, across, down)]
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=points)
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, *keys):
        for key in keys:
            code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
            self.send("Input.dispatchKeyEvent", type="keyDown", **code, **({"text": "\r"} if key == "Enter" else {}))
            self.send("Input.dispatchKeyEvent", type="keyUp", **code)
