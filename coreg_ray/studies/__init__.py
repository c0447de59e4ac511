"""How fast the method runs here, against the same step written the plain way and against the machine's own limits.

Needs torch, torchvision's Pillow and NumPy; only the files named after Ray need the whole installation.
Every figure that is a ratio comes from measurements that took turns in one process, A B A B.
"""
