"""What is written beside a generated C file: header, Fortran module, examples. Knows its functions and their promise,
not how they were made.
"""
