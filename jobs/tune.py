"""`coreg-ray tune` as a script, for `ray job submit` and checkouts."""

import sys

from coreg_ray.commands import tune
from coreg_ray.commands.base import run

if __name__ == "__main__":
    run(tune.main, sys.argv[1:], tune.STOPPED)
