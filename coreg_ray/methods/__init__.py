"""The algorithms, one file each, to be read against its paper."""

from coreg_ray.methods import coreg, dividemix, elr, ill, pico
from coreg_ray.training.method import Method

# By `method.kind`, which names the method's phase.
KINDS: dict[str, Method] = {"coreg": coreg, "dividemix": dividemix, "pico": pico, "elr": elr, "ill": ill}
