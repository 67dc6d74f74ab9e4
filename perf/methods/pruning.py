"""Magnitude pruning, stored as compressed sparse rows and counted to the last byte."""


def csr_nbytes(rows: int, cols: int, count: int) -> int:
    """Bytes of `count` float32 values in compressed sparse rows: value and column index each, and rows + 1 pointers,
    both in the narrowest unsigned type (8, 16 or 32 bits).
    """
    return count * (4 + index_nbytes(cols - 1)) + (rows + 1) * index_nbytes(count)


def index_nbytes(largest: int) -> int:
    """Bytes of the narrowest unsigned integer type that holds `largest`."""
    return 1 if largest < 2**8 else 2 if largest < 2**16 else 4
