"""Diversity and coverage: random, core-set, facility location, and what clusters or covers the pool."""

from __future__ import annotations

from typing import Any

import torch

from alkernels._inputs import Array, is_numpy, seed_of
from alkernels.strategies._catalogue import strategy


@strategy(
    formula=r"u_n \sim U(0, 1)",
    cost="N",
    use="The baseline of every comparison.",
)
def random(pool: Any, *, generator: torch.Generator | int | None = None) -> Array:
    """A uniform random number for each row.

    Parameters
    ----------
    pool : array of N rows
        Any array of the pool; only its length matters.
    generator : torch.Generator or int, optional
        Draws the numbers. Default: torch's global generator.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64

    References
    ----------
    .. [1] D. D. Lewis, W. A. Gale. A sequential algorithm for training text classifiers. SIGIR 1994.
    """
    rows = pool[0] if isinstance(pool, tuple) else pool
    uniform = torch.Generator().manual_seed(seed_of(generator))
    scores = torch.rand(len(rows), dtype=torch.float64, generator=uniform)
    return scores.numpy() if is_numpy(rows) else scores.to(getattr(rows, "device", "cpu"))
