"""Tensors in, tensors out: one function an equation. Imports torch and NumPy, nothing else of the package."""
