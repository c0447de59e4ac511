"""The algorithms, one file each, to be read against its paper."""

from coreg_ray.methods import coreg, dividemix, partial
from coreg_ray.training.method import Method

# By `method.kind`, which names the method's phase too.
KINDS: dict[str, Method] = {"coreg": coreg, "dividemix": dividemix, "partial": partial}
