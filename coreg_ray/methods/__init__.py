"""The algorithms, one file each, to be read against its paper."""

from coreg_ray.methods import coreg, dividemix
from coreg_ray.training.method import Method

KINDS: dict[str, Method] = {"coreg": coreg, "dividemix": dividemix}  # by `method.kind`, which names the method's phase
