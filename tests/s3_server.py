"""An S3 server on loopback, so that object stores are tested as they are and not by a stand-in of our own."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from pyarrow import fs


def put(path: str, content: bytes) -> None:
    """Make an object of one of the servers of this process, `bucket/key`, without a request: a hundred times faster."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    bucket, _, key = path.partition("/")
    s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(bucket, key, content)


@contextmanager
def s3_server(bucket: str) -> Iterator[Callable[[str], str]]:
    """Serve one bucket until the block ends; gives the way from a path in it to the URI that a user would write.

    The bucket's name gets an ending of its own: all servers of a process have their objects in common.
    """
    server = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    bucket = f"{bucket}-{secrets.token_hex(4)}"
    try:
        host, port = running.get_host_and_port()
        options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        store, name = fs.FileSystem.from_uri(f"s3://test:test@{bucket}?{options}&allow_bucket_creation=true")
        store.create_dir(name)
        yield lambda path: f"s3://test:test@{bucket}/{path}?{options}"
    finally:
        running.stop()
