"""What hrt is compared with: dense, SVD, pruning, quantization, each at matched error.

Knows networks by their interface only.
"""
