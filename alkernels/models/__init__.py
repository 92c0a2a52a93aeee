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
from alkernels.models.fitting import History, fit
from alkernels.models.loss_prediction import LossPrediction, loss_prediction_loss
from alkernels.models.mal import MAL, CosineClassifier, GradientReversal, mean_entropy, minimax_entropy_loss
from alkernels.models.posterior import Posterior
from alkernels.models.proxy import ProxySelection, SelectionViaProxy
from alkernels.models.vaal import (
    VAAL,
    VAE,
    ConvVAE,
    Discriminator,
    MlpVAE,
    adversary_loss,
    discriminator_loss,
    latent_kl,
    reconstruction_loss,
    vae_loss,
)

__all__ = [
    "MAL",
    "VAAL",
    "VAE",
    "BayesByBackprop",
    "BayesConv2d",
    "BayesLinear",
    "ConvVAE",
    "CosineClassifier",
    "Discriminator",
    "Ensemble",
    "GaussianPrior",
    "GradientReversal",
    "History",
    "LossPrediction",
    "MCDropout",
    "MlpVAE",
    "Posterior",
    "ProxySelection",
    "ScaleMixturePrior",
    "SelectionViaProxy",
    "SnapshotEnsemble",
    "SplitHead",
    "adversary_loss",
    "bootstrapped_ensemble",
    "collect",
    "discriminator_loss",
    "diversity_encouraging_ensemble",
    "fit",
    "kl_divergence",
    "latent_kl",
    "loss_prediction_loss",
    "mean_entropy",
    "minibatch_weights",
    "minimax_entropy_loss",
    "naive_ensemble",
    "reconstruction_loss",
    "to_bayesian",
    "vae_loss",
]
