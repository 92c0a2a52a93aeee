"""Where posterior draws come from: what :func:`alkernels.collect` asks of a posterior, and Monte Carlo dropout."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from torch import Tensor, nn

# Runs a network over the batch at hand, and gives its logits.
Forward = Callable[[nn.Module], Tensor]
Outputs = Callable[[Forward], Iterator[Tensor]]


class Posterior(ABC):
    """K networks that are drawn from, or stand for, a posterior.

    :func:`alkernels.collect` puts `networks` into evaluation mode, enters `drawing` once, and calls what that yields
    for each batch.

    Attributes
    ----------
    count : int
        How many draws there are, K.
    """

    count: int

    @property
    @abstractmethod
    def networks(self) -> list[nn.Module]:
        """Every network that runs."""

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The one whose features are taken."""

    @property
    def averaged(self) -> bool:
        """Whether `probs` are the mean of the draws', for want of one network that stands for all."""
        return False

    @abstractmethod
    def drawing(self) -> AbstractContextManager[Outputs]:
        """A context in which ``outputs(forward)`` yields K logits of one batch.

        Draw k is the same network for every batch of the context, so that labels of different rows can be taken
        together; all contexts of one object give the same draws.
        """


def derived_seed(seed: int, *place: object) -> int:
    """A seed of its own for each place that draws: independent of the order in which they do."""
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
