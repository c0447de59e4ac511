"""What the review's server refuses, and what it says of itself: nobody else may see an image or send a label."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient as Client
from aiohttp.test_utils import TestServer as Server
from review_run import folder_run, journal, labels_in, png, reviewing

from coreg_ray.errors import UserError
from coreg_ray.review import proceed
from coreg_ray.review.items import read_items, read_table_of
from coreg_ray.review.pictures import Gone, Pictures
from coreg_ray.review.proceed import Continuation
from coreg_ray.review.server import ReviewServer, listening
from coreg_ray.review.session import Session
from coreg_ray.run.folder import RunFolder

ONE = {"labels": {"0": "cat"}, "how": "picture", "order": "listed", "since": 0}
Ask = Callable[..., Awaitable[ClientResponse]]


def served(run: RunFolder, work: Callable[[Client[Any, Any], str], Awaitable[None]]) -> None:
    """Let something ask the server of a run; gives a client and the path of its token."""

    async def serve() -> None:
        items = read_items(run, read_table_of(run, run.path))
        config = run.read_config()
        server = ReviewServer(
            run.path, Session(run, items), Pictures(config, items.ids), Continuation(run, run.path, config, "train")
        )
        async with Client(Server(server.application())) as client:
            await work(client, f"/{server.token}")

    asyncio.run(serve())


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return folder_run(tmp_path, 3)


def test_nothing_is_answered_without_the_token_or_under_a_foreign_name(run: RunFolder) -> None:
    async def work(client: Client[Any, Any], at: str) -> None:
        for path in ("/", "/facts", "/image/0", f"{at[:-1]}/image/0"):
            assert (await client.get(path)).status == 403
        for host in ("evil.example", f"evil.example:{client.port}", "127.0.0.1.evil.example", ""):
            assert (await client.get(f"{at}/image/0", headers={"Host": host})).status == 403
        for host in (f"localhost:{client.port}", "127.0.0.1:9999", "localhost"):  # an SSH tunnel has a port of its own
            assert (await client.get(f"{at}/image/0", headers={"Host": host})).status == 200

    served(run, work)


def test_no_other_page_may_send_or_read(run: RunFolder) -> None:
    async def work(client: Client[Any, Any], at: str) -> None:
        refused = [
            await client.post(f"{at}/labels", json=ONE, headers={"Origin": "http://evil.example"}),
            await client.post(f"{at}/labels", json=ONE, headers={"Origin": "null"}),
            await client.post(f"{at}/labels", data="{}", headers={"Content-Type": "text/plain"}),
            await client.post("/labels", json=ONE),
            await client.post(f"{at}/training", data={"a": "form"}),
            await client.get(f"{at}/labels"),
            await client.options(f"{at}/labels", headers={"Origin": "http://evil.example"}),
        ]
        assert [answer.status for answer in refused] == [403, 403, 415, 403, 415, 405, 405]
        assert not journal(run)
        told = await client.post(f"{at}/labels", json=ONE, headers={"Origin": f"http://127.0.0.1:{client.port}"})
        assert told.status == 200
        for answer in (*refused, told):
            assert not [name for name in answer.headers if name.startswith("Access-Control") or name == "Set-Cookie"]
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")

    served(run, work)


def test_nothing_but_the_lists_images_can_be_reached(run: RunFolder) -> None:
    secret = Path(run.path).parent / "pool/secret.png"
    secret.write_bytes(png(7))  # of the source, but not of the list

    async def work(client: Client[Any, Any], at: str) -> None:
        paths = ["image/3", "image/-1", "image/secret.png", "image/..%2f..%2frun%2fconfig.yaml", "server.py", "page.py"]
        paths += ["../run/config.yaml", "%2e%2e/config.yaml", "image/0?side=5000", "config.yaml", "image/999999999"]
        statuses = [(await client.get(f"{at}/{path}")).status for path in paths]
        assert set(statuses) <= {400, 403, 404}, statuses
        whole = await client.get(f"{at}/image/2")
        assert (whole.content_type, await whole.read()) == ("image/png", png(2))

    served(run, work)


@pytest.mark.parametrize(
    "body",
    [[], {}, {"labels": []}, {"labels": {"x": "cat"}}, {"labels": {"0": "cow"}}, {"labels": {"9": "cat"}},
     {"labels": {"0": "cat"}, "how": "picture"}],
)  # fmt: skip
def test_what_are_no_labels_is_refused_in_a_sentence(run: RunFolder, body: object) -> None:
    async def work(client: Client[Any, Any], at: str) -> None:
        answer = await client.post(f"{at}/labels", json=body)
        assert answer.status == 400
        assert (await answer.text()).startswith("These are no labels: ")

    served(run, work)
    assert not journal(run)


def test_labels_end_in_the_file_when_the_server_ends(run: RunFolder) -> None:
    async def work(client: Client[Any, Any], at: str) -> None:
        told = await (await client.post(f"{at}/labels", json=ONE)).json()
        assert (told["stored"], told["refused"], told["labels"], told["changes"]) == ([0], {}, {"0": "cat"}, 1)
        again = await (await client.get(f"{at}/state?since=1")).json()
        assert again["labels"] == {}
        for _ in range(200):
            if labels_in(run):
                break
            await asyncio.sleep(0.05)

    served(run, work)
    assert labels_in(run) == {"00000.png": "cat"}


def test_training_is_started_with_labels_alone_and_once(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proceed, "_START", "import sys; print('epoch 1', sys.argv[1:]); sys.exit(3)")

    async def work(client: Client[Any, Any], at: str) -> None:
        refused = await client.post(f"{at}/training", json={})
        assert (refused.status, await refused.text()) == (409, "No image has a class yet; label some first.")
        await client.post(f"{at}/labels", json=ONE)
        told = await (await client.post(f"{at}/training", json={})).json()
        assert told["started"]
        for _ in range(200):
            told = await (await client.get(f"{at}/training")).json()
            if told["exit"] is not None:
                break
            await asyncio.sleep(0.05)
        assert told["exit"] == 3
        (line,) = told["lines"]
        assert line.startswith(f"epoch 1 ['train', '--annotations', '{run.path}/annotations', '--output', ")
        assert labels_in(run) == {"00000.png": "cat"}  # before the training reads them
        assert run.read("review-train.log").decode().strip() == line

    served(run, work)


def test_the_output_of_a_continuation_is_one_that_is_free(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    (tmp_path / "run-reviewed").mkdir()
    (tmp_path / "run-reviewed-2").mkdir()
    assert proceed.free_output(run) == f"{run}-reviewed-3"


def test_a_port_in_use_is_said_in_one_sentence() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port} cannot be listened on .*choose another"):
            listening(port)


@pytest.mark.parametrize(("content", "kind"), [(b"", "empty file"), (b"BM no image", "")])
def test_what_cannot_be_decoded_is_said(tmp_path: Path, content: bytes, kind: str) -> None:
    run = folder_run(tmp_path, 1)
    (tmp_path / "pool/00000.png").write_bytes(content)
    pictures = Pictures(run.read_config(), ["00000.png", "gone.png"])
    with pytest.raises(Gone, match=f"00000.png cannot be shown: .*{kind}"):
        pictures.read(0)
    with pytest.raises(Gone, match=r"gone.png is no longer in the source"):
        pictures.read(1)


def test_forms_that_browsers_do_not_know_and_thumbnails_are_made_anew(tmp_path: Path) -> None:
    from io import BytesIO

    from PIL import Image

    run = folder_run(tmp_path, 2)
    Image.new("RGB", (900, 600), "red").save(tmp_path / "pool/00000.png", "TIFF")
    Image.effect_noise((900, 600), 80).save(tmp_path / "pool/00001.png", "PNG")
    pictures = Pictures(run.read_config(), ["00000.png", "00001.png"])
    whole = pictures.read(0)
    assert (whole.kind, Image.open(BytesIO(whole.content)).size) == ("image/jpeg", (900, 600))
    small = pictures.read(1, side=192)
    assert (small.kind, Image.open(BytesIO(small.content)).size) == ("image/jpeg", (192, 128))
    assert pictures.read(1).kind == "image/png"


def test_a_source_that_has_gone_is_said_at_each_picture(tmp_path: Path) -> None:
    run = folder_run(tmp_path, 1)
    (tmp_path / "pool").rename(tmp_path / "elsewhere")
    with pytest.raises(Gone, match=r"no longer in the source .*pool does not exist"):
        Pictures(run.read_config(), ["00000.png"]).read(0)


def test_the_command_says_where_and_ends_on_sigterm_with_every_label_in_the_file(run: RunFolder) -> None:
    with reviewing(run.path) as review:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32}/", review.address)
        tunnel = review.process.stdout.readline() if review.process.stdout else ""
        assert re.search(r"`ssh -N -L (\d+):127\.0\.0\.1:\1 \S+@\S+`", tunnel)
        content = json.dumps(ONE).encode()
        asked = urllib.request.Request(f"{review.address}labels", content, {"Content-Type": "application/json"})
        assert urllib.request.urlopen(asked, timeout=120).status == 200
        review.process.terminate()
        rest, _ = review.process.communicate(timeout=120)
    assert review.process.returncode == 143
    assert rest.splitlines()[-2:] == ["stopped; every label is in review.csv of the run's folder", "loaded"]
    assert labels_in(run) == {"00000.png": "cat"}
