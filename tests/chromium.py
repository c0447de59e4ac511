"""A person's hands and eyes: headless Chromium, driven over its DevTools protocol with aiohttp's websocket client."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="no Chromium found; on Debian: apt-get install chromium")

_KEYS = {"Enter": 13, "Backspace": 8, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, "ArrowUp": 38}


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[str]:
    """A browser until the block ends; gives the address of its DevTools on loopback."""
    assert PROGRAM is not None
    command = [
        PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--no-first-run", "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
    ]  # fmt: skip
    browser = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert browser.stderr is not None
        for line in browser.stderr:
            listening = re.search(r"DevTools listening on ws://([^/]+)/", line)
            if listening:
                yield f"http://{listening[1]}"
                return
        pytest.fail("Chromium did not start")
    finally:
        browser.terminate()
        browser.wait(10)
        if browser.stderr is not None:
            browser.stderr.close()


class Tab:
    """One tab. `events` are all that the protocol told, in order; `errors` what the console complained about."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.events: list[dict[str, Any]] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            content = json.loads(message.data)
            if "id" in content:
                self._waiting.pop(content["id"]).set_result(content)
            else:
                self.events.append(content)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask the browser for something."""
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        waiting = self._waiting[number]
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        answer = await asyncio.wait_for(waiting, 20)
        assert "error" not in answer, answer
        return dict(answer["result"])

    async def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        told = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def until(self, condition: str, within_s: float = 10) -> Any:
        """Wait for an expression to be true in the page; its value."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            value = await self.run(condition)
            if value:
                return value
            await asyncio.sleep(0.02)
        raise AssertionError(f"never became true: {condition}\n{await self.run('document.body.innerText')}")

    async def open(self, address: str) -> None:
        """Go to a page and wait until it is ready for a person."""
        await self.call("Page.navigate", url=address)
        await self.until("document.body?.dataset.ready === '1'")

    async def key(self, name: str) -> None:
        """Press and release one key."""
        text = "\r" if name == "Enter" else name if len(name) == 1 else ""
        key = {"key": name, "windowsVirtualKeyCode": _KEYS.get(name, ord(name[0].upper()))}
        await self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **key)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    async def type(self, text: str) -> None:
        """One key after the other."""
        for letter in text:
            await self.key(letter)

    async def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element, after scrolling to it."""
        place = f"document.querySelector({json.dumps(selector)})"
        await self.until(f"{place} && !{place}.disabled")
        x, y = await self.run(
            f"(() => {{ const e = {place}; e.scrollIntoView({{block: 'nearest'}}); const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def size(self, width: int, height: int, phone: bool = False) -> None:
        """Look at the page in a window of this size."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )

    async def dark(self, on: bool = True) -> None:
        """Prefer dark colours."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[feature])

    async def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode((await self.call("Page.captureScreenshot"))["data"]))

    def errors(self) -> list[str]:
        """What the console complained about."""
        told = [event["params"] for event in self.events if event["method"] == "Runtime.exceptionThrown"]
        thrown = [event["exceptionDetails"] for event in told]
        logged = [event["params"]["entry"] for event in self.events if event["method"] == "Log.entryAdded"]
        return [str(entry) for entry in thrown] + [entry["text"] for entry in logged if entry["level"] == "error"]


@contextlib.asynccontextmanager
async def tab(devtools: str) -> AsyncIterator[Tab]:
    """A new tab until the block ends."""
    async with aiohttp.ClientSession() as session:
        async with session.put(f"{devtools}/json/new?about:blank") as answer:
            made = await answer.json()
        async with session.ws_connect(made["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            one = Tab(socket)  # type: ignore[arg-type]  # aiohttp tells sockets that decode text from others
            for domain in ("Page", "Runtime", "Log", "Network"):
                await one.call(f"{domain}.enable")
            yield one
        async with session.get(f"{devtools}/json/close/{made['id']}"):
            pass
