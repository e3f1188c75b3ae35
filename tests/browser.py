"""A headless Chromium through its driver's own protocol (W3C WebDriver), for tests of pages."""

import base64
import json
import shutil
import subprocess
import urllib.request
from contextlib import contextmanager

#: Whether there is a browser to test with.
PRESENT = bool(shutil.which("chromium") and shutil.which("chromedriver"))

_FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --hide-scrollbars""".split()


class Browser:
    """One page in one window."""

    def __init__(self, port):
        self._root = f"http://127.0.0.1:{port}"
        self._session = None

    def _call(self, path, body=None, method="POST"):
        data = None if method != "POST" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self._root + path, data, {"Content-Type": "application/json"}, method=method)
        # Never through a proxy: the driver is on this machine.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def start(self, profile):
        options = {"args": [*_FLAGS, f"--user-data-dir={profile}"], "binary": shutil.which("chromium")}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        found = self._call("/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{found['sessionId']}"
        self._call(f"{self._session}/url", {"url": "about:blank"})
        self.requests()  # those of the page that a browser begins with

    def stop(self):
        if self._session:
            self._call(self._session, method="DELETE")

    def show(self, path, width=1200, height=900):
        """Open a file in a window of that size; a width below 500 is a phone's."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)
        self._call(f"{self._session}/url", {"url": path.as_uri()})

    def run(self, script, *arguments):
        """What a script returns."""
        return self._call(f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def press(self, *keys):
        """Send keys to whatever has the focus."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call(f"{self._session}/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def devtools(self, command, **parameters):
        return self._call(f"{self._session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def console(self):
        """What the page has written to the console."""
        return self._call(f"{self._session}/se/log", {"type": "browser"})

    def requests(self):
        """The addresses that were asked for."""
        log = self._call(f"{self._session}/se/log", {"type": "performance"})
        lines = [json.loads(each["message"])["message"] for each in log]
        return [each["params"]["request"]["url"] for each in lines if each["method"] == "Network.requestWillBeSent"]

    def picture(self, path, **clip):
        """Save the whole page, or a part of it, as a PNG file."""
        size = self.run("const d = document.documentElement; return [d.clientWidth, d.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1, **clip}
        found = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browser(profile):
    """A browser with an empty profile in the directory `profile`."""
    driver = subprocess.Popen(
        [shutil.which("chromedriver"), "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    found = None
    try:
        port = next(line.split("port ")[1].strip(" .\n") for line in driver.stdout if "successfully on port" in line)
        found = Browser(int(port))
        found.start(profile)
        yield found
    finally:
        if found:
            found.stop()
        driver.terminate()
        driver.wait(30)
