"""Scores of predictions: one number a row, by one walk over them that checks them as well."""

from __future__ import annotations

import math

import torch

import alkernels._load  # noqa: F401
from alkernels._probabilities import Probabilities

# What the kernels call them (csrc/common/predictions.h). Of each row's K draws P_k and their mean P:
SCORES = {
    "least_confident": 0,  # 1 - max P
    "margin": 1,  # 1 - (the largest of P - the second largest)
    "entropy": 2,  # H(P), in nats
    "mean_entropy": 3,  # the mean of H(P_k)
    "bald": 4,  # H(P) - the mean of H(P_k)
    "mean_std": 5,  # the mean over classes of the draws' standard deviation
    "max_disagreement": 6,  # the largest KL(P_k || P)
    "vote_entropy": 7,  # H of the shares of draws that each class is the largest of
    "variation_ratio": 8,  # 1 - the largest of these shares
}
# BALD below this share of 1 + the largest entropy is rounding: draws that agree have none.
_ROUNDING = 1e-14


def prediction_scores(probs: Probabilities, score: str) -> torch.Tensor:
    """A score of each row, [N] float64 on the device of `probs`; its only walk, which raises what ``check()`` raises.

    Parameters
    ----------
    probs : Probabilities
        [N, K, C], or [N, C] for one model.
    score : str
        One of SCORES.
    """
    classes = int(probs.shape[-1])
    whole = torch.empty(probs.count, dtype=torch.float64, device=probs.device)
    for begin, end, (tile,) in probs.pool.tiles(probs.rows_a_tile):
        draws = tile if tile.dim() == 3 else tile.unsqueeze(1)
        whole[begin:end], worst = torch.ops.alkernels.prediction_scores(
            draws.to(probs.dtype).contiguous(), SCORES[score], probs.log_input
        )
        off, below = worst.tolist()
        if not (off <= probs.tolerance and below == 0):
            probs.check_tile(begin, tile)
    if classes == 1:  # nothing to be unsure of, however the sums are rounded
        return whole.zero_()
    whole.clamp_(min=0)  # of distributions that sum to a little more than 1
    if score == "bald":
        whole[whole < _ROUNDING * (1 + math.log(classes))] = 0.0
    return whole


@torch.library.register_fake("alkernels::prediction_scores")
def _(probs, score, log_input):  # type: ignore[no-untyped-def]
    torch._check(probs.dim() == 3, lambda: f"probs must be three-dimensional [N, K, C], got {probs.dim()}")
    return probs.new_empty(probs.shape[0], dtype=torch.float64), probs.new_empty(2, dtype=torch.float64)
