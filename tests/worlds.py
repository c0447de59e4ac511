"""What the processes of `run_world` do; a module of its own, so that they can import it."""

from __future__ import annotations

from typing import Any

import torch
import toy

from coreg_ray.mesh import Mesh


def full_history(settings: dict[str, Any], data: dict[str, Any]) -> list[dict[str, Any]]:
    return toy.history(toy.toy(**data), Mesh(), **settings)
