"""From a program to a program that gives derivatives too: Taylor jets, their rules, names such as "d0d1".

Knows nothing of compression or of backends.
"""
