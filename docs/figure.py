"""The figure of what strategies pick: one pool in the plane, one small model, a panel a strategy."""

from __future__ import annotations

import io

import torch
from matplotlib.figure import Figure

import alkernels as alk

# Of Okabe and Ito's palette, told apart by the colour-blind too.
_CLASSES, _PICKS, _KNOWN = ["#9ECAE9", "#FFD08A", "#A8DDB5"], "#D55E00", "#222222"
STRATEGIES = [
    "random",
    "margin",
    "entropy",
    "bald",
    "batchbald",
    "power",
    "k_center_greedy",
    "kmeans_plusplus",
    "facility_location",
    "typiclust",
    "badge",
    "diverse_minibatch",
]


def pool() -> dict[str, torch.Tensor]:
    """Three classes, two of which overlap; nine labelled rows, and draws of linear models around their fit."""
    g = torch.Generator().manual_seed(2)
    centers = torch.tensor([[0.0, 0.0], [2.2, 0.4], [0.6, 3.4]])
    sizes, spreads = [260, 160, 80], [0.9, 0.7, 0.6]
    rows = [c + s * torch.randn(n, 2, generator=g) for c, n, s in zip(centers, sizes, spreads, strict=True)]
    known = torch.cat([r[:3] for r in rows])
    x = torch.cat([r[3:] for r in rows])
    y = torch.arange(3).repeat_interleave(3)
    weight = torch.zeros(3, 3, requires_grad=True)
    optimizer = torch.optim.Adam([weight], 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(_with_one(known) @ weight.T, y) + 0.02 * weight.square().sum()
        loss.backward()
        optimizer.step()
    draws = weight.detach() + 0.5 * torch.randn(100, 3, 3, generator=g)
    return {
        "features": x,
        "labeled_features": known,
        "probs": (_with_one(x) @ weight.detach().T).softmax(1),
        "mc_probs": torch.einsum("nd,kcd->nkc", _with_one(x), draws).softmax(-1),
    }


def _with_one(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, torch.ones(len(x), 1)], 1)


def draw(batch_size: int = 12) -> bytes:
    """The figure as PNG."""
    given = pool()
    x, classes = given["features"], given["probs"].argmax(1)
    figure = Figure(figsize=(12, 9.6), layout="constrained")
    for axes, name in zip(figure.subplots(3, 4).flat, STRATEGIES, strict=True):
        more = {"power": {"of": "bald"}, "facility_location": {"kernel": "rbf"}}.get(name, {})
        picks = alk.select(name, batch_size, **given, generator=0, **more).indices
        for c, color in enumerate(_CLASSES):
            axes.scatter(*x[classes == c].T, s=10, color=color, linewidths=0)
        axes.scatter(*given["labeled_features"].T, s=45, marker="x", color=_KNOWN, linewidths=1.8)
        axes.scatter(*x[picks].T, s=55, color=_PICKS, edgecolors="white", linewidths=0.8)
        axes.set_title(name + (" of bald" if name == "power" else ""), fontsize=13, family="monospace")
        axes.set(xticks=[], yticks=[], aspect="equal")
        axes.spines[:].set_color("#BBBBBB")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()
