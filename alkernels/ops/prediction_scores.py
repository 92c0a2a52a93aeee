"""One score a row from class probabilities."""

from __future__ import annotations

import torch

from alkernels._probabilities import Probabilities


def prediction_scores(probs: Probabilities, score: str) -> torch.Tensor:
    """The named score of each row, [N] float64, in one walk over distributions [N, C] or draws [N, K, C]."""
    out = [torch.empty(0, dtype=torch.float64, device=probs.device)]
    for begin, _, (tile,) in probs.pool.tiles(probs.rows_a_tile):
        probs._check_tile(begin, tile)
        p = probs.values(tile, torch.float64)
        out.append(_scores(p if p.dim() == 3 else p[:, None], score))
    return torch.cat(out)


def _scores(p: torch.Tensor, score: str) -> torch.Tensor:
    mean = p.mean(1)
    if score == "least_confident":
        return 1 - mean.amax(-1)
    if score == "margin":
        best = mean.topk(min(2, mean.shape[1]), -1).values
        return 1 - (best[:, 0] - best[:, -1]) if mean.shape[1] > 1 else torch.zeros_like(mean[:, 0])
    if score == "entropy":
        return torch.special.entr(mean).sum(-1)
    each = torch.special.entr(p).sum(-1).mean(1)
    if score == "mean_entropy":
        return each
    if score == "bald":
        s = torch.special.entr(mean).sum(-1) - each
        return torch.where(s < 1e-13, 0.0, s)
    if score == "mean_std":
        return p.std(1, unbiased=False).mean(-1)
    if score == "max_disagreement":
        return (torch.xlogy(p, p) - torch.xlogy(p, mean[:, None])).sum(-1).amax(1).clamp(min=0)
    shares = torch.zeros_like(mean).scatter_add_(1, p.argmax(-1), torch.ones_like(p[..., 0])) / p.shape[1]
    return torch.special.entr(shares).sum(-1) if score == "vote_entropy" else 1 - shares.amax(-1)
