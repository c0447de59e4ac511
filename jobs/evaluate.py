"""`coreg-ray evaluate` as a script, for `ray job submit` and checkouts."""

import sys

from coreg_ray.commands import evaluate
from coreg_ray.commands.base import run

if __name__ == "__main__":
    run(evaluate.main, sys.argv[1:])
