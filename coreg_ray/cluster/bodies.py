"""What clients of a served model send: how a body is received, and the image that is in it.

A client that sends nothing costs a place in a list, not a place at work: bodies are received beside one another, a few
hundred at a time; one that pauses for too long, or takes too long as a whole, is ended, and so is the one that has been
silent longest when there are too many, or when together they hold too much memory. Ray-free.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

MOST_RECEIVED = 512  # bodies on their way at once
_PAUSES = 6  # so many times the longest pause is what a body may take as a whole
_BODIES_IN_MEMORY = 16  # of the largest size; smaller ones are more
_LEAST_MEMORY = 256_000_000
_FIELD = "image"
_HOW = f'send an image file as the body, as the form field `{_FIELD}`, or as JSON {{"{_FIELD}": base64}}'


class Refusal(Exception):
    """What a client is told: an HTTP status and words."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(eq=False)
class _Body:
    """A body on its way."""

    content: bytearray = field(default_factory=bytearray)
    heard: float = field(default_factory=time.monotonic)
    task: asyncio.Task[bytes] | None = None
    dropped: bool = False


@dataclass
class Reception:
    """All bodies that one replica is receiving.

    Attributes:
        max_bytes: of one body. pause_s: longest time without a byte; the whole body may take six times that. most:
            bodies at once.
    """

    max_bytes: int
    pause_s: float = 10.0
    most: int = MOST_RECEIVED
    _open: set[_Body] = field(default_factory=set)

    async def receive(self, announced: str | None, chunks: AsyncIterator[bytes]) -> bytes:
        """A whole body.

        Args:
            announced: the Content-Length, where there is one. chunks: the body as it comes, of any length.

        Raises:
            Refusal: more than `max_bytes` are announced or have come (413), or it comes too slowly (408).
        """
        if announced and announced.isdecimal() and int(announced) > self.max_bytes:
            raise self._too_large()
        body = _Body()
        body.task = asyncio.ensure_future(self._collect(body, chunks))
        self._open.add(body)
        try:
            self._make_room()
            return await asyncio.wait_for(body.task, _PAUSES * self.pause_s)
        except asyncio.CancelledError:
            if not body.dropped:
                raise  # the client has gone, or the replica ends
            raise Refusal(408, "too many clients send their bodies slowly, and this was the slowest") from None
        except asyncio.TimeoutError as error:
            raise Refusal(
                408,
                f"the body did not come in time: a pause of {self.pause_s:g} s, or {_PAUSES * self.pause_s:g} s "
                "altogether; send it faster, or a smaller image",
            ) from error
        finally:
            self._open.discard(body)

    async def _collect(self, body: _Body, chunks: AsyncIterator[bytes]) -> bytes:
        following = chunks.__aiter__()
        while True:
            try:
                chunk = await asyncio.wait_for(following.__anext__(), self.pause_s)
            except StopAsyncIteration:
                return bytes(body.content)
            body.content += chunk
            body.heard = time.monotonic()
            if len(body.content) > self.max_bytes:
                raise self._too_large()
            self._make_room()

    def _make_room(self) -> None:
        """Drop bodies that have been silent for longest until number and memory are within their limits."""
        most_bytes = max(_LEAST_MEMORY, _BODIES_IN_MEMORY * self.max_bytes)
        held = sum(len(body.content) for body in self._open) if len(self._open) > _BODIES_IN_MEMORY else 0
        for body in sorted(self._open, key=lambda body: body.heard):
            if len(self._open) <= self.most and held <= most_bytes:
                return
            held -= len(body.content)
            body.dropped = True
            self._open.discard(body)
            if body.task is not None:
                body.task.cancel()

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body has more than {self.max_bytes} bytes; send a smaller image")


def image_in(content: bytes, content_type: str) -> bytes:
    """The image file in a body: a form's field, base64 in JSON, or the body itself, whatever it is said to be.

    Raises:
        Refusal: a form or JSON that holds none.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        return _in_json(content)
    return _in_form(content, content_type) if kind == "multipart/form-data" else content


def _in_json(content: bytes) -> bytes:
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is no JSON ({error}); {_HOW}") from error
    text = tree.get(_FIELD) if isinstance(tree, dict) else None
    if not isinstance(text, str):
        raise Refusal(400, f"the JSON holds no text `{_FIELD}`; {_HOW}")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, f"`{_FIELD}` is not base64 ({error}); {_HOW}") from error


def _in_form(content: bytes, content_type: str) -> bytes:
    try:
        import python_multipart  # noqa: F401 - what starlette parses with
        from starlette.datastructures import Headers, UploadFile
        from starlette.formparsers import MultiPartException, MultiPartParser
    except ImportError as error:
        raise Refusal(415, 'forms need python-multipart on the server: pip install "coreg-ray[serve]"') from error

    async def once() -> AsyncGenerator[bytes, None]:
        yield content

    async def parse() -> bytes:
        form = await MultiPartParser(
            Headers({"content-type": content_type}), once(), max_files=8, max_fields=64
        ).parse()
        try:
            upload = form.get(_FIELD)
            if not isinstance(upload, UploadFile):
                raise Refusal(400, f"the form has no file `{_FIELD}`; {_HOW}")
            return await upload.read()
        finally:
            await form.close()

    try:
        return asyncio.run(parse())
    except (MultiPartException, KeyError, ValueError) as error:
        raise Refusal(400, f"the form cannot be read ({error}); {_HOW}") from error
