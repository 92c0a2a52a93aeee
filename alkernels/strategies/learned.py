"""Scores of networks that were trained for them: predicted losses, and discriminators of labelled from unlabelled."""

from __future__ import annotations

import math
from typing import Any

import torch

from alkernels._inputs import Array
from alkernels._probabilities import Probabilities
from alkernels._sources import is_numpy
from alkernels.ops.prediction_scores import prediction_scores
from alkernels.strategies._arguments import check_one_of
from alkernels.strategies._catalogue import strategy
from alkernels.strategies._picking import as_scores, check_scores


def _check_discriminator(values: Any, count: int | None = None) -> torch.Tensor:
    """Probabilities, in float64."""
    given = as_scores(values, "discriminator", count).double()
    wrong = ~((given >= 0) & (given <= 1))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"discriminator must hold probabilities, between 0 and 1, got {given[row].item()} in row {row}"
        )
    return given


@strategy(
    formula=r"\hat l(x)",
    cost="N",
    use="Any task with a loss a row: a small module beside the network learns which rows it will be wrong on.",
)
def loss_prediction(predicted_losses: Any) -> Array:
    """The loss that a module of the network predicts for each row.

    Parameters
    ----------
    predicted_losses : array of shape (N,)
        What :class:`alkernels.models.LossPrediction` predicts; any scale, as it learns an order.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64
        The same; higher = select.

    Raises
    ------
    ValueError
        NaN, infinities.

    References
    ----------
    .. [1] D. Yoo, I. S. Kweon. Learning loss for active learning. CVPR 2019.
    """
    losses = check_scores(predicted_losses, "predicted_losses").to(torch.float64, copy=True)
    if losses.isinf().any():
        row = int(losses.isinf().nonzero()[0])
        raise ValueError(f"predicted_losses must be finite, got {losses[row].item()} in row {row}")
    return losses.numpy() if is_numpy(predicted_losses) else losses


@strategy(
    formula=r"-D(\mu(x))",
    cost="N",
    use="A large unlabelled pool of images that labels cover unevenly; it looks at the images alone, not at the task.",
)
def vaal(discriminator: Any) -> Array:
    """How surely a discriminator on the latent space of an autoencoder takes a row for unlabelled.

    Parameters
    ----------
    discriminator : array of shape (N,)
        Its probability that the row is labelled, from :class:`alkernels.models.VAAL`.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64
        That probability with its sign turned, between -1 and 0; higher = select.

    Raises
    ------
    ValueError
        Values that are no probabilities.

    References
    ----------
    .. [1] S. Sinha, S. Ebrahimi, T. Darrell. Variational adversarial active learning. ICCV 2019.
    """
    scores = -_check_discriminator(discriminator)
    return scores.numpy() if is_numpy(discriminator) else scores


@strategy(
    formula=r"H(p) \text{ where } D < \tfrac12, \quad -D \text{ elsewhere}",
    cost="N C",
    kernels=("prediction_scores",),
    use="As vaal, but among rows that look unlabelled the task's own uncertainty decides.",
)
def mal(probs: Array, discriminator: Any, *, combine: str = "filter", log_input: bool = False) -> Array:
    """Entropy among the rows that a discriminator takes for unlabelled.

    Parameters
    ----------
    probs : Tensor or ndarray of shape (N, C)
        Class probabilities.
    discriminator : array of shape (N,)
        The probability that a row is labelled, from :class:`alkernels.models.MAL`.
    combine : {"filter", "product"}, default "filter"
        "filter": rows below one half by their entropy, then the others, the smallest probability first. "product":
        entropy, over its largest possible value, times the probability of being unlabelled (not in the paper).
    log_input : bool, default False
        `probs` holds natural logarithms of probabilities.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64
        The entropy in nats, and minus the discriminator's probability for rows that it takes for labelled; or the
        product, between 0 and 1. Higher = select.

    Raises
    ------
    ValueError
        Wrong distributions, values of the discriminator that are no probabilities, NaN.

    References
    ----------
    .. [1] S. Ebrahimi, W. Gan, D. Chen, G. Biamby, K. Salahi, M. Laielli, S. Zhu, T. Darrell. Minimax active learning.
       2020. The rule is the abstract's; how the rest of the batch is filled is ours.
    """
    check_one_of(combine, "combine", ("filter", "product"))
    likely = Probabilities(probs, "probs", 2, log_input)
    labeled = _check_discriminator(discriminator, likely.count).to(likely.pool.device)
    entropy = prediction_scores(likely, "entropy")
    if combine == "filter":
        scores = torch.where(labeled < 0.5, entropy, -labeled)
    else:
        classes = likely.pool.widths[-1]
        scores = (1 - labeled) * entropy / (math.log(classes) if classes > 1 else 1.0)
    return likely.pool.out(scores)
