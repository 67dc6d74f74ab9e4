"""A program flattened into waves of tiles of steps, and what these cost on a device.

Knows nothing of sessions; kernels execute what is built here.
"""
