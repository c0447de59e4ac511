"""Weak and strong views of uint8 images, in batches, on any device."""
