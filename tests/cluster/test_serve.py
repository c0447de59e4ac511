"""The model behind HTTP, asked by a real client."""

from __future__ import annotations

import base64
import io
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from finished_run import export, finished_run
from PIL import Image
from toy import CLASSES, images

from coreg_ray.deploy.model import Model
from coreg_ray.errors import UserError
from coreg_ray.run.folder import RunFolder
from coreg_ray.run.storage import Folder

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytestmark = pytest.mark.cluster
LIMIT, PAUSE_S = 50_000, 5.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    run = finished_run(RunFolder.at(tmp_path_factory.mktemp("run")), CLASSES)
    export(run)
    return run.model


@pytest.fixture(scope="module")
def address(model: Folder, _ray_session: None) -> Iterator[str]:
    from coreg_ray.cluster.serve import application, serve

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(application(model, max_bytes=LIMIT, pause_s=PAUSE_S), name="test")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def ask(
    address: str, body: Any = None, method: str | None = None, kind: str | None = None
) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(address, data=body, method=method, headers={"Content-Type": kind} if kind else {})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_model_that_is_not_sure_enough_says_unknown(model: Folder) -> None:
    from coreg_ray.cluster.serve import _answer, application

    probabilities = np.array([0.4, 0.6], np.float32)
    assert _answer(["cat", "dog"], probabilities, 0.7)["class"] == "unknown"
    assert _answer(["cat", "dog"], probabilities, 0.7)["top"][0]["class"] == "dog"
    assert _answer(["cat", "dog"], probabilities, 0.6)["class"] == "dog"
    with pytest.raises(UserError, match="stores no threshold to abstain by"):
        application(model, abstain=True)


def test_health_names_the_classes(address: str) -> None:
    assert ask(f"{address}/health") == (200, {"status": "ok", "classes": CLASSES})


def test_images_asked_together_get_the_models_own_answers(address: str, model: Folder) -> None:
    pixels = images(24, seed=5)[0].numpy()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda image: ask(address, png(image)), pixels))
    class_names, probabilities = Model.load(model).predict(pixels)
    assert [status for status, _ in answers] == [200] * 24
    assert [answer["class"] for _, answer in answers] == class_names
    np.testing.assert_allclose([answer["probability"] for _, answer in answers], probabilities.max(1), atol=1e-4)
    assert [entry["class"] for entry in answers[0][1]["top"]] == [CLASSES[k] for k in probabilities[0].argsort()[::-1]]


@pytest.mark.parametrize(
    ("path", "body", "method", "status", "reason"),
    [
        ("/", b"no image", "POST", 400, "not an image"),
        ("/", b"", "POST", 400, "empty"),
        ("/", b"x" * (LIMIT + 1), "POST", 413, str(LIMIT)),
        ("/", None, "GET", 405, "POST"),
        ("/", b"x", "DELETE", 405, "POST"),
        ("/etc/passwd", None, "GET", 404, "does not exist"),
    ],
)
def test_what_a_client_does_wrong_is_said(
    address: str, path: str, body: bytes | None, method: str, status: int, reason: str
) -> None:
    answered, answer = ask(address + path, body, method)
    assert answered == status
    assert reason in answer["error"]


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(address: str) -> None:
    status, answer = ask(address, (b"x" * 10_000 for _ in range(20)), "POST")
    assert (status, str(LIMIT) in answer["error"]) == (413, True)


def test_an_image_may_come_as_bytes_as_a_form_or_in_json(address: str) -> None:
    pytest.importorskip("python_multipart")
    image = png(images(1, seed=6)[0].numpy()[0])
    form = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + image + b"\r\n--x--\r\n"
    coded = json.dumps({"image": base64.b64encode(image).decode()}).encode()
    as_bytes = ask(address, image)
    assert as_bytes[0] == 200
    assert ask(address, form, kind="multipart/form-data; boundary=x") == as_bytes
    assert ask(address, coded, kind="application/json") == as_bytes
    assert ask(address, b"{}", kind="application/json")[0] == 400


def test_clients_that_send_nothing_deny_service_to_nobody(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    head = f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n\r\n".encode()
    idle = [socket.create_connection((host, int(port))) for _ in range(200)]
    try:
        for client in idle:
            client.sendall(head)
        time.sleep(1)
        image = png(images(1, seed=6)[0].numpy()[0])
        assert [ask(address, image)[0] for _ in range(5)] == [200] * 5
        idle[0].settimeout(30)
        assert b" 408 " in idle[0].recv(100)  # after PAUSE_S
    finally:
        for client in idle:
            client.close()


def test_after_all_that_it_still_answers(address: str) -> None:
    assert ask(address, png(np.zeros((5, 90), np.uint8)))[0] == 200


def test_a_port_that_is_taken_is_refused(address: str) -> None:
    from coreg_ray.cluster.serve import refuse_taken

    with pytest.raises(UserError, match="choose another --port"):
        refuse_taken("127.0.0.1", int(address.rsplit(":", 1)[1]))
    with pytest.raises(UserError, match="cannot be listened on"):
        refuse_taken("no.such.host.invalid", 8000)


def test_a_folder_that_is_no_model_is_refused_before_anything_starts(model: Folder) -> None:
    from coreg_ray.cluster.serve import application

    with pytest.raises(UserError, match=r"model\.json"):
        application(model / "nothing")


@pytest.mark.parametrize(
    ("host", "node", "url"),
    [
        ("127.0.0.1", "10.0.0.1", "http://127.0.0.1:8000/"),
        ("127.0.0.1", "10.0.0.2", "http://127.0.0.1:8000/ (on the node 10.0.0.2)"),
        ("0.0.0.0", "10.0.0.2", "http://10.0.0.2:8000/"),
        ("::", "fd00::2", "http://[fd00::2]:8000/"),
        ("box.example.org", "10.0.0.1", "http://box.example.org:8000/"),
    ],
)
def test_addresses_are_those_that_a_client_can_use(host: str, node: str, url: str) -> None:
    from coreg_ray.cluster.serve import _address

    assert _address(host, 8000, node, "10.0.0.1") == url


@pytest.mark.cluster
def test_a_shared_cluster_is_left_as_it_was(
    model: Folder, address: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another application serves there: ours comes, says where it really listens, and goes with its command."""
    from coreg_ray.cluster.serve import NAME, application, serve, serving

    monkeypatch.setenv("RAY_ADDRESS", "auto")
    serve.delete("test")  # which holds the route
    try:
        with serving(application(model), "127.0.0.1", 1) as addresses:
            assert addresses == [f"{address}/"]
            assert "keeps listening" in caplog.text
            assert ask(addresses[0], png(np.zeros((5, 9), np.uint8)))[0] == 200
            with (
                pytest.raises(UserError, match="runs on this cluster already"),
                serving(application(model), "127.0.0.1", 1),
            ):
                pass
            assert NAME in serve.status().applications
        assert NAME not in serve.status().applications
    finally:
        serve.run(application(model, max_bytes=LIMIT, pause_s=PAUSE_S), name="test")
