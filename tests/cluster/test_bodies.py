"""How bodies are received and what is taken from them; without Ray."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from coreg_ray.cluster.bodies import Reception, Refusal, image_in

PIXELS = bytes(range(256)) * 40
BOUNDARY = "--x\r\n"


async def body(*chunks: bytes, pause_s: float = 0.0) -> AsyncIterator[bytes]:
    for chunk in chunks:
        await asyncio.sleep(pause_s)
        yield chunk


async def silent() -> AsyncIterator[bytes]:
    yield b"x"
    await asyncio.sleep(60)


def refused(question: Coroutine[Any, Any, bytes]) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        asyncio.run(question)
    return refusal.value


def test_a_body_comes_whole() -> None:
    assert asyncio.run(Reception(10).receive("6", body(b"abc", b"", b"def"))) == b"abcdef"
    assert asyncio.run(Reception(6).receive(None, body(b"abc", b"def"))) == b"abcdef"


@pytest.mark.parametrize("announced", [None, "7", "6", "rubbish", ""])
def test_the_limit_holds_whatever_is_announced(announced: str | None) -> None:
    refusal = refused(Reception(6).receive(announced, body(b"abc", b"defg")))
    assert (refusal.status, "more than 6 bytes" in str(refusal)) == (413, True)


def test_what_is_announced_too_large_is_not_waited_for() -> None:
    assert refused(Reception(6).receive("7", silent())).status == 413


def test_a_client_that_falls_silent_is_ended() -> None:
    started = time.monotonic()
    assert refused(Reception(10, pause_s=0.05).receive("9", silent())).status == 408
    assert time.monotonic() - started < 5


def test_a_client_that_trickles_is_ended() -> None:
    reception = Reception(1000, pause_s=0.05)
    assert refused(reception.receive("900", body(*[b"x"] * 900, pause_s=0.02))).status == 408


def test_clients_that_send_nothing_keep_nobody_out() -> None:
    async def crowd() -> tuple[list[Any], bytes]:
        reception = Reception(10, pause_s=30, most=20)
        waiting = [asyncio.ensure_future(reception.receive("9", silent())) for _ in range(140)]
        await asyncio.sleep(0)
        answered = await asyncio.wait_for(reception.receive("3", body(b"abc", pause_s=0.01)), 5)
        ended = [task for task in waiting if task.done()]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert not reception._open
        return [task.exception() for task in ended], answered

    dropped, answered = asyncio.run(crowd())
    assert answered == b"abc"
    assert 120 <= len(dropped) <= 122
    assert {error.status for error in dropped} == {408}


def test_memory_is_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coreg_ray.cluster.bodies._LEAST_MEMORY", 1000)

    async def nearly(reception: Reception) -> bytes:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"x" * 100
            await asyncio.sleep(600)

        return await reception.receive(None, chunks())

    async def crowd() -> int:
        reception = Reception(100, pause_s=600)  # which is never over, not even on a machine that stands still
        waiting = [asyncio.ensure_future(nearly(reception)) for _ in range(60)]
        await asyncio.sleep(0.2)
        held = sum(len(one.content) for one in reception._open)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return held

    assert 0 < asyncio.run(crowd()) <= 1600


def test_who_goes_away_is_not_answered() -> None:
    async def go() -> None:
        reception = Reception(10)
        task = asyncio.ensure_future(reception.receive("9", silent()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not reception._open

    asyncio.run(go())


def form(name: str, content: bytes, *, file: bool = True) -> bytes:
    as_file = '; filename="a.png"' if file else ""
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"{as_file}\r\n\r\n'
    return head.encode() + content + b"\r\n--x--\r\n"


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


CODED = base64.b64encode(PIXELS).decode()
FORM = "multipart/form-data; boundary=x"


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (PIXELS, ""),
        (PIXELS, "image/png"),
        (PIXELS, "application/x-www-form-urlencoded"),  # what curl says unless it is told
        (as_json({"image": CODED}), "application/json"),
        (as_json({"image": f"data:image/png;base64,{CODED}"}), "Application/JSON; charset=utf-8"),
    ],
)
def test_an_image_is_taken_as_bytes_and_from_json(content: bytes, content_type: str) -> None:
    assert image_in(content, content_type) == PIXELS


@pytest.mark.parametrize("pixels", [PIXELS, PIXELS * 200, b"\r\n--\r\n\r", b""])
def test_an_image_is_taken_from_a_form(pixels: bytes) -> None:
    pytest.importorskip("python_multipart")
    assert image_in(form("image", pixels), FORM) == pixels


@pytest.mark.parametrize(
    ("content", "content_type", "reason"),
    [
        (b"{", "application/json", "is no JSON"),
        (b"[" * 100_000, "application/json", "is no JSON"),
        (b"\xff", "application/json", "is no JSON"),
        (as_json([1]), "application/json", "holds no text `image`"),
        (as_json({"image": 1}), "application/json", "holds no text `image`"),
        (as_json({"image": "no base64!"}), "application/json", "is not base64"),
        (as_json({"image": "ü"}), "application/json", "is not base64"),
        (form("picture", PIXELS), FORM, "has no file `image`"),
        (form("image", b"x", file=False), FORM, "has no file `image`"),
        (b"rubbish", FORM, "form"),
        (b"", "multipart/form-data", "cannot be read"),
        (form("image", PIXELS)[:50], FORM, "form"),
    ],
)
def test_what_holds_no_image_is_refused_in_words(content: bytes, content_type: str, reason: str) -> None:
    if content_type.startswith("multipart"):
        pytest.importorskip("python_multipart")
    ask: Callable[[], bytes] = lambda: image_in(content, content_type)  # noqa: E731
    with pytest.raises(Refusal, match=reason) as refusal:
        ask()
    assert refusal.value.status == 400
    assert "send an image file as the body" in str(refusal.value)


def test_a_real_server_answers_beside_200_clients_that_send_nothing() -> None:
    """Over sockets, with what Ray Serve answers with: clients that announce a body and fall silent get status 408."""
    uvicorn = pytest.importorskip("uvicorn")
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse

    reception = Reception(1000, pause_s=1.0, most=100)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        try:
            content = await reception.receive(request.headers.get("content-length"), request.stream())
            answer = PlainTextResponse(content)
        except Refusal as refusal:
            answer = PlainTextResponse(str(refusal), refusal.status)
        await answer(scope, receive, send)

    async def ask(port: int, content: bytes, announced: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            head = f"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {announced}\r\n\r\n"
            writer.write(head.encode() + content)
            return await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()

    async def crowd() -> tuple[list[bytes], list[bytes]]:
        server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="critical"))
        serving = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        idle = [asyncio.ensure_future(ask(port, b"", 900)) for _ in range(200)]
        await asyncio.sleep(0.3)
        answered = [await ask(port, b"abc", 3) for _ in range(10)]
        ended = await asyncio.gather(*idle)
        server.should_exit = True
        await serving
        return answered, list(ended)

    answered, ended = asyncio.run(crowd())
    assert all(answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"abc") for answer in answered)
    assert all(answer.startswith(b"HTTP/1.1 408") for answer in ended)
