"""Many small factorisations on a few cores: a thread per strip, one BLAS thread each.

LAPACK on blocks of a few hundred loses time to its own threads (measured: an SVD of 64 x 64 takes 0.9 ms with one
thread and 8.9 ms with two on a busy two-core machine); independent strips on independent threads do not. Results do
not depend on the number of threads, since every strip is computed by one.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def one_blas_thread() -> Iterator[int]:
    """Set torch to one thread inside, yielding how many there were before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def parallel_map(
    function: Callable[[Item], Result], items: Iterable[Item], executor: Executor | None = None
) -> list[Result]:
    """`function` over `items`, in order. Without an executor: a thread pool as wide as torch's thread count."""
    items = list(items)
    with one_blas_thread() as threads:
        if executor is not None:
            return list(executor.map(function, items))
        if threads == 1 or len(items) < 2:
            return [function(item) for item in items]
        with ThreadPoolExecutor(min(threads, len(items))) as pool:
            return list(pool.map(function, items))
