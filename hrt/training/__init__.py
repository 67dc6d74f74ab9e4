"""The method while a network is trained: fine-tuning, dynamic compression, penalties, Gauss-Newton.

Knows nothing of the command line.
"""
