"""Inputs, moments and what is held to the tolerance.

Knows programs and derivatives; knows nothing of how weights are then compressed.
"""
