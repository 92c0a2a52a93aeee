"""Batches of a pool in its order, from whatever gives them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler

_ORDERED = "make it with shuffle=False, or hand over the Dataset"


def batches_of(loader: Any, batch_size: int, name: str = "loader") -> tuple[Iterable[Any], int | None]:
    """Batches in the pool's order, and how many rows there are, where that is known."""
    if isinstance(loader, (Tensor, np.ndarray)):
        if loader.ndim < 1 or len(loader) == 0:
            raise ValueError(f"{name} must have at least one row, got shape {tuple(loader.shape)}")
        chunks = (loader[i : i + batch_size] for i in range(0, len(loader), batch_size))
        return (c if isinstance(c, Tensor) else torch.from_numpy(np.array(c)) for c in chunks), len(loader)
    if isinstance(loader, Dataset):
        loader = DataLoader(loader, batch_size)
    if not isinstance(loader, DataLoader):
        if not isinstance(loader, Iterable):
            raise TypeError(f"{name} must give batches, or be a Dataset or an array, got {type(loader).__name__}")
        return loader, None
    if isinstance(loader.dataset, IterableDataset):
        if loader.drop_last:
            raise ValueError(f"{name} must give every row, got one with drop_last=True: make it without")
        return loader, None
    batches = loader.batch_sampler
    if batches is not None and type(batches) is not BatchSampler:
        raise ValueError(
            f"{name} must give the pool in order, which {type(batches).__name__} is not known to: {_ORDERED}"
        )
    sampler: Any = loader.sampler if batches is None else batches.sampler
    # a list of rows is an order of the caller's own
    if not isinstance(sampler, (SequentialSampler, list, tuple, range, np.ndarray, Tensor)):
        raise ValueError(f"{name} must give the pool in order, got one with a {type(sampler).__name__}: {_ORDERED}")
    if batches is None:
        return loader, None  # each item is a batch
    count = len(sampler)
    if batches.drop_last and count % batches.batch_size:
        raise ValueError(f"{name} must give every row, got one with drop_last=True: make it without")
    return loader, count
