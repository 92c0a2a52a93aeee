"""BALD and EPIG: mutual information of a label with the posterior draws, or with the labels of target points."""

from __future__ import annotations

import torch

from alkernels._inputs import Array, not_compiled
from alkernels._probabilities import Probabilities
from alkernels._streaming import explain_memory
from alkernels.ops.joint_entropy import check_draws, conditional_entropy
from alkernels.ops.prediction_scores import prediction_scores
from alkernels.ops.selection import detached, library


def bald(probs: Array | Probabilities, *, log_input: bool = False, device: torch.device | str | None = None) -> Array:
    """Mutual information of each row's label and the posterior draws.

    ``H((1/K) Σ_k p_k) - (1/K) Σ_k H(p_k)``: how much the draws disagree, between 0 and ``min(log C, log K)``.

    Parameters
    ----------
    probs : Tensor or ndarray of shape (N, K, C)
        Class probabilities under K posterior draws. float16, bfloat16, float32 or float64, any strides, or a
        ``numpy.memmap``.
    log_input : bool, default False
        `probs` holds natural logarithms of probabilities.
    device : torch.device or str, optional
        A CUDA device to work on probs in host memory with: copied to it once where it takes up to 0.6 of its free
        memory, else streamed at each pass. Results come back to host memory. Default: where probs is.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64
        Nats, higher = more informative; 0 where rounding would leave a little less. Equals the mean KL divergence from
        the draws to their mean ('KL to consensus').

    Raises
    ------
    ValueError
        Distributions that do not sum to 1 within 1e-3, negative probabilities, NaN, shapes that disagree.
    TypeError
        An array that is not floating-point.

    Notes
    -----
    Sums and logarithms in float64: errors stay below 1e-12 nats, draws that agree have exactly 0. One pass over
    `probs`, which checks it as well; memory beyond it: 50 MB.

    References
    ----------
    .. [1] N. Houlsby, F. Huszár, Z. Ghahramani, M. Lengyel. Bayesian active learning for classification and preference
       learning. arXiv 1112.5745, 2011.
    .. [2] Y. Gal, R. Islam, Z. Ghahramani. Deep Bayesian active learning with image data. ICML 2017.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> alk.bald(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]]))
    tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    if torch.compiler.is_compiling():
        not_compiled(device=device)
        return torch.ops.alkernels.bald(*detached(probs), log_input=log_input)
    draws = check_draws(probs, "probs", log_input, device=device)
    with explain_memory(draws.pool, "the scores", fewer=None):
        return draws.pool.out(prediction_scores(draws, "bald"))


def epig(
    probs: Array | Probabilities,
    target_probs: Array | Probabilities,
    *,
    log_input: bool = False,
    device: torch.device | str | None = None,
) -> Array:
    """Mutual information of each row's label and the label of a target point, averaged over target points.

    ``H(y) + E[H(y*)] - E[H(y, y*)]``, the expected predictive information gain: what a label says about the
    predictions that matter, rather than about the model.

    Parameters
    ----------
    probs : Tensor or ndarray of shape (N, K, C)
        Class probabilities of the candidates under K posterior draws. float16, bfloat16, float32 or float64, any
        strides, or a ``numpy.memmap``.
    target_probs : like `probs`, shape (T, K, C')
        The same of points from the distribution that predictions are wanted on (100 to 500 of them), under the same
        draws.
    log_input : bool, default False
        Both hold natural logarithms of probabilities.
    device : torch.device or str, optional
        A CUDA device to work on arrays in host memory with: copied to it once where they take up to 0.6 of its free
        memory, else streamed at each pass. Results come back to host memory. Default: where arrays are.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64
        Nats, higher = more informative; 0 where rounding would leave a little less. Never above BALD.

    Raises
    ------
    ValueError
        Distributions that do not sum to 1 within 1e-3, negative probabilities, NaN, draws that disagree, no target.
    TypeError
        An array that is not floating-point.

    Notes
    -----
    Computed as ``H(y) - E[H(y | y*)]`` by the kernel of :func:`joint_entropy`, whose configurations are here the
    targets' labels; products and sums in float64. ``2 N K C T C'`` operations; memory beyond the input: 50 MB and
    24 bytes for each target, class and draw.

    References
    ----------
    .. [1] F. Bickford Smith, A. Kirsch, S. Farquhar, Y. Gal, A. Foster, T. Rainforth. Prediction-oriented Bayesian
       active learning. AISTATS 2023.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> probs = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]])
    >>> alk.epig(probs, probs[:1])
    tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    if torch.compiler.is_compiling():
        not_compiled(device=device)
        return torch.ops.alkernels.epig(*detached(probs, target_probs), log_input=log_input)
    draws = check_draws(probs, "probs", log_input, device=device)
    targets = check_draws(target_probs, "target_probs", log_input, device=device)
    if targets.shape[1] != draws.shape[1]:
        raise ValueError(
            f"{targets.name} must have as many draws as {draws.name}, got {targets.shape[1]} and {draws.shape[1]}"
        )
    if targets.count == 0:
        raise ValueError(f"{targets.name} must have at least one row, got none")
    if targets.device != draws.device:
        raise ValueError(f"{targets.name} must be on the device of {draws.name} ({draws.device}), got {targets.device}")
    draws.check()
    targets.check()
    k = draws.shape[1]
    # Configurations: each target's labels. The first row is 'nothing known', whose entropy comes in with a plus.
    classes = int(targets.shape[2])
    rows = torch.empty(1 + targets.count * classes, k, dtype=torch.float64, device=draws.device)
    rows[0] = 1.0
    for begin, end, tile in targets.tiles(torch.float64):
        rows[1 + begin * classes : 1 + end * classes].view(-1, classes, k).copy_(tile.transpose(1, 2))
    mass = rows.sum(1)
    rows /= mass.clamp(min=torch.finfo(torch.float64).tiny)[:, None]  # a label that no draw allows stays a row of zeros
    mass /= -mass[1:].sum()
    mass[0] = 1.0
    # wide enough for float64 products: the kernel widens float32, logarithms lose digits in it
    tiles = draws.tiles(torch.float64 if log_input else None)
    with explain_memory(draws.pool, f"{targets.count} targets", fewer=None):
        scores = [conditional_entropy(tile, rows, mass, wide=True) for _, _, tile in tiles]
    return draws.pool.out(torch.cat([*scores, mass.new_empty(0)]).clamp_(min=0))


@torch.library.impl(library, "bald", "CompositeExplicitAutograd")
def _(probs, *, log_input=False):  # type: ignore[no-untyped-def]
    return bald(probs, log_input=log_input)


@torch.library.impl(library, "epig", "CompositeExplicitAutograd")
def _(probs, target_probs, *, log_input=False):  # type: ignore[no-untyped-def]
    return epig(probs, target_probs, log_input=log_input)


@torch.library.register_fake("alkernels::bald")
def _(probs, *, log_input=False):  # type: ignore[no-untyped-def]
    torch._check(probs.dim() == 3, lambda: f"probs must be three-dimensional [N, K, C], got {probs.dim()}")
    return probs.new_empty(probs.shape[0], dtype=torch.float64)


@torch.library.register_fake("alkernels::epig")
def _(probs, target_probs, *, log_input=False):  # type: ignore[no-untyped-def]
    torch._check(probs.dim() == 3 and target_probs.dim() == 3 and probs.shape[1] == target_probs.shape[1])
    return probs.new_empty(probs.shape[0], dtype=torch.float64)
