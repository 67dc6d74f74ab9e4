"""Many matrices under one bound on the output: allocation, search and verification.

Knows nothing of the command line and of training.
"""
