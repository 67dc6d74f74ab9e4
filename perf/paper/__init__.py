"""The figures, claims and bounds of arXiv 2409.07028 on our own runs.

The top of perf.
"""
