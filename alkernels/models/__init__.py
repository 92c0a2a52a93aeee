"""Models that strategies need: posterior draws, learned acquisition, and what trains them."""

from alkernels.models.collecting import collect
from alkernels.models.dropout import MCDropout
from alkernels.models.posterior import Posterior

__all__ = ["MCDropout", "Posterior", "collect"]
