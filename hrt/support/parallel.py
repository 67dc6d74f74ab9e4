"""Many small factorisations on a few cores: a thread per strip, one BLAS thread each.

LAPACK on small blocks loses time to its own threads (an SVD of 64 x 64 took 0.9 ms with one, 8.9 ms with two on a busy
machine). Results depend neither on the number of threads nor on the executor: every strip is computed by one.
"""

import pickle
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch

from hrt.errors import BackendError, HrtError

Item = TypeVar("Item")
Result = TypeVar("Result")

_width: int | None = None  # threads to spread strips over, while BLAS has one


@contextmanager
def one_blas_thread(width: int | None = None) -> Iterator[int]:
    """Set torch to one thread. Yields how many to spread work over instead: `width`, or as many as torch had."""
    global _width
    before, outer = torch.get_num_threads(), _width
    _width = width or outer or before
    torch.set_num_threads(1)
    try:
        yield _width
    finally:
        torch.set_num_threads(before)
        _width = outer


def parallel_map(
    function: Callable[[Item], Result], items: Iterable[Item], executor: Executor | None = None
) -> list[Result]:
    """`function` over `items`, in order. Without an executor: a thread pool as wide as torch's thread count."""
    with one_blas_thread() as threads:
        if executor is not None:
            return list(executor_map(function, items, executor))
        items = list(items)
        if threads == 1 or len(items) < 2:
            return [function(item) for item in items]
        with ThreadPoolExecutor(min(threads, len(items))) as pool:
            return list(pool.map(function, items))


def executor_map(
    function: Callable[[Item], Result], items: Iterable[Item], executor: Executor | None
) -> Iterator[Result]:
    """`function` over `items`, in order, one result after the other; here where there is no executor. Raises
    BackendError where the executor fails; hrt's own errors pass through. Nothing that was handed out is left waiting.
    """
    if executor is None:
        yield from map(function, items)
        return
    futures, done = [], 0
    try:
        try:
            for item in items:
                futures.append(executor.submit(_call, pickle.dumps((function, item))))
            for future in futures:
                yield pickle.loads(future.result())
                done += 1
        except HrtError:
            raise
        except Exception as error:
            raise BackendError(
                f"The executor failed after {done} pieces ({type(error).__name__}: {error}). Nothing was written. Call "
                "again with a fresh executor, or without one."
            ) from error
    finally:
        for future in futures:
            with suppress(AttributeError):  # what is no future cannot be cancelled
                future.cancel()


def _call(packed: bytes) -> bytes:
    """Pickled by ourselves: process pools would send tensors through shared memory, a file handle for each, and move
    them there from under the arrays that look into them.
    """
    function, item = pickle.loads(packed)
    return pickle.dumps(function(item))
