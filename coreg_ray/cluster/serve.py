"""The model behind HTTP, by Ray Serve (extra `serve`).

    POST /        an image -> {"class": "...", "probability": 0.9, "top": [{"class": ...}, ...]}
    GET  /health           -> {"status": "ok", "classes": [...]}

The image is the body itself, the field `image` of a form, or base64 in JSON: {"image": "..."}. Images that arrive
together pass through the network together. Everything a client can do wrong is answered with a 4xx status and
{"error": ...}; nothing of a request is executed or kept.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from coreg_ray.cluster.bodies import MOST_RECEIVED, Reception, Refusal, image_in
from coreg_ray.cluster.connect import connect
from coreg_ray.deploy.abstain import UNKNOWN, threshold_of
from coreg_ray.deploy.model import WEIGHTS, Model, read_card
from coreg_ray.errors import UserError
from coreg_ray.images.decode import Undecodable, decode
from coreg_ray.run.storage import Folder

try:
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.exceptions import RayServeException
    from starlette.requests import Request
    from starlette.responses import JSONResponse
except ImportError as error:
    raise UserError(f'serving needs Ray Serve ({error}); pip install "coreg-ray[serve]"') from error

log = logging.getLogger(__name__)

NAME = "coreg-ray"  # of the application on its cluster
MAX_BATCH = 64
BATCH_WAIT_S = 0.005
TOP = 5
_KEEP_ALIVE_S = 10
_EVERYWHERE = ("0.0.0.0", "::", "")


@serve.deployment(
    max_ongoing_requests=MOST_RECEIVED + 8 * MAX_BATCH,  # bodies on their way take no place from images at work
    logging_config={"enable_access_log": False},
)
class Classifier:
    """One replica with the model in memory."""

    def __init__(
        self, card: dict[str, Any], weights: bytes, max_bytes: int, pause_s: float, least: float = 0.0
    ) -> None:
        self._least = least
        self._model = Model.build(card, weights, "cuda" if ray.get_gpu_ids() else "cpu")
        self._fit = self._model.fit
        self._reception = Reception(max_bytes, pause_s)
        self._model.predict(np.zeros((1, self._fit.height, self._fit.width, 3), np.uint8))  # the first call is slow

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer one HTTP request."""
        if request.url.path == "/health":
            return JSONResponse({"status": "ok", "classes": self._model.classes})
        if request.url.path != "/":
            return _refusal(404, f"{request.url.path} does not exist; POST an image to / or GET /health")
        if request.method != "POST":
            return _refusal(405, f"{request.method} / is not possible; POST one image")
        try:
            content = await self._reception.receive(request.headers.get("content-length"), request.stream())
            pixels = await asyncio.to_thread(self._read, content, request.headers.get("content-type", ""))
        except Refusal as error:
            return _refusal(error.status, str(error))
        except Undecodable as error:
            return _refusal(400, f"{error}; send one image file")
        probabilities = await self.classify(pixels)
        return JSONResponse(_answer(self._model.classes, probabilities, self._least))

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def classify(self, images: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Images (S, S, 3) that arrived together -> their probabilities (K,)."""
        return list((await asyncio.to_thread(self._model.predict, np.stack(images), MAX_BATCH)).probabilities)

    def check_health(self) -> None:
        """Ray Serve asks now and then, and replaces a replica that raises."""
        self._model.predict(np.zeros((1, self._fit.height, self._fit.width, 3), np.uint8))

    def _read(self, content: bytes, content_type: str) -> NDArray[np.uint8]:
        return self._fit(decode(image_in(content, content_type)))


def application(
    model: Folder,
    replicas: int = 1,
    max_bytes: int = 20_000_000,
    num_gpus: float = 0,
    pause_s: float = 10.0,
    abstain: bool = False,
) -> serve.Application:
    """The deployment of one model; weights travel with it, so no machine needs the model's folder.

    Args:
        replicas: copies of the model. max_bytes: the largest request body. num_gpus: of each replica; 0 runs on CPUs.
            pause_s: longest time that a client may send nothing of its body. abstain: whether images of which the model
            is less sure than its threshold are `unknown`.

    Raises:
        UserError: the folder holds no model, or one without a threshold that is to abstain.
    """
    loaded = Model.load(model)
    least = threshold_of(loaded.abstain, loaded.classes) if abstain else 0.0
    deployment: Any = Classifier  # the decorator's type says it is still the class
    needs = {"num_cpus": 1, "num_gpus": num_gpus}
    copies = deployment.options(num_replicas=replicas, ray_actor_options=needs)
    return copies.bind(read_card(model), model.read(WEIGHTS), max_bytes, pause_s, least)


@contextmanager
def serving(app: serve.Application, host: str, port: int) -> Iterator[list[str]]:
    """Serve for as long as the block lasts, on the cluster that the environment names, else on one of this machine.

    What runs there already is left alone, before and afterwards.

    Yields:
        The addresses that are listened on.

    Raises:
        UserError: nobody can listen there, another application is in the way, or the cluster serves no HTTP.
    """
    if "RAY_ADDRESS" not in os.environ:
        refuse_taken(host, port)
    connect()
    before = serve.status()
    ours = not before.proxies and not before.applications  # nobody else serves on this cluster
    if NAME in before.applications:
        raise UserError(
            f"an application {NAME} runs on this cluster already; end the command that serves it, or remove it with "
            f"`python -c 'from ray import serve; serve.delete(\"{NAME}\")'`"
        )
    try:
        serve.start(http_options={"host": host, "port": port, "keep_alive_timeout_s": _KEEP_ALIVE_S})
        serve.run(app, name=NAME)
        yield addresses(host, port)
    except RayServeException as error:
        raise UserError(f"this cluster does not take the application: {error}") from error
    finally:
        _end(ours)


def _end(whole: bool) -> None:
    """Take the application from the cluster, with Serve if that was started for it and serves nothing else by now."""
    try:
        if NAME in serve.status().applications:
            serve.delete(NAME)
        if whole and not serve.status().applications:
            serve.shutdown()
    except Exception as error:  # the command ends all the same, by Ctrl-C or the cluster's own end
        log.warning("%s may still be running on the cluster: %s", NAME, error)


def addresses(host: str, port: int) -> list[str]:
    """Where the running Serve listens, which is not where it was told to if it was running before.

    Raises:
        UserError: nowhere.
    """
    client = _get_global_client()
    if client is None:
        raise UserError("Ray Serve has ended on this cluster; start the command again")
    listens = client.http_config
    if (listens.host, listens.port) != (host, port):
        log.warning(
            "Ray Serve ran on this cluster before and keeps listening on host %s, port %d, not on host %s, port %d",
            listens.host, listens.port, host, port,
        )  # fmt: skip
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    proxies = [nodes[name] for name in serve.status().proxies if name in nodes]
    if not proxies:
        raise UserError("Ray Serve answers no HTTP on this cluster; start it with proxies, or use another cluster")
    here = ray.util.get_node_ip_address()
    return sorted(_address(listens.host, listens.port, node, here) for node in proxies)


def _address(host: str, port: int, node: str, here: str) -> str:
    """How a proxy on a node is reached; what listens on a loopback of another node only from there."""
    everywhere = host in _EVERYWHERE
    name = node if everywhere else host
    url = f"http://{f'[{name}]' if ':' in name else name}:{port}/"
    return url if everywhere or node == here else f"{url} (on the node {node})"


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


def _answer(class_names: list[str], probabilities: NDArray[np.float32], least: float = 0.0) -> dict[str, Any]:
    best = probabilities.argsort()[::-1][:TOP]
    top = [{"class": class_names[number], "probability": float(probabilities[number])} for number in best]
    answer = top[0] if probabilities[best[0]] >= least else {**top[0], "class": UNKNOWN}
    return {**answer, "top": top}


def _refusal(status: int, why: str) -> JSONResponse:
    return JSONResponse({"error": why}, status_code=status)
