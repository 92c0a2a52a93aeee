"""The state of networks: modes and random numbers that are as they were afterwards, and what wrappers hide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Torch's global random numbers start from `seed`, on the CPU and on CUDA devices; afterwards as if never drawn."""
    begun = torch.cuda.is_initialized()
    devices = range(torch.cuda.device_count()) if begun else ()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield
    finally:
        if not begun:  # CUDA starts, or has started meanwhile, from the seed it was given last
            torch.cuda.manual_seed_all(torch.initial_seed())


@contextmanager
def keeping_modes(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Afterwards each part is in training or evaluation mode as it was before."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients."""
    with keeping_modes(modules), torch.no_grad():
        for module in modules:
            module.eval()
        yield


def unwrapped(model: nn.Module) -> nn.Module:
    """What hooks are seen by: the module inside of torch.compile's and of data parallel ones."""
    model = getattr(model, "_orig_mod", model)
    return model.module if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)) else model
