"""The algorithms, one file each, to be read against its paper."""

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
