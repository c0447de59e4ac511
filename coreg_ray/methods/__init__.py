"""The algorithms, one file each, to be read against its paper."""

from __future__ import annotations

from coreg_ray.methods import coreg, distil, dividemix, elr, ill, partial, pico
from coreg_ray.training.method import Method

# By `method.kind`, which names the method's phase too.
KINDS: dict[str, Method] = {
    "coreg": coreg,
    "dividemix": dividemix,
    "distil": distil,
    "partial": partial,
    "pico": pico,
    "elr": elr,
    "ill": ill,
}


def refuse_classes(kind: str, num_classes: int) -> None:
    """Refuse a method that cannot hold so many classes, before anything is annotated for it. Raises UserError."""
    if kind == "ill":
        ill.refuse_classes(num_classes)
