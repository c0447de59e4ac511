"""`coreg-ray push` as a script, for `ray job submit` and checkouts."""

import sys

from coreg_ray.commands import push
from coreg_ray.commands.base import run

if __name__ == "__main__":
    run(push.main, sys.argv[1:], push.STOPPED)
