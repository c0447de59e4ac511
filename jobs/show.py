"""`coreg-ray show` as a script, for `ray job submit` and checkouts."""

import sys

from coreg_ray.commands import show
from coreg_ray.commands.base import run

if __name__ == "__main__":
    run(show.main, sys.argv[1:])
