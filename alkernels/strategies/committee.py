"""Disagreement of a committee: ensemble members, or posterior draws such as dropout passes."""

from __future__ import annotations

import math
from typing import Any

import torch

from alkernels._inputs import Array, as_tensor, bytes_a_call, check_flag
from alkernels._probabilities import Probabilities
from alkernels._sources import is_numpy, shape_of
from alkernels._warnings import warn_user
from alkernels.ops.joint_entropy import check_draws
from alkernels.ops.prediction_scores import prediction_scores
from alkernels.strategies._arguments import check_either, check_one_of
from alkernels.strategies._catalogue import strategy

_BYTES_OF_COUNTS = 16 << 20


def disagreeing(mc_probs: Array, log_input: bool, device: torch.device | str | None) -> Probabilities:
    """Draws that can disagree; a warning where there is one."""
    draws = check_draws(mc_probs, "mc_probs", log_input, device=device)
    warn_one(int(draws.shape[1]), "mc_probs holds one draw")
    return draws


def warn_one(members: int, what: str) -> None:
    if members == 1:
        warn_user(f"{what}, which cannot disagree: every score is 0")


def _scored(mc_probs: Array, score: str, log_input: bool, device: torch.device | str | None) -> Array:
    draws = disagreeing(mc_probs, log_input, device)
    return draws.pool.out(prediction_scores(draws, score))


def check_votes(votes: Any, name: str) -> torch.Tensor:
    """Class numbers, [N, K], of which the smallest is not negative."""
    classes = as_tensor(votes, name, "an integer array [N, K]")
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TypeError(f"{name} must hold class numbers, integers, got dtype {classes.dtype}")
    if classes.dim() != 2 or classes.shape[1] == 0:
        raise ValueError(f"{name} must be two-dimensional [N, K] with at least one column, got {tuple(classes.shape)}")
    classes = classes.long()
    if classes.numel() and int(classes.min()) < 0:
        row = int((classes < 0).any(1).nonzero()[0])
        raise ValueError(f"{name} must not be negative, got {int(classes[row].min())} in row {row}")
    return classes


def vote_shares(classes: torch.Tensor) -> Any:
    """Tiles of the shares of votes [n, K] that the classes of each row get, those voted for: zeros behind them."""
    members = classes.shape[1]
    size = max(1, bytes_a_call(classes.device, _BYTES_OF_COUNTS) // (40 * members))
    for some in classes.split(size):
        ordered = some.sort(1).values
        which = torch.zeros_like(ordered)
        which[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
        votes = torch.zeros(ordered.shape, dtype=torch.float64, device=classes.device)
        yield votes.scatter_add_(1, which, torch.ones_like(votes)) / members


def _of_votes(votes: Any, function: Any) -> Array:
    classes = check_votes(votes, "votes")
    warn_one(classes.shape[1], "votes has one member")
    scores = torch.cat([function(s) for s in vote_shares(classes)] or [torch.empty(0, dtype=torch.float64)])
    return scores.numpy() if is_numpy(votes) else scores


@strategy(
    formula=r"-\sum_y \frac{V(y)}{K} \log \frac{V(y)}{K}",
    cost="N K C",
    kernels=("prediction_scores",),
    either=("mc_probs", "votes"),
    use="Committees of which only the decisions are known.",
)
def vote_entropy(
    mc_probs: Array | None = None,
    *,
    votes: Any = None,
    normalize: bool = False,
    log_input: bool = False,
    device: torch.device | str | None = None,
) -> Array:
    """Entropy of the committee's votes.

    Parameters
    ----------
    mc_probs : Tensor or ndarray of shape (N, K, C), optional
        Class probabilities of K members; each votes for its likeliest class, the lowest on ties.
    votes : integer array of shape (N, K), optional
        The votes themselves, in place of `mc_probs`.
    normalize : bool, default False
        Divide by ``log min(K, C)`` (C is unknown with `votes`: by ``log K``), so that scores are at most 1.
    log_input : bool, default False
        `mc_probs` holds natural logarithms of probabilities.
    device : torch.device or str, optional
        A CUDA device to work on mc_probs in host memory with.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64
        Nats, between 0 and ``log min(K, C)``.

    Raises
    ------
    ValueError
        Neither or both inputs, distributions that do not sum to 1 within 1e-3, negative votes, NaN.

    Warns
    -----
    UserWarning
        One member cannot disagree.

    References
    ----------
    .. [1] I. Dagan, S. P. Engelson. Committee-based sampling for training probabilistic classifiers. ICML 1995.
    """
    check_either(mc_probs, votes, "mc_probs or votes")
    check_flag(normalize, "normalize")
    if mc_probs is None:
        scores = _of_votes(votes, lambda shares: torch.special.entr(shares).sum(1))
        most = check_votes(votes, "votes").shape[1]
    else:
        scores, most = _scored(mc_probs, "vote_entropy", log_input, device), min(shape_of(mc_probs)[1:])
    return scores / math.log(most) if normalize and most > 1 else scores


@strategy(
    formula=r"1 - \max_y \frac{V(y)}{K}, \qquad 1 - \max_y \bar p_y \text{ with mode='mean'}",
    cost="N K C",
    kernels=("prediction_scores",),
    either=("mc_probs", "votes"),
    use="Ensembles: found best with deep ensembles by Beluch et al. Takes few values with few members: many ties.",
)
def variation_ratio(
    mc_probs: Array | None = None,
    *,
    votes: Any = None,
    mode: str = "votes",
    log_input: bool = False,
    device: torch.device | str | None = None,
) -> Array:
    """Share of the committee that does not vote for the most voted class.

    Parameters
    ----------
    mc_probs : Tensor or ndarray of shape (N, K, C), optional
        Class probabilities of K members; each votes for its likeliest class, the lowest on ties.
    votes : integer array of shape (N, K), optional
        The votes themselves, in place of `mc_probs`.
    mode : {"votes", "mean"}, default "votes"
        "mean": one minus the largest mean probability, which is something else unless there is one member.
    log_input : bool, default False
        `mc_probs` holds natural logarithms of probabilities.
    device : torch.device or str, optional
        A CUDA device to work on mc_probs in host memory with.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64
        Between 0 and ``1 - 1/min(K, C)``; with `mode` "mean" up to ``1 - 1/C``.

    Raises
    ------
    ValueError
        Neither or both inputs, `mode` "mean" of votes, distributions that do not sum to 1 within 1e-3, NaN.

    Warns
    -----
    UserWarning
        One member cannot disagree.

    References
    ----------
    .. [1] L. C. Freeman. Elementary applied statistics. Wiley, 1965.
    .. [2] W. H. Beluch, T. Genewein, A. Nürnberger, J. M. Köhler. The power of ensembles for active learning in image
       classification. CVPR 2018.
    """
    check_one_of(mode, "mode", ("votes", "mean"))
    check_either(mc_probs, votes, "mc_probs or votes")
    if mc_probs is None:
        if mode == "mean":
            raise ValueError("mode must be 'votes' where votes are given, got 'mean'")
        return _of_votes(votes, lambda shares: 1 - shares.amax(1))
    if mode == "votes":
        return _scored(mc_probs, "variation_ratio", log_input, device)
    draws = check_draws(mc_probs, "mc_probs", log_input, device=device)
    return draws.pool.out(prediction_scores(draws, "least_confident"))


@strategy(
    formula=r"H(\bar p)",
    cost="N K C",
    kernels=("prediction_scores",),
    use="Total uncertainty of an ensemble or of dropout draws ('max entropy'), noise in the labels included.",
)
def consensus_entropy(
    mc_probs: Array, *, normalize: bool = False, log_input: bool = False, device: torch.device | str | None = None
) -> Array:
    """Entropy of the mean prediction.

    Parameters
    ----------
    mc_probs : Tensor or ndarray of shape (N, K, C)
        Class probabilities of K members or posterior draws.
    normalize : bool, default False
        Divide by ``log C``.
    log_input : bool, default False
        `mc_probs` holds natural logarithms of probabilities.
    device : torch.device or str, optional
        A CUDA device to work on mc_probs in host memory with.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64
        Nats, between 0 and ``log C``.

    Raises
    ------
    ValueError
        Distributions that do not sum to 1 within 1e-3, negative probabilities, NaN.

    References
    ----------
    .. [1] Y. Gal, R. Islam, Z. Ghahramani. Deep Bayesian active learning with image data. ICML 2017.
    """
    check_flag(normalize, "normalize")
    draws = check_draws(mc_probs, "mc_probs", log_input, device=device)
    scores = draws.pool.out(prediction_scores(draws, "entropy"))
    return scores / math.log(shape_of(mc_probs)[2]) if normalize and shape_of(mc_probs)[2] > 1 else scores


@strategy(
    formula=r"\frac{1}{K} \sum_k \mathrm{KL}(p_k \,\|\, \bar p) = H(\bar p) - \frac{1}{K} \sum_k H(p_k)",
    cost="N K C",
    kernels=("prediction_scores",),
    use="Query by committee in its usual form. The same number as BALD.",
)
def kl_consensus(mc_probs: Array, *, log_input: bool = False, device: torch.device | str | None = None) -> Array:
    """Mean KL divergence from each member to the mean prediction; equal to BALD.

    Parameters
    ----------
    mc_probs : Tensor or ndarray of shape (N, K, C)
        Class probabilities of K members or posterior draws.
    log_input : bool, default False
        `mc_probs` holds natural logarithms of probabilities.
    device : torch.device or str, optional
        A CUDA device to work on mc_probs in host memory with.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64
        Nats, between 0 and ``min(log C, log K)``.

    Raises
    ------
    ValueError
        Distributions that do not sum to 1 within 1e-3, negative probabilities, NaN.

    Warns
    -----
    UserWarning
        One member cannot disagree.

    References
    ----------
    .. [1] A. K. McCallum, K. Nigam. Employing EM and pool-based active learning for text classification. ICML 1998.
    """
    return _scored(mc_probs, "bald", log_input, device)


@strategy(
    formula=r"\max_k \mathrm{KL}(p_k \,\|\, \bar p)",
    cost="N K C",
    kernels=("prediction_scores",),
    use="One dissenting member is enough to be looked at.",
)
def max_disagreement(mc_probs: Array, *, log_input: bool = False, device: torch.device | str | None = None) -> Array:
    """Largest KL divergence from a member to the mean prediction.

    Parameters
    ----------
    mc_probs : Tensor or ndarray of shape (N, K, C)
        Class probabilities of K members or posterior draws.
    log_input : bool, default False
        `mc_probs` holds natural logarithms of probabilities.
    device : torch.device or str, optional
        A CUDA device to work on mc_probs in host memory with.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64
        Nats, between 0 and ``log K``.

    Raises
    ------
    ValueError
        Distributions that do not sum to 1 within 1e-3, negative probabilities, NaN.

    Warns
    -----
    UserWarning
        One member cannot disagree.

    References
    ----------
    .. [1] T. Danka, P. Horvath. modAL: a modular active learning framework for Python. arXiv 1805.00979, 2018.
    """
    return _scored(mc_probs, "max_disagreement", log_input, device)


@strategy(
    formula=r"\frac{1}{C} \sum_c \sqrt{\frac{1}{K} \sum_k p_{kc}^2 - \bar p_c^2}",
    cost="N K C",
    kernels=("prediction_scores",),
    use="A cheap disagreement; near random in the experiments of Gal et al.",
)
def mean_std(mc_probs: Array, *, log_input: bool = False, device: torch.device | str | None = None) -> Array:
    """Standard deviation of each class's probability over the draws, averaged over classes.

    Parameters
    ----------
    mc_probs : Tensor or ndarray of shape (N, K, C)
        Class probabilities of K members or posterior draws.
    log_input : bool, default False
        `mc_probs` holds natural logarithms of probabilities.
    device : torch.device or str, optional
        A CUDA device to work on mc_probs in host memory with.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64
        Population standard deviations (division by K).

    Raises
    ------
    ValueError
        Distributions that do not sum to 1 within 1e-3, negative probabilities, NaN.

    Warns
    -----
    UserWarning
        One member cannot disagree.

    References
    ----------
    .. [1] M. Kampffmeyer, A.-B. Salberg, R. Jenssen. Semantic segmentation of small objects and modeling of uncertainty
       in urban remote sensing images using deep convolutional neural networks. CVPR workshops 2016.
    .. [2] Y. Gal, R. Islam, Z. Ghahramani. Deep Bayesian active learning with image data. ICML 2017.
    """
    return _scored(mc_probs, "mean_std", log_input, device)
