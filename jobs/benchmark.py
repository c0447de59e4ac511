"""`coreg-ray benchmark` as a script, for checkouts; like the command itself it needs torch alone."""

import sys

from coreg_ray.commands import benchmark

if __name__ == "__main__":
    benchmark.main(sys.argv[1:])
