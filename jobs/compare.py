"""`coreg-ray compare` as a script, for `ray job submit` and checkouts."""

import sys

from coreg_ray.commands import compare
from coreg_ray.commands.base import run

if __name__ == "__main__":
    run(compare.main, sys.argv[1:], compare.STOPPED)
