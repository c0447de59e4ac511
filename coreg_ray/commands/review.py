"""Look at the images of a run's review.csv in the browser and label them, key by key.

coreg-ray review runs/digits
coreg-ray review runs/digits --browser false --port 8001      prints the address, and a line for an SSH tunnel

Every label is on disk before the next picture comes (review.jsonl) and ends in review.csv. Ctrl-C stops.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
import sys
import tempfile
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from coreg_ray.commands.base import program, show
from coreg_ray.commands.words import port, read_words, truth
from coreg_ray.run.uris import without_credentials

if TYPE_CHECKING:
    from coreg_ray.review.session import Session

STOPPED = "stopped; every label is in review.csv of the run's folder"  # what Ctrl-C is answered with
_FLAGS = {
    "browser": (truth, True, "open the page in the browser of this machine (default: true)"),
    "port": (port, 0, "port on loopback (default: any free one)"),
}


def main(arguments: list[str]) -> None:
    """Run the command."""
    words = read_words(arguments, __doc__ or "", flags=_FLAGS)
    from coreg_ray.review.earlier import carry_over
    from coreg_ray.review.items import read_items, read_table_of  # late: --help needs neither pyarrow nor aiohttp
    from coreg_ray.review.pictures import Pictures
    from coreg_ray.review.proceed import Continuation
    from coreg_ray.review.server import LOOPBACK, ReviewServer, listening
    from coreg_ray.review.session import Session
    from coreg_ray.run.folder import RunFolder

    (given,) = words.runs
    folder = RunFolder.at(given)
    read_table_of(folder, given)  # what is no review is said first
    config = folder.read_config()
    carry_over(folder, config)
    items = read_items(folder, read_table_of(folder, given))
    listener = listening(words.port)
    session, pictures = Session(folder, items), Pictures(config, items.ids)
    server = ReviewServer(
        str(without_credentials(given)), session, pictures, Continuation(folder, given, config, program("train"))
    )
    at = listener.getsockname()[1]
    address = f"http://{LOOPBACK}:{at}/{server.token}/"

    def ready() -> None:
        show(introduction(str(without_credentials(given)), session, address, at))
        if words.browser and _has_screen():
            threading.Thread(target=webbrowser.open, args=(door.as_uri(),), daemon=True).start()

    try:
        with tempfile.TemporaryDirectory(prefix="coreg-ray-") as private:
            door = _door(Path(private), address)
            asyncio.run(server.run(listener, ready))
    finally:
        pictures.close()
        session.merge()


def introduction(given: str, session: Session, address: str, port: int) -> str:
    """What is there to review and where: the address stands alone on its line."""
    done = len(session.labels())
    tunnel = f"ssh -N -L {port}:127.0.0.1:{port} {_user()}@{socket.gethostname()}"
    return "\n".join(
        [
            f"{len(session)} images of {given} to review, {done} of them have a label. The page is at",
            address,
            f"From another machine give `{tunnel}` there first, then open the same address.",
            "The address is a key: whoever has it on this machine may see the images. Ctrl-C stops.",
        ]
    )


def _door(folder: Path, address: str) -> Path:
    """A page for this user alone that leads to the address, which others would read in the browser's command line."""
    door = folder / "review.html"
    door.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={address}">', encoding="utf-8")
    return door


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "USER"


def _has_screen() -> bool:
    """Whether a browser would open a window, rather than take over the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
