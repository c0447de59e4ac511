"""What `coreg-ray NAME` and `python jobs/NAME.py` run, one file each."""
