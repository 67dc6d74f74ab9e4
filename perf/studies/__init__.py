"""One-off studies, on their way out.

TODO: fold into the harness or delete.
"""
