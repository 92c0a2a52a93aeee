"""Shared by all tests: devices, seeds, and distances from the definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import alkernels as alk

DEVICES = ["cpu"] + (["cuda"] if alk.has_cuda_kernels() and torch.cuda.is_available() else [])


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


def as_double(x):
    """Any kind of rows as float64 tensors, one or two factors."""
    if isinstance(x, tuple):
        return tuple(as_double(f) for f in x)
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64))
    return x.detach().cpu().double()


def true_squared(rows, center, metric="euclidean"):
    """Squared distances to one centre from differences in float64 (for cosine: of rows scaled to length one).

    Under ``symmetric_kl`` the distances themselves: infinite where one has a class that the other rules out.
    """
    if metric == "symmetric_kl":
        both = (rows > 0) & (center > 0)
        # log(p / q) without a difference of logarithms where the two are close
        ratio = torch.where(both, (rows - center) / torch.where(both, center, 1.0), 0.0)
        far = torch.where(both, rows, 1.0).log() - torch.where(both, center, 1.0).log()
        log = torch.where(ratio.abs() < 0.5, ratio.clamp(min=-0.5, max=0.5).log1p(), far)
        total = ((rows - center) * log).sum(1) / 2
        return torch.where(((rows > 0) == (center > 0)).all(1), total, torch.inf)
    if isinstance(rows, tuple):
        a, h = rows
        b, g = center
        # a x h - b x g = (a - b) x h + b x (h - g): small where the two are close
        u, v = a - b, h - g
        cross = 2 * (u @ b) * (h * v).sum(1)
        return ((u * u).sum(1) * (h * h).sum(1) + (b @ b) * (v * v).sum(1) + cross).clamp(min=0)
    if metric == "cosine":
        zero = (rows == 0).all(1) | bool((center == 0).all())
        rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-300)
        center = center / center.norm().clamp(min=1e-300)
        return torch.where(zero, 2.0, ((rows - center) ** 2).sum(1))
    return ((rows - center) ** 2).sum(1)


def row(rows, i):
    return tuple(f[i] for f in rows) if isinstance(rows, tuple) else rows[i]


def length(rows):
    return len(rows[0]) if isinstance(rows, tuple) else len(rows)


def assert_farthest_first(features, selection, *, labeled=None, start=None, metric="euclidean"):
    """The specification: each pick's true distance is at least 1 - 1e-5 of the largest at that step."""
    x = as_double(features)
    picks = torch.as_tensor(selection.indices).tolist()
    assert len(set(picks)) == len(picks)
    d2 = torch.full((length(x),), torch.inf, dtype=torch.float64)
    if labeled is not None:
        known = as_double(labeled)
        for j in range(length(known)):
            d2 = torch.minimum(d2, true_squared(x, row(known, j), metric))
    for step, pick in enumerate(picks):
        chosen = step == 0 and (start is not None or labeled is None)
        distance = d2 if metric == "symmetric_kl" else d2.clamp(min=0).sqrt()
        if not chosen:
            assert distance[pick] >= (1 - 1e-5) * distance.max(), f"pick {step}: {distance[pick]} < {distance.max()}"
        score = float(torch.as_tensor(selection.scores)[step])
        unit = d2[pick] / 2 if metric == "cosine" else distance[pick]
        assert score == pytest.approx(float(unit), rel=2e-5, abs=1e-37)
        d2 = torch.minimum(d2, true_squared(x, row(x, pick), metric))
        d2[pick] = -1  # picked rows are never picked again
    return d2.clamp(min=0)
