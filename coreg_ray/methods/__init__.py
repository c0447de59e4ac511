"""The algorithms, one file each, to be read against its paper."""
