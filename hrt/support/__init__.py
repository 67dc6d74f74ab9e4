"""Files, processes, progress bars and devices: what every room needs and no network knows of.

Knows nothing of matrices, programs or models.
"""
