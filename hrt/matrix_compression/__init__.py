"""One matrix under one error bound: cluster trees, orderings, the planner, factors and rounding.

Knows nothing of networks, calibration inputs or files.
"""
