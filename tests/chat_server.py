"""A chat server on loopback that speaks the OpenAI-compatible protocol and misbehaves on purpose."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog")


@dataclass
class Script:
    """What the server does: `faults` are served one by one before it behaves; images are bright (dog) or dark (cat).

    Attributes:
        headers: sent with every status that is a fault. refuses: what is seen in an image -> the status it is refused
            with. words: what the body of a fault says. keys, heard: authorisations, and all headers, that came.
    """

    faults: list[str] = field(default_factory=list)
    answer: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    refuses: dict[str, int] = field(default_factory=dict)
    words: str = "no"
    requests: int = 0
    at_once: int = 0
    most_at_once: int = 0
    keys: set[str] = field(default_factory=set)
    heard: dict[str, str] = field(default_factory=dict)
    address: str = ""
    lock: Any = field(default_factory=threading.Lock)


@contextmanager
def chat_server(*faults: str, answer: str | None = None, **settings: Any) -> Iterator[Script]:
    """Serve until the block ends; faults: "429", "500", "401", "slow", "truncated", "empty"; settings as in Script."""
    script = Script(list(faults), answer, **settings)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with script.lock:
                script.requests += 1
                script.at_once += 1
                script.most_at_once = max(script.most_at_once, script.at_once)
                script.keys.add(self.headers.get("Authorization", ""))
                script.heard.update(self.headers.items())
                fault = script.faults.pop(0) if script.faults else ""
            time.sleep(1.5 if fault == "slow" else 0.01)
            with script.lock:
                script.at_once -= 1
            self.respond(fault, body)

        def respond(self, fault: str, body: dict[str, Any]) -> None:
            status = int(fault) if fault.isdigit() else script.refuses.get(seen(body), 200)
            message = {"role": "assistant", "content": script.answer or seen(body)}
            reply = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
            reply["choices"] = [] if fault == "empty" else [{"index": 0, "finish_reason": "stop", "message": message}]
            reply["usage"] = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
            data = json.dumps(reply if status == 200 else {"error": {"message": script.words}}).encode()
            data = data[: len(data) // 2] if fault == "truncated" else data
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                for name, value in script.headers.items() if status != 200 else ():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # the client did not wait

        def log_message(self, *_: Any) -> None:
            """Stay quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    script.address = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()


def seen(body: dict[str, Any]) -> str:
    """What a perfect model would say about the picture in a request."""
    parts = {part["type"]: part for part in body["messages"][0]["content"]}
    data = base64.b64decode(parts["image_url"]["image_url"]["url"].split(",", 1)[1])
    level = np.asarray(Image.open(io.BytesIO(data))).mean()
    return CLASSES[int(level > 127)]
