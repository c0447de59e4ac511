"""`coreg-ray pipeline` as a script, for `ray job submit` and checkouts."""

import sys

from coreg_ray.commands import pipeline
from coreg_ray.commands.base import run

if __name__ == "__main__":
    run(pipeline.main, sys.argv[1:])
