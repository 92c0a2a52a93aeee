"""Information about the posterior: BALD, BatchBALD, EPIG."""

from __future__ import annotations

from pathlib import Path

import torch

from alkernels._inputs import Array, Selection
from alkernels.ops import bald as bald_op
from alkernels.ops import batchbald as batchbald_op
from alkernels.ops.joint_entropy import MAX_CONFIGURATIONS, NUM_SAMPLES, check_draws
from alkernels.strategies._catalogue import strategy
from alkernels.strategies.committee import disagreeing


@strategy(
    formula=r"H(\bar p) - \frac{1}{K} \sum_k H(p_k)",
    cost="N K C",
    kernels=("bald", "prediction_scores"),
    use="Draws from a real posterior, batches of a few; a large batch repeats itself: then batchbald, or power of it.",
)
def bald(mc_probs: Array, *, log_input: bool = False, device: torch.device | str | None = None) -> Array:
    """Mutual information of the label and the posterior draws.

    Parameters
    ----------
    mc_probs : Tensor or ndarray of shape (N, K, C)
        Class probabilities under K posterior draws; the draws of different rows may differ.
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
        One draw cannot disagree.

    References
    ----------
    .. [1] N. Houlsby, F. Huszár, Z. Ghahramani, M. Lengyel. Bayesian active learning for classification and preference
       learning. arXiv 1112.5745, 2011.
    .. [2] Y. Gal, R. Islam, Z. Ghahramani. Deep Bayesian active learning with image data. ICML 2017.
    """
    return bald_op.bald(disagreeing(mc_probs, log_input, device))


@strategy(
    formula=r"\arg\max_n \; I(y_1, \dots, y_t, y_n; \omega)",
    cost="b N K C min(C^b, M)",
    kernels=("batchbald", "joint_entropy"),
    use="Draws that are the same weights for every row, K of 50 and more, batches of up to about 10.",
)
def batchbald(
    mc_probs: Array,
    batch_size: int,
    *,
    log_input: bool = False,
    max_configurations: int = MAX_CONFIGURATIONS,
    num_samples: int = NUM_SAMPLES,
    generator: torch.Generator | int | None = None,
    device: torch.device | str | None = None,
    memory_limit: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> Selection:
    """A batch whose labels together say the most about the posterior draws.

    Runs :func:`alkernels.batchbald`.

    Parameters
    ----------
    mc_probs : Tensor or ndarray of shape (N, K, C)
        Class probabilities under K posterior draws. Draw k must be the same weights (dropout masks) for every row.
    batch_size : int
        How many rows to pick.
    log_input : bool, default False
        `mc_probs` holds natural logarithms of probabilities.
    max_configurations, num_samples : int, default 40000
        Up to how many label configurations are enumerated, and how many are sampled beyond.
    generator : torch.Generator or int, optional
        Draws the samples.
    device : torch.device or str, optional
        A CUDA device to work on mc_probs in host memory with.
    memory_limit : int, optional
        Bytes that it may take beyond what is in memory already: rows in files are read in tiles that fit.
    checkpoint : str or Path, optional
        A file to save the state to and to go on from, as in :func:`alkernels.batchbald`.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    Selection
        ``scores`` are each pick's gain in joint mutual information, in nats.

    Raises
    ------
    ValueError
        An argument out of range, distributions that do not sum to 1 within 1e-3, negative probabilities, NaN.

    Warns
    -----
    UserWarning
        The batch reaches 0.95 of ``log K``, or K is 1.

    References
    ----------
    .. [1] A. Kirsch, J. van Amersfoort, Y. Gal. BatchBALD: efficient and diverse batch acquisition for deep Bayesian
       active learning. NeurIPS 2019.
    """
    return batchbald_op.batchbald(
        check_draws(mc_probs, "mc_probs", log_input, device=device),
        batch_size,
        max_configurations=max_configurations,
        num_samples=num_samples,
        generator=generator,
        memory_limit=memory_limit,
        checkpoint=checkpoint,
        progress=progress,
    )


@strategy(
    formula=r"H(y) + \mathbb{E}_*[H(y_*)] - \mathbb{E}_*[H(y, y_*)]",
    cost="N T C² K",
    kernels=("epig", "joint_entropy"),
    use="A pool that is wider than what predictions are wanted on: asks what labels say about the targets.",
)
def epig(
    mc_probs: Array,
    target_mc_probs: Array,
    *,
    log_input: bool = False,
    device: torch.device | str | None = None,
) -> Array:
    """Expected information that a label gives about the predictions at target points.

    Runs :func:`alkernels.epig`.

    Parameters
    ----------
    mc_probs : Tensor or ndarray of shape (N, K, C)
        Class probabilities under K posterior draws. Draw k must be the same weights for every row.
    target_mc_probs : like `mc_probs`, shape (T, K, C)
        The same of 100 to 500 points from the distribution that predictions are wanted on, under the same draws.
    log_input : bool, default False
        Both hold natural logarithms of probabilities.
    device : torch.device or str, optional
        A CUDA device to work on arrays in host memory with.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64
        Nats; never above BALD.

    Raises
    ------
    ValueError
        Distributions that do not sum to 1 within 1e-3, negative probabilities, NaN, draws that disagree, no target.

    Warns
    -----
    UserWarning
        One draw: every score is 0.

    References
    ----------
    .. [1] F. Bickford Smith, A. Kirsch, S. Farquhar, Y. Gal, A. Foster, T. Rainforth. Prediction-oriented Bayesian
       active learning. AISTATS 2023.
    """
    draws = disagreeing(mc_probs, log_input, device)
    targets = check_draws(target_mc_probs, "target_mc_probs", log_input, device=device)
    return bald_op.epig(draws, targets)
