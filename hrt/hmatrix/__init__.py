"""The data type of hrt: a matrix as disjoint leaves, dense or low rank, and its products.

Knows nothing of networks, of how leaves are chosen, or of Triton.
"""
