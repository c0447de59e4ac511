"""The review page over HTTP on loopback: one page, its data, its pictures; whoever has its address may use it.

The address holds a token that nobody can guess; nothing is answered without it. Names other than this machine's own in
the header `Host` are refused, so that no web page can reach it under a name of its own (DNS rebinding), no other page
may read or send anything (no CORS, no cookies, JSON alone), and the page itself may load nothing from elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any

from aiohttp import web

from coreg_ray.errors import UserError
from coreg_ray.review.items import Items
from coreg_ray.review.pictures import Gone, Pictures
from coreg_ray.review.proceed import Continuation
from coreg_ray.review.session import Session

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
MERGED_AFTER_S = 1.0  # of quiet; every label is in the journal by then
_LARGEST_BODY = 4_000_000  # bytes: the labels of a whole grid
_READERS = 4  # pictures read and made anew at once
_OWN_NAMES = {"127.0.0.1", "localhost", "[::1]"}
_FILES = {"page.html": "text/html", "page.css": "text/css"}
_SCRIPTS = ("state.js", "answers.js", "classes.js", "picture.js", "grid.js", "page.js")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def listening(port: int) -> socket.socket:
    """A socket on loopback; port 0 takes any free one. Raises UserError: the port is in use, or not for this user."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise UserError(
            f"--port {port} cannot be listened on ({error.strerror}); choose another, or leave it out for any free one"
        ) from error
    return listener


class ReviewServer:
    """One review: its page, and who may see it."""

    def __init__(self, name: str, session: Session, pictures: Pictures, continuation: Continuation) -> None:
        """`name`: the run as the user named it."""
        self.token = secrets.token_urlsafe(24)
        self._name, self._session, self._pictures, self._continuation = name, session, pictures, continuation
        self._readers = ThreadPoolExecutor(_READERS, "pictures")
        self._writer = ThreadPoolExecutor(1, "labels")
        self._given = asyncio.Event()
        self._facts = json.dumps(facts(name, session.items), ensure_ascii=False).encode()

    async def run(self, listener: socket.socket, ready: Callable[[], None]) -> None:
        """Answer until this is cancelled; `ready` is called when it does."""
        runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.SockSite(runner, listener).start()
            ready()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    def application(self) -> web.Application:
        """The routes; all but the refusals lie below the token."""
        app = web.Application(middlewares=[self._guard], client_max_size=_LARGEST_BODY)
        below = f"/{self.token}"
        app.router.add_get(f"{below}/", self._file)
        app.router.add_get(f"{below}/{{file:[a-z]+[.](?:css|js)}}", self._file)
        app.router.add_get(f"{below}/facts", self._tell_facts)
        app.router.add_get(f"{below}/state", self._tell_state)
        app.router.add_get(f"{below}/image/{{number:[0-9]{{1,9}}}}", self._picture)
        app.router.add_post(f"{below}/labels", self._label)
        app.router.add_get(f"{below}/training", self._tell_training)
        app.router.add_post(f"{below}/training", self._train)
        app.cleanup_ctx.append(self._merging)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse whoever has no business here; give every answer its headers."""
        try:
            response = await handler(self._admitted(request))
        except web.HTTPException as refusal:
            response = _text(refusal.text or refusal.reason, refusal.status)
        except (UserError, OSError) as error:
            log.warning("%s", error)
            response = _text(str(error), 500)
        response.headers.update(_HEADERS)
        return response

    def _admitted(self, request: web.Request) -> web.Request:
        host = request.headers.get("Host", "")
        if host.rpartition(":")[0] not in _OWN_NAMES and host not in _OWN_NAMES:
            raise web.HTTPForbidden(text="This page is only there under 127.0.0.1 or localhost.")
        token = request.path.split("/")[1]
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            raise web.HTTPForbidden(text="Open the whole address that the terminal shows, token included.")
        if request.method == "POST":
            origin = request.headers.get("Origin")
            if origin is not None and origin != f"http://{host}":
                raise web.HTTPForbidden(text="Another page may not send labels.")
            if request.content_type != "application/json":
                raise web.HTTPUnsupportedMediaType(text="Labels are sent as JSON.")
        return request

    async def _merging(self, app: web.Application) -> AsyncIterator[None]:
        """Bring labels into review.csv whenever some have been given and the person pauses, and at the end."""
        merging = asyncio.create_task(self._merge_after_pauses())
        yield
        merging.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await merging

    async def _merge_after_pauses(self) -> None:
        while True:
            await self._given.wait()
            self._given.clear()
            await asyncio.sleep(MERGED_AFTER_S)
            if not self._given.is_set():
                await self._write(self._session.merge)

    async def _write(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._writer, work, *arguments)

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info.get("file", "page.html")
        if name in _SCRIPTS:
            kind = "text/javascript"
        elif name in _FILES:
            kind = _FILES[name]
        else:
            raise web.HTTPNotFound
        body = (resources.files(__package__) / name).read_bytes()
        return web.Response(body=body, content_type=kind, charset="utf-8")

    async def _tell_facts(self, request: web.Request) -> web.Response:
        return web.Response(body=self._facts, content_type="application/json")

    async def _tell_state(self, request: web.Request) -> web.Response:
        """All labels, or with ?since=C those that have changed since C changes."""
        since = request.query.get("since")
        if since is None:
            return web.json_response({"labels": self._session.labels(), **self._summary()})
        if not since.isdecimal():
            raise web.HTTPBadRequest(text="since is a number.")
        return web.json_response({"labels": self._session.since(int(since[:12])), **self._summary()})

    def _summary(self) -> dict[str, Any]:
        session = self._session
        return {"changes": len(session.changes), "trouble": session.trouble, "accuracy": session.accuracy()}

    async def _picture(self, request: web.Request) -> web.Response:
        number, side = int(request.match_info["number"]), request.query.get("side")
        if number >= len(self._session):
            raise web.HTTPNotFound(text="There is no such image in this list.")
        if side is not None and side not in ("192", "384"):
            raise web.HTTPBadRequest(text="side is 192 or 384.")
        loop = asyncio.get_running_loop()
        try:
            picture = await loop.run_in_executor(
                self._readers, self._pictures.read, number, int(side) if side else None
            )
        except Gone as error:
            raise web.HTTPNotFound(text=str(error)) from error
        return web.Response(body=picture.content, content_type=picture.kind)

    async def _label(self, request: web.Request) -> web.Response:
        """Store labels: {"labels": {place: label}, "before": {...}, "how": ..., "order": ..., "since": changes}."""
        try:
            content = await request.json()
            labels = {int(row): str(label) for row, label in content["labels"].items()}
            before = {int(row): str(label) for row, label in content.get("before", {}).items()}
            since = int(content.get("since", 0))
            how, order = str(content.get("how")), str(content.get("order"))
            answer = await self._write(self._session.give, labels, before, how, order)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise web.HTTPBadRequest(text=f"These are no labels: {error}") from error
        self._given.set()
        told = {"stored": answer.stored, "refused": answer.refused, "labels": self._session.since(since)}
        return web.json_response({**told, **self._summary()})

    async def _tell_training(self, request: web.Request) -> web.Response:
        return web.json_response(await self._write(self._continuation.state))

    async def _train(self, request: web.Request) -> web.Response:
        """Start the training that continues with these labels."""
        await self._write(self._session.merge)
        trouble = self._session.trouble or self._session.obstacle()
        if trouble:
            raise web.HTTPConflict(text=trouble)
        await self._write(self._continuation.start)
        return web.json_response(await self._write(self._continuation.state))


def facts(name: str, items: Items) -> dict[str, Any]:
    """What does not change while people review: classes, their names, and what was answered about each image."""
    return {
        "run": name,
        "ids": items.ids,
        "classes": items.class_names,
        "names": [entry[1:] for entry in items.names],
        "words": items.words,
        "columns": items.columns,
    }


def _text(text: str, status: int) -> web.Response:
    return web.Response(text=text, status=status, content_type="text/plain")
