"""The algorithms, one file each, to be read against its paper."""

from coreg_ray.methods import coreg
from coreg_ray.training.method import Method

KINDS: dict[str, Method] = {"coreg": coreg}  # by the word that names the method's phase in `history.csv`
