"""`coreg-ray predict` as a script, for `ray job submit` and checkouts."""

import sys

from coreg_ray.commands import predict
from coreg_ray.commands.base import run

if __name__ == "__main__":
    run(predict.main, sys.argv[1:])
