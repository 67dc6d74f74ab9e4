"""Data sets of torch as rows, one tensor per input of the network."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from hrt.errors import InputError, shown
from hrt.support.arrays import as_parts, as_tensor, is_numbers

STREAMED = 16384  # samples of a data set without a length, which may have no end
NAMES = ("x", "input", "inputs")  # of the entry that holds the inputs, where samples are dictionaries


def rows_of(data: Dataset | DataLoader, seed: int) -> tuple[Tensor, ...]:
    """The inputs of all samples, of a stream the first STREAMED, under a seed of their own. Raises InputError.

    A sample is its inputs, a pair (inputs, targets), or a dictionary with the inputs alone or under one of NAMES.
    """
    batches = isinstance(data, DataLoader) and data.batch_sampler is not None
    with torch.random.fork_rng(devices=[]):  # what shuffles or draws gives the same rows every time
        torch.default_generator.manual_seed(seed)
        samples = [tuple(as_tensor(p, "sample") for p in as_parts(_inputs(s))) for s in _samples(data)]
    if not samples:
        return (torch.zeros(0, 1),)
    try:
        return tuple((torch.cat if batches else torch.stack)(parts) for parts in zip(*samples, strict=True))
    except (ValueError, RuntimeError) as error:
        shapes = list(dict.fromkeys(shown([tuple(p.shape) for p in parts]) for parts in samples))
        raise InputError(f"Found samples of shapes {', '.join(shapes[:3])}. Expected one shape for all.") from error


def _samples(data: Any) -> Iterable[Any]:
    """What a data set or loader gives, one after the other."""
    sized = hasattr(data, "__len__")
    if isinstance(data, DataLoader):
        sized = not isinstance(data.dataset, IterableDataset) or hasattr(data.dataset, "__len__")
        return data if sized else islice(data, -(-STREAMED // (data.batch_size or 1)))
    if isinstance(data, IterableDataset):
        return data if sized else islice(data, STREAMED)
    if not sized:
        raise InputError(f"Found a {type(data).__name__} without a length. Expected __len__, or an IterableDataset.")
    return (data[k] for k in range(len(data)))


def _inputs(sample: Any) -> Any:
    """The network's inputs in a sample."""
    if isinstance(sample, Mapping):
        names = [name for name in NAMES if name in sample] or list(sample)
        if len(names) != 1:
            raise InputError(
                f"Found samples that are dictionaries of {shown(list(sample))}. Expected one entry, or the inputs "
                f"under one of {', '.join(NAMES)}; or pass the inputs themselves."
            )
        return sample[names[0]]
    if isinstance(sample, (tuple, list)) and sample and not is_numbers(sample):
        return sample[0]
    return sample
