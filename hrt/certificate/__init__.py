"""What is measured, estimated and guaranteed of a compressed network, each kind in a field of its own.

Knows nothing of files, sessions or how the network was compressed.
"""
