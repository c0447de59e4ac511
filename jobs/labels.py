"""`coreg-ray labels` as a script, for `ray job submit` and checkouts."""

import sys

from coreg_ray.commands import labels
from coreg_ray.commands.base import run

if __name__ == "__main__":
    run(labels.main, sys.argv[1:], labels.STOPPED)
