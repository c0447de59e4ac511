"""`coreg-ray serve` as a script, for `ray job submit` and checkouts."""

import sys

from coreg_ray.commands import serve
from coreg_ray.commands.base import run

if __name__ == "__main__":
    run(serve.main, sys.argv[1:], serve.STOPPED)
