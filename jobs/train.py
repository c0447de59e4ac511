"""`coreg-ray train` as a script, for `ray job submit` and checkouts."""

import sys

from coreg_ray.commands import train
from coreg_ray.commands.base import run

if __name__ == "__main__":
    run(train.main, sys.argv[1:])
