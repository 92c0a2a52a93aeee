"""batchbald_redux 2.0: BatchBALD and BALD with its signatures. Needs torch only."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch

from alkernels.ops.bald import bald
from alkernels.ops.batchbald import batchbald
from alkernels.strategies._picking import top_scores

try:
    from batchbald_redux.batchbald import CandidateBatch
except ImportError:

    @dataclass
    class CandidateBatch:  # type: ignore[no-redef]
        """Picked rows and their scores; batchbald_redux's own class where that is installed.

        Attributes
        ----------
        scores : list of float
        indices : list of int
        """

        scores: list[float]
        indices: list[int]


def get_batchbald_batch(
    log_probs_N_K_C: torch.Tensor,
    batch_size: int,
    num_samples: int,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> CandidateBatch:
    """``batchbald_redux.batchbald.get_batchbald_batch``: a batch by greedy joint mutual information.

    Equal to batchbald_redux while label configurations are enumerated (``C ** t <= num_samples`` after t picks). What
    differs: a class that a draw rules out (a logarithm of ``-inf``) gives 0, not NaN; no row is picked twice; nothing
    of size ``N x num_samples x C`` is held; and only rows that may still win are scored.

    Parameters
    ----------
    log_probs_N_K_C : Tensor of shape (N, K, C)
        Natural logarithms of class probabilities under K posterior draws; draw k must be the same weights for every
        row.
    batch_size : int
        How many rows to pick; more than there are: all of them.
    num_samples : int
        So many configurations are enumerated at most, and drawn beyond: ``num_samples // K`` from each draw.
    dtype : torch.dtype, optional
        Is not used: bounds are float32, what decides is float64.
    device : torch.device or str, optional
        Where to compute; a CUDA device takes rows in host memory as well. Default: where they are.

    Returns
    -------
    CandidateBatch
        ``scores``: the joint mutual information of the picks up to each one, in nats; ``indices``. Lists.

    Raises
    ------
    ValueError
        An argument out of range, rows that are no logarithms of distributions.
    TypeError
        An argument of the wrong type.

    Warns
    -----
    UserWarning
        The batch reaches 0.95 of ``log K``, which is all that K draws can tell, or K is 1.

    Notes
    -----
    Samples are drawn from torch's global generator, but not the same ones as by batchbald_redux.

    References
    ----------
    .. [1] A. Kirsch, J. van Amersfoort, Y. Gal. BatchBALD: efficient and diverse batch acquisition for deep Bayesian
       active learning. NeurIPS 2019.

    Examples
    --------
    >>> import torch
    >>> from alkernels.integrations.batchbald_redux import get_batchbald_batch
    >>> a, b = [0.9, 0.1], [0.2, 0.8]
    >>> probs = torch.tensor([[a, a, b, b], [a, a, b, b], [a, b, a, b]])
    >>> get_batchbald_batch(probs.log(), 2, 1000).indices
    [0, 2]
    """
    rows, target = _placed(log_probs_N_K_C, device)
    _check_dtype(dtype)
    picks = batchbald(
        rows,
        _clamped(batch_size, rows),
        log_input=True,
        max_configurations=num_samples,
        num_samples=num_samples,
        device=target,
    )
    return CandidateBatch(list(accumulate(picks.scores.tolist())), picks.indices.tolist())


def get_bald_batch(
    log_probs_N_K_C: torch.Tensor,
    batch_size: int,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> CandidateBatch:
    """``batchbald_redux.batchbald.get_bald_batch``: the rows of the largest mutual information, best first.

    Parameters
    ----------
    log_probs_N_K_C : Tensor of shape (N, K, C)
        Natural logarithms of class probabilities under K posterior draws.
    batch_size : int
        How many rows to pick; more than there are: all of them.
    dtype : torch.dtype, optional
        Is not used: scores are float64.
    device : torch.device or str, optional
        As in :func:`get_batchbald_batch`.

    Returns
    -------
    CandidateBatch
        ``scores`` in nats, descending; ``indices``, ties to the lowest. Lists.

    Raises
    ------
    ValueError
        An argument out of range, rows that are no logarithms of distributions.
    TypeError
        An argument of the wrong type.

    Examples
    --------
    >>> import torch
    >>> from alkernels.integrations.batchbald_redux import get_bald_batch
    >>> probs = torch.tensor([[[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.1, 0.9]]])
    >>> get_bald_batch(probs.log(), 1).indices
    [1]
    """
    rows, target = _placed(log_probs_N_K_C, device)
    _check_dtype(dtype)
    picks = top_scores(bald(rows, log_input=True, device=target), _clamped(batch_size, rows))
    return CandidateBatch(picks.scores.tolist(), picks.indices.tolist())


def _placed(rows: torch.Tensor, device: torch.device | str | None) -> tuple[torch.Tensor, torch.device | str | None]:
    """The rows, and the CUDA device that works on them where they are in host memory."""
    if not isinstance(rows, torch.Tensor):
        raise TypeError(f"log_probs_N_K_C must be a torch.Tensor, got {type(rows).__name__}")
    if device is None or torch.device(device).type == rows.device.type:
        return rows, None
    if torch.device(device).type == "cpu":
        return rows.cpu(), None
    return rows, device


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype or None, got {type(dtype).__name__}")


def _clamped(batch_size: int, rows: torch.Tensor) -> int:
    return min(batch_size, len(rows)) if isinstance(batch_size, int) else batch_size
