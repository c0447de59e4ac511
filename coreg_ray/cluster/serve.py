"""The model behind HTTP, by Ray Serve (extra `serve`).

    POST /        one image file as the body -> {"class": "...", "probability": 0.9, "top": [{"class": ...}, ...]}
    GET  /health                             -> {"status": "ok", "classes": [...]}

Images that arrive together pass through the network together. Everything a client can do wrong is answered with a 4xx
status and {"error": ...}; nothing of a request is executed or kept.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from coreg_ray.deploy.model import WEIGHTS, Model, read_card
from coreg_ray.errors import UserError
from coreg_ray.images.decode import Fit, Undecodable, decode
from coreg_ray.run.storage import Folder

try:
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import JSONResponse
except ImportError as error:
    raise UserError(f'serving needs Ray Serve ({error}); pip install "coreg-ray[serve]"') from error

MAX_BATCH = 64
BATCH_WAIT_S = 0.005
TOP = 5


class TooLarge(ValueError):
    """A request body above the limit."""


@serve.deployment(max_ongoing_requests=2 * MAX_BATCH, logging_config={"enable_access_log": False})
class Classifier:
    """One replica with the model in memory."""

    def __init__(self, card: dict[str, Any], weights: bytes, max_bytes: int) -> None:
        self._model = Model.build(card, weights, "cuda" if ray.get_gpu_ids() else "cpu")
        self._fit = Fit.square(self._model.resolution)
        self._max_bytes = max_bytes
        self._model.predict(np.zeros((1, self._fit.height, self._fit.width, 3), np.uint8))  # the first call is slow

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer one HTTP request."""
        if request.url.path == "/health":
            return JSONResponse({"status": "ok", "classes": self._model.classes})
        if request.url.path != "/":
            return _refusal(404, f"{request.url.path} does not exist; POST an image to / or GET /health")
        if request.method != "POST":
            return _refusal(405, f"{request.method} / is not possible; POST one image file as the body")
        try:
            content = await _body(request, self._max_bytes)
            pixels = await asyncio.to_thread(self._read, content)
        except TooLarge as error:
            return _refusal(413, str(error))
        except Undecodable as error:
            return _refusal(400, f"{error}; send one image file as the body")
        probabilities = await self.classify(pixels)
        return JSONResponse(_answer(self._model.classes, probabilities))

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def classify(self, images: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Images (S, S, 3) that arrived together -> their probabilities (K,)."""
        return list((await asyncio.to_thread(self._model.predict, np.stack(images), MAX_BATCH)).probabilities)

    def check_health(self) -> None:
        """Ray Serve asks now and then, and replaces a replica that raises."""
        self._model.predict(np.zeros((1, self._fit.height, self._fit.width, 3), np.uint8))

    def _read(self, content: bytes) -> NDArray[np.uint8]:
        return self._fit(decode(content))


def application(
    model: Folder, replicas: int = 1, max_bytes: int = 20_000_000, num_gpus: float = 0
) -> serve.Application:
    """The deployment of one model; weights travel with it, so no machine needs the model's folder.

    Args:
        replicas: copies of the model. max_bytes: the largest request body. num_gpus: of each replica; 0 runs on CPUs.

    Raises:
        UserError: the folder holds no model.
    """
    Model.load(model)
    deployment: Any = Classifier  # the decorator's type says it is still the class
    needs = {"num_cpus": 1, "num_gpus": num_gpus}
    copies = deployment.options(num_replicas=replicas, ray_actor_options=needs)
    return copies.bind(read_card(model), model.read(WEIGHTS), max_bytes)


def refuse_taken(host: str, port: int) -> None:
    """Raises UserError if nobody can listen there; Ray Serve itself would say so in a log of its own only."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"host {host}, port {port} cannot be listened on ({error.strerror}); choose another --port"
            ) from error


async def _body(request: Request, max_bytes: int) -> bytes:
    """The request's body. Raises TooLarge as soon as more than `max_bytes` are announced or have come."""
    limit = f"the body has more than {max_bytes} bytes; send a smaller image"
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise TooLarge(limit)
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > max_bytes:
            raise TooLarge(limit)
    return bytes(content)


def _answer(class_names: list[str], probabilities: NDArray[np.float32]) -> dict[str, Any]:
    best = probabilities.argsort()[::-1][:TOP]
    top = [{"class": class_names[number], "probability": float(probabilities[number])} for number in best]
    return {**top[0], "top": top}


def _refusal(status: int, why: str) -> JSONResponse:
    return JSONResponse({"error": why}, status_code=status)
