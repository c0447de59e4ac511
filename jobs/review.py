"""`coreg-ray review` as a script, for `ray job submit` and checkouts."""

import sys

from coreg_ray.commands import review
from coreg_ray.commands.base import run

if __name__ == "__main__":
    run(review.main, sys.argv[1:], review.STOPPED)
