"""How fast the method runs here, against the same step written the plain way and against the machine's own limits.

The benchmark (suite.py) needs torch, torchvision's Pillow and NumPy. What is measured through Ray (annotation.py,
prediction.py, purifying.py, pool.py) and the studies of accuracy (objectives.py, review_loop.py, variants.py) need the
whole installation. Every figure of the benchmark that is a ratio comes from measurements that took turns in one
process, A B A B.
"""
