"""Clocks, bursts, intervals and where a figure comes from.

Knows nothing of networks and methods.
"""
