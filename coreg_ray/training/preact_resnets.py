"""The pre-activation ResNets of this project by their names (`student.name`), which need no library to be known."""

from __future__ import annotations

PREACT_RESNETS = {"preact_resnet10": 1, "preact_resnet18": 2}  # blocks in each of their four stages
