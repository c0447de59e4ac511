"""A door in front of an HTTP server on loopback that, while there is trouble, answers 503 or cuts connections."""

from __future__ import annotations

import random
import select
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
REQUESTS = (b"GET ", b"HEAD ", b"PUT ", b"POST ")


class FaultyStore:
    """A door that fails at times.

    Attributes:
        to_fail: requests still to fail. failed: how many have. port: of the door.
        first: requests that come through before.
        cut_at: bytes of an answer that come through where one fails; 0: it is too busy; None: every other one
            fails, and how is drawn each time.
    """

    def __init__(self, host: str, port: int, seed: int) -> None:
        self.to_fail, self.failed, self.first = 0, 0, 0
        self.cut_at: int | None = None
        self._target = (host, port)
        self._random, self._lock = random.Random(seed), threading.Lock()
        store = self

        class Door(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError), socket.create_connection(store._target) as server:
                    store._forward(self.request, server)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Door)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        """Carry bytes both ways until one side closes, or this request's turn to fail has come."""
        left: int | None = None  # bytes of the answer before the connection is cut
        while True:
            ready, _, _ = select.select([client, server], [], [])
            if client in ready:
                sent = client.recv(65536)
                fault = self._draw() if sent.startswith(REQUESTS) else None
                if fault == 0:
                    client.sendall(BUSY)
                    return
                left = fault
                if not sent:
                    return
                server.sendall(sent)
            if server in ready:
                answer = server.recv(65536)
                client.sendall(answer[:left])
                if not answer or (left is not None and left <= len(answer)):
                    return
                left = None if left is None else left - len(answer)

    def _draw(self) -> int | None:
        """None: no fault. 0: it is too busy. Else after how many bytes the answer is cut."""
        with self._lock:
            if self.to_fail and self.first:
                self.first -= 1
                return None
            if not self.to_fail or (self.cut_at is None and self._random.random() < 0.5):
                return None
            self.to_fail, self.failed = self.to_fail - 1, self.failed + 1
            if self.cut_at is not None:
                return self.cut_at
            return self._random.choice((0, self._random.randrange(1, 400)))


@contextmanager
def faulty_store(host: str, port: int, seed: int) -> Iterator[FaultyStore]:
    """A door to the server at `host:port` that is open until the block ends."""
    store = FaultyStore(host, port, seed)
    thread = threading.Thread(target=store._server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store._server.shutdown()
        store._server.server_close()
