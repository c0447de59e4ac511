"""`coreg-ray annotate` as a script, for `ray job submit` and checkouts."""

import sys

from coreg_ray.commands import annotate
from coreg_ray.commands.base import run

if __name__ == "__main__":
    run(annotate.main, sys.argv[1:])
