"""Is the answer there in time, every time: in process and from servers.

Knows nothing of the tables of the harness.
"""
