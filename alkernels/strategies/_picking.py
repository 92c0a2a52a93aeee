"""Picking: from one score a row to the rows to label."""

from __future__ import annotations

from typing import Any

import torch

from alkernels._inputs import Array, Selection, as_tensor, check_integer, check_rows, seed_of
from alkernels._sources import RowsOf, is_numpy
from alkernels.strategies._arguments import check_one_of

TIE_BREAKS = ("index", "random")


def top_scores(
    scores: Array,
    batch_size: int,
    *,
    candidates: Any = None,
    tie_break: str = "index",
    generator: torch.Generator | int | None = None,
) -> Selection:
    """Pick the rows of the highest scores, best first.

    Parameters
    ----------
    scores : Tensor or ndarray of shape (N,)
        Higher = select. Infinities are legal; NaN is not, but for rows that may not be picked.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N`` (or the number of candidates).
    candidates : mask of shape (N,) or row numbers, optional
        The rows that may be picked. Default: all.
    tie_break : {"index", "random"}, default "index"
        Which of equal scores come first: those of the lowest index, or any.
    generator : torch.Generator or int, optional
        Decides random ties. Default: torch's global generator.

    Returns
    -------
    Selection
        ``indices`` (b,) int64 and their ``scores`` (b,), descending. Tensors for tensors, NumPy for NumPy.

    Raises
    ------
    ValueError
        `batch_size` or a candidate out of range, NaN.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> alk.strategies.top_scores(torch.tensor([0.1, 0.7, 0.3, 0.7]), 3).indices
    tensor([1, 3, 2])
    """
    values = as_scores(scores, "scores")
    rows = None if candidates is None else check_rows(candidates, "candidates", len(values), values.device, "scores")
    most, what = (len(values), "scores") if rows is None else (len(rows), "candidates")
    batch_size = check_batch_size(batch_size, most, what)
    check_one_of(tie_break, "tie_break", TIE_BREAKS)
    among = values if rows is None else values[rows]
    if among.isnan().any():
        first = int(among.isnan().nonzero()[0])
        raise ValueError(f"scores must not be NaN, got NaN in row {first if rows is None else int(rows[first])}")
    if tie_break == "random":
        shuffled = torch.randperm(most, generator=torch.Generator().manual_seed(seed_of(generator))).to(values.device)
        picks = shuffled[top(among[shuffled], batch_size)]
    else:
        picks = top(among, batch_size)
    picks = picks if rows is None else rows[picks]
    chosen = values[picks]
    return Selection(picks.numpy(), chosen.numpy()) if is_numpy(scores) else Selection(picks, chosen)


def top(values: torch.Tensor, count: int) -> torch.Tensor:
    """Positions of the `count` largest, descending, ties to the lower position (torch.topk promises no order)."""
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=values.device)
    positions = (values >= values.topk(count).values[-1]).nonzero().flatten()
    return positions[values[positions].sort(descending=True, stable=True).indices[:count]]


def check_scores(scores: Any, name: str, count: int | None = None) -> torch.Tensor:
    """One number a row, never NaN."""
    values = as_scores(scores, name, count)
    if values.isnan().any():
        raise ValueError(f"{name} must not be NaN, got NaN in row {int(values.isnan().nonzero()[0])}")
    return values


def as_scores(scores: Any, name: str, count: int | None = None) -> torch.Tensor:
    """One number a row, in float64 but for float32."""
    restricted = isinstance(scores, RowsOf)
    values = as_tensor(scores.array if restricted else scores, name, "a vector of numbers")
    if restricted:
        values = values[scores.index.to(values.device)]
    if values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, got dtype {values.dtype}")
    if values.dim() != 1 or (count is not None and len(values) != count):
        wanted = "one-dimensional [N]" if count is None else f"of shape ({count},), one a row"
        raise ValueError(f"{name} must be {wanted}, got shape {tuple(values.shape)}")
    return values if values.dtype == torch.float32 else values.double()


def check_batch_size(batch_size: Any, most: int, what: str) -> int:
    batch_size = check_integer(batch_size, "batch_size")
    if not 0 <= batch_size <= most:
        raise ValueError(f"batch_size must be between 0 and {most} ({what}), got {batch_size}")
    return batch_size
