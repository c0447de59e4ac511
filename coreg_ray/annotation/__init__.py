"""Who answers, in which words, how answers are stored, and what candidate sets are made of them.

An annotator has a heavy `__init__` and a `__call__(batch) -> batch` on dictionaries of numpy arrays: it takes the
column `image` away and adds its answers: `votes` (B, P) int32, -1 for "no vote", and what it wants stored with them.
"""
