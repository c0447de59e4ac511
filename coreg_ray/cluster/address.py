"""The address of the cluster that the environment names: refused at once where nobody answers."""

from __future__ import annotations

import os
import socket

from coreg_ray.errors import UserError

_ANSWER_WITHIN_S = 5.0
_OF_THIS_MACHINE = ("", "auto", "local")


def refuse_silent(address: str | None = None) -> None:
    """Knock at the port of a running head; Ray itself would try for minutes, and takes seconds to be imported.

    Args:
        address: host:port, or ray://host:port; the one that `RAY_ADDRESS` names where none is given.

    Raises:
        UserError: it is a dashboard's address, has no port, or nobody answers there.
    """
    if address is None:
        address = os.environ.get("RAY_ADDRESS", "")
    if address in _OF_THIS_MACHINE:
        return
    remedy = "give host:6379 of a running head (ray start --head), or unset RAY_ADDRESS to use this machine alone"
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS={address} is a dashboard, which takes submitted jobs alone (ray job submit --address "
            f"{address} --working-dir . -- python jobs/...); else {remedy}"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"RAY_ADDRESS={address} is no host:port; {remedy}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"RAY_ADDRESS={address}: nobody answers there ({error}); {remedy}") from error
