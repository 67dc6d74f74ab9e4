"""The empirical neural tangent kernel of a network and how far compression moves it.

Knows programs; knows nothing of models, files or backends.
"""
