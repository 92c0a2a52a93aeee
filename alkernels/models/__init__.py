"""Models that strategies need: posterior draws, learned acquisition, and what trains them."""

from alkernels.models.bayes import (
    BayesByBackprop,
    BayesConv2d,
    BayesLinear,
    GaussianPrior,
    ScaleMixturePrior,
    kl_divergence,
    minibatch_weights,
    to_bayesian,
)
from alkernels.models.collecting import collect
from alkernels.models.dropout import MCDropout
from alkernels.models.ensembles import (
    Ensemble,
    SnapshotEnsemble,
    SplitHead,
    bootstrapped_ensemble,
    diversity_encouraging_ensemble,
    naive_ensemble,
)
from alkernels.models.posterior import Posterior
from alkernels.models.proxy import ProxySelection, SelectionViaProxy

__all__ = [
    "BayesByBackprop",
    "BayesConv2d",
    "BayesLinear",
    "Ensemble",
    "GaussianPrior",
    "MCDropout",
    "Posterior",
    "ProxySelection",
    "ScaleMixturePrior",
    "SelectionViaProxy",
    "SnapshotEnsemble",
    "SplitHead",
    "bootstrapped_ensemble",
    "collect",
    "diversity_encouraging_ensemble",
    "kl_divergence",
    "minibatch_weights",
    "naive_ensemble",
    "to_bayesian",
]
