"""A compressed network as C source, and the CPU session that runs it compiled."""
