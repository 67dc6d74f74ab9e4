"""The harness: rows for every network, method and batch, and the tables, pages and comparisons made of them.

Knows everything below; knows nothing of the paper.
"""
