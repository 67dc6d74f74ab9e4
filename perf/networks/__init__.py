"""The networks that are measured: trained, loaded or built, each by name.

Knows nothing of methods and tables.
"""
