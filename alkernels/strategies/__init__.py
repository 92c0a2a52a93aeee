"""The strategy catalogue: one documented function a strategy, in families, and what is known of each."""

from alkernels.strategies import bayesian, committee, diversity, dynamics, gradient, hybrid, learned, uncertainty
from alkernels.strategies._catalogue import StrategyInfo, described_needs, info, names
from alkernels.strategies._picking import top_scores
from alkernels.strategies.dynamics import DispersionTracker, ForgettingTracker

__all__ = [
    "DispersionTracker",
    "ForgettingTracker",
    "StrategyInfo",
    "bayesian",
    "committee",
    "described_needs",
    "diversity",
    "dynamics",
    "gradient",
    "hybrid",
    "info",
    "learned",
    "names",
    "top_scores",
    "uncertainty",
]
