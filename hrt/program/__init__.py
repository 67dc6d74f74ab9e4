"""A network as data: a sorted list of nodes over a closed table of ops.

Knows matrices; knows nothing of where networks come from or how they are compressed.
"""
