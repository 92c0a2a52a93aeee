"""The strategy catalogue: one documented function a strategy, in families, and what is known of each."""

from alkernels.strategies import bayesian, committee, diversity, hybrid, uncertainty
from alkernels.strategies._catalogue import StrategyInfo, info, names
from alkernels.strategies._picking import top_scores

__all__ = [
    "StrategyInfo",
    "bayesian",
    "committee",
    "diversity",
    "hybrid",
    "info",
    "names",
    "top_scores",
    "uncertainty",
]
