"""Uncertainty of one model: least confident, margin, entropy."""

from __future__ import annotations

import math

import torch

from alkernels._inputs import Array, check_flag
from alkernels._probabilities import Probabilities
from alkernels.ops.prediction_scores import prediction_scores
from alkernels.strategies._catalogue import strategy


def _scored(probs: Array, score: str, log_input: bool, device: torch.device | str | None) -> Array:
    rows = Probabilities(probs, "probs", 2, log_input, device=device)
    return rows.pool.out(prediction_scores(rows, score))


@strategy(
    formula=r"1 - \max_y p_y",
    cost="N C",
    kernels=("prediction_scores",),
    use="The simplest; looks at the likeliest class alone. For two classes the same order as margin and entropy.",
)
def least_confident(probs: Array, *, log_input: bool = False, device: torch.device | str | None = None) -> Array:
    """One minus the probability of the likeliest class.

    Parameters
    ----------
    probs : Tensor or ndarray of shape (N, C)
        Class probabilities: float16, bfloat16, float32 or float64, any strides, or a ``numpy.memmap``.
    log_input : bool, default False
        `probs` holds natural logarithms of probabilities.
    device : torch.device or str, optional
        A CUDA device to work on probs in host memory with.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64
        Higher = less certain, between 0 and ``1 - 1/C``.

    Raises
    ------
    ValueError
        Distributions that do not sum to 1 within 1e-3, negative probabilities, NaN.

    References
    ----------
    .. [1] D. D. Lewis, W. A. Gale. A sequential algorithm for training text classifiers. SIGIR 1994.
    .. [2] B. Settles. Active learning literature survey. University of Wisconsin, 2010.
    """
    return _scored(probs, "least_confident", log_input, device)


@strategy(
    formula=r"1 - (p_{(1)} - p_{(2)})",
    cost="N C",
    kernels=("prediction_scores",),
    use="The baseline to beat: matches or beats most others on tabular data and at small batch sizes.",
)
def margin(probs: Array, *, log_input: bool = False, device: torch.device | str | None = None) -> Array:
    """One minus the difference between the two largest probabilities (breaking ties, best versus second best).

    A small difference is uncertain: the score is turned round once, so that higher = select.

    Parameters
    ----------
    probs : Tensor or ndarray of shape (N, C)
        Class probabilities: float16, bfloat16, float32 or float64, any strides, or a ``numpy.memmap``.
    log_input : bool, default False
        `probs` holds natural logarithms of probabilities.
    device : torch.device or str, optional
        A CUDA device to work on probs in host memory with.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64
        Between 0 and 1; 0 where there is one class.

    Raises
    ------
    ValueError
        Distributions that do not sum to 1 within 1e-3, negative probabilities, NaN.

    References
    ----------
    .. [1] T. Scheffer, C. Decomain, S. Wrobel. Active hidden Markov models for information extraction. IDA 2001.
    .. [2] A. J. Joshi, F. Porikli, N. Papanikolopoulos. Multi-class active learning for image classification.
       CVPR 2009.
    """
    return _scored(probs, "margin", log_input, device)


@strategy(
    formula=r"-\sum_y p_y \log p_y",
    cost="N C",
    kernels=("prediction_scores",),
    use="Uncertainty over all classes. Large batches repeat themselves; many unlikely classes weigh like a doubt.",
)
def entropy(
    probs: Array, *, normalize: bool = False, log_input: bool = False, device: torch.device | str | None = None
) -> Array:
    """Shannon entropy of the predicted distribution.

    Parameters
    ----------
    probs : Tensor or ndarray of shape (N, C)
        Class probabilities: float16, bfloat16, float32 or float64, any strides, or a ``numpy.memmap``.
    normalize : bool, default False
        Divide by ``log C``, so that scores are between 0 and 1 (but for what rows are off a sum of 1).
    log_input : bool, default False
        `probs` holds natural logarithms of probabilities.
    device : torch.device or str, optional
        A CUDA device to work on probs in host memory with.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64
        Nats, between 0 and ``log C``; ``0 log 0 = 0``.

    Raises
    ------
    ValueError
        Distributions that do not sum to 1 within 1e-3, negative probabilities, NaN.

    References
    ----------
    .. [1] C. E. Shannon. A mathematical theory of communication. Bell System Technical Journal, 1948.
    .. [2] B. Settles. Active learning literature survey. University of Wisconsin, 2010.
    """
    check_flag(normalize, "normalize")
    scores = _scored(probs, "entropy", log_input, device)
    return scores / math.log(probs.shape[1]) if normalize and probs.shape[1] > 1 else scores
