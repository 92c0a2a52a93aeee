"""Gradients of the loss: expected gradient length, BADGE, BAIT."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from alkernels._inputs import (
    Array,
    Pool,
    Selection,
    check_flag,
    check_integer,
    check_memory_limit,
    check_pool,
    check_squares,
    largest_magnitude,
    least_tiles,
)
from alkernels._probabilities import Probabilities
from alkernels._sources import WithOnes
from alkernels.ops import kmeans_plusplus
from alkernels.ops.running_distances import memory_needed
from alkernels.strategies._arguments import check_above_zero, check_as_many, check_one_of, check_single
from alkernels.strategies._catalogue import strategy
from alkernels.strategies._picking import check_batch_size, top

FIRST = ("max_norm", "uniform")
# Numbers of gradients or products that are held at a time.
_NUMBERS = 1 << 24
# BAIT's matrices are so wide at most: 128 MB each.
_WIDEST = 4096
# Share of D times the largest squared feature: what is less keeps too few digits.
_LEAST_SHARE = 1e-8


def _model_of(
    probs: Array, features: Array, log_input: bool, device: torch.device | str | None, names: tuple[str, str]
) -> tuple[Probabilities, Pool]:
    """Both sides of a last layer, row by row."""
    rows = Probabilities(probs, names[0], 2, log_input, device=device)
    inputs = check_pool(features, device)
    inputs.name = names[1]
    check_as_many(check_single(inputs).count, names[1], rows.count, names[0])
    if rows.device != inputs.device:
        raise ValueError(f"{names[1]} must be on the device of {names[0]} ({rows.device}), got {inputs.device}")
    return rows, inputs


def _tiles(rows: Probabilities, inputs: Pool, dtype: torch.dtype | None = None) -> Iterator[tuple[int, int, Any, Any]]:
    """Probabilities and features of the same rows, checked, a tile at a time."""
    # a few float64 copies of the features' tile
    rows.rows_a_tile = min(rows.rows_a_tile, inputs.rows_of(32 * inputs.widths[0]))
    both = zip(rows.checked_tiles(dtype), inputs.tiles(rows.rows_a_tile), strict=True)
    for (begin, end, p), (_, _, (h,)) in both:
        check_squares(inputs, inputs.check_tile(begin, (h,)))
        yield begin, end, p, h


@strategy(
    formula=r"\textstyle\sum_y p_y \, \lVert \nabla \ell(x, y) \rVert = "
    r"\sqrt{\lVert h \rVert^2 + 1} \, \sum_y p_y \lVert p - e_y \rVert",
    cost="N (C + D)",
    use="How much a label would change the last layer, whichever it is; favours rows with long features.",
)
def egl(
    probs: Array,
    features: Array,
    *,
    bias: bool = True,
    squared: bool = False,
    log_input: bool = False,
    device: torch.device | str | None = None,
) -> Array:
    """Expected gradient length of the last layer, under softmax and cross-entropy, in closed form.

    Parameters
    ----------
    probs : Tensor or ndarray of shape (N, C)
        Class probabilities.
    features : Tensor or ndarray of shape (N, D)
        The inputs of the linear last layer.
    bias : bool, default True
        The last layer has a bias, whose gradient counts.
    squared : bool, default False
        The expected squared length instead.
    log_input : bool, default False
        `probs` holds natural logarithms of probabilities.
    device : torch.device or str, optional
        A CUDA device to work on arrays in host memory with.

    Returns
    -------
    Tensor or ndarray of shape (N,), float64
        Higher = select; 0 where a prediction is certain.

    Raises
    ------
    ValueError
        Distributions that do not sum to 1 within 1e-3, negative probabilities, NaN, arrays that disagree.

    See Also
    --------
    egl_full_gradient : the same over all parameters of a model.

    References
    ----------
    .. [1] B. Settles, M. Craven, S. Ray. Multiple-instance active learning. NeurIPS 2007.
    """
    check_flag(bias, "bias")
    check_flag(squared, "squared")
    rows, inputs = _model_of(probs, features, log_input, device, ("probs", "features"))
    parts = [torch.empty(0, dtype=torch.float64, device=rows.device)]
    for _, _, p, h in _tiles(rows, inputs, torch.float64):
        squares = p.square()
        # |p - e_y|² without the difference of large numbers
        lengths = (squares.sum(1, keepdim=True) - squares).clamp_(min=0).add_((1 - p).square_())
        norm = h.double().square().sum(1) + float(bias)
        parts.append((p * lengths).sum(1) * norm if squared else (p * lengths.sqrt()).sum(1) * norm.sqrt())
    return rows.pool.out(torch.cat(parts))


def egl_full_gradient(
    model: torch.nn.Module,
    inputs: torch.Tensor,
    *,
    top_classes: int | None = None,
    squared: bool = False,
    chunk_size: int | None = None,
    progress: bool = False,
) -> torch.Tensor:
    """Expected gradient length over all parameters of a model that returns logits.

    ``Σ_y p_y ‖∇_θ ℓ(x, y)‖`` by per-sample gradients (``torch.func``), for any model that ``torch.func`` can take.

    Parameters
    ----------
    model : torch.nn.Module
        Maps inputs [n, ...] to logits [n, C]. It is run in eval mode (dropout off, running statistics), and its flags
        are put back.
    inputs : Tensor of shape (N, ...)
        On the model's device.
    top_classes : int, optional
        Only the so many likeliest classes of each row, their probabilities scaled to sum to 1. Default: all.
    squared : bool, default False
        The expected squared length instead.
    chunk_size : int, optional
        Rows at a time. Default: as many as keep the gradients below 16 million numbers.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    Tensor of shape (N,), float64
        Higher = select.

    Raises
    ------
    ValueError
        A model without parameters that require gradients, an option out of range, logits that are not finite.

    Notes
    -----
    C backward passes a row; memory ``chunk_size * C`` times the number of parameters.

    References
    ----------
    .. [1] B. Settles, M. Craven, S. Ray. Multiple-instance active learning. NeurIPS 2007.
    """
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("model must have parameters that require gradients, got none")
    fixed = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
    fixed |= dict(model.named_buffers())
    for name, value in (("top_classes", top_classes), ("chunk_size", chunk_size)):
        if value is not None and check_integer(value, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")

    def logits_of(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        out = torch.func.functional_call(model, (weights, fixed), (x[None],))
        if out.dim() != 2:
            raise ValueError(f"model must return logits [n, C], got {tuple(out.shape)}")
        return out[0]

    def squared_length(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = torch.func.grad(lambda weights: torch.nn.functional.cross_entropy(logits_of(weights, x), y))
        return sum(g.double().square().sum() for g in loss(parameters).values())

    of_classes = torch.func.vmap(torch.func.vmap(squared_length, in_dims=(None, 0)))
    modes = {module: module.training for module in model.modules()}
    scores = [torch.empty(0, dtype=torch.float64, device=inputs.device)]
    model.eval()
    try:
        with torch.no_grad(), tqdm(total=len(inputs), desc="EGL", unit="row", disable=not progress) as bar:
            begin = 0
            while begin < len(inputs):
                some = inputs[begin : begin + (chunk_size or 256)]
                p = torch.func.vmap(lambda x: logits_of(parameters, x))(some).double().softmax(1)
                if not p.isfinite().all():
                    row = begin + int((~p.isfinite()).any(1).nonzero()[0])
                    raise ValueError(f"model must return finite logits, got NaN or infinity for row {row}")
                best = p.topk(min(top_classes or p.shape[1], p.shape[1]), 1)
                shares = best.values / best.values.sum(1, keepdim=True) if top_classes else best.values
                size = sum(v.numel() for v in parameters.values()) * best.indices.shape[1]
                for part in range(0, len(some), chunk_size or max(1, _NUMBERS // size)):
                    chosen = slice(part, part + (chunk_size or max(1, _NUMBERS // size)))
                    lengths = of_classes(some[chosen], best.indices[chosen])
                    scores.append((shares[chosen] * (lengths if squared else lengths.sqrt())).sum(1))
                begin += len(some)
                bar.update(len(some))
    finally:
        for module, training in modes.items():
            module.training = training
    return torch.cat(scores)


@strategy(
    formula=r"g = (p - e_{\hat y}) \otimes h, \quad n_t \sim D^2(g)",
    cost="passes N (C + D), a few passes a batch",
    kernels=("kmeans_plusplus",),
    use="Large batches with a network: as uncertain as margin, and diverse.",
)
def badge(
    probs: Array,
    features: Array,
    batch_size: int,
    *,
    first: str = "max_norm",
    bias: bool = False,
    log_input: bool = False,
    generator: torch.Generator | int | None = None,
    device: torch.device | str | None = None,
    memory_limit: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> Selection:
    """k-means++ draws among the last layer's gradients for the likeliest labels.

    Parameters
    ----------
    probs : Tensor or ndarray of shape (N, C)
        Class probabilities.
    features : Tensor or ndarray of shape (N, D)
        The inputs of the linear last layer.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    first : {"max_norm", "uniform"}, default "max_norm"
        The first pick: the longest gradient, as in the authors' code, or any row, as in k-means++.
    bias : bool, default False
        The gradient of the last layer's bias is part of the embedding.
    log_input : bool, default False
        `probs` holds natural logarithms of probabilities.
    generator : torch.Generator or int, optional
        Makes all draws. Default: torch's global generator.
    device : torch.device or str, optional
        A CUDA device to work on arrays in host memory with.
    memory_limit : int, optional
        Bytes that it may take beyond what is in memory already: rows in files are read in tiles that fit.
    checkpoint : str or Path, optional
        A file to save the state to and to go on from, as in :func:`alkernels.kmeans_plusplus`.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    Selection
        ``scores`` are squared distances to the nearest earlier pick when drawn, ``inf`` for the first.

    Raises
    ------
    ValueError
        An argument out of range, distributions that do not sum to 1 within 1e-3, NaN, arrays that disagree.

    Notes
    -----
    The embeddings, C D wide, are never built: their distances come from the two factors. Memory beyond the input: a
    factor of shape (N, C), and that of :func:`alkernels.kmeans_plusplus`. Rows that all coincide follow in index order.

    References
    ----------
    .. [1] J. T. Ash, C. Zhang, A. Krishnamurthy, J. Langford, A. Agarwal. Deep batch active learning by diverse,
       uncertain gradient lower bounds. ICLR 2020.
    """
    check_flag(bias, "bias")
    check_one_of(first, "first", FIRST)
    rows, inputs = _model_of(probs, features, log_input, device, ("probs", "features"))
    batch_size = check_batch_size(batch_size, rows.count, "rows of probs")
    limit = check_memory_limit(memory_limit)
    needed = memory_needed(inputs) + rows.count * rows.shape[1] * rows.dtype.itemsize
    inputs.limit_memory(limit, needed + least_tiles(rows.shape[1] + int(bias)))  # the pairs' tiles are wider
    factor = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    norms = torch.empty(rows.count, dtype=torch.float64, device=rows.device)
    for begin, end, p, h in _tiles(rows, inputs):
        a = factor[begin:end].copy_(p)
        a.scatter_add_(1, p.argmax(1, keepdim=True), a.new_full((len(a), 1), -1.0))
        norms[begin:end] = a.double().square().sum(1) * (h.double().square().sum(1) + float(bias))
    second: Any = features
    if inputs.to_host and not inputs.streamed:
        second = inputs.tile(0, inputs.count)[0]  # it is on the device already
    if bias:
        second = WithOnes(second)
    pool = Pool((factor, second), "features", device=device)
    start = int(top(norms, 1)) if first == "max_norm" else None
    pool.limit_memory(limit, needed)
    run = kmeans_plusplus.select(
        pool, batch_size, None, start, generator, track=False, checkpoint=checkpoint, progress=progress
    )
    return Selection(rows.pool.out(run.indices), rows.pool.out(run.squared))


@strategy(
    formula=r"\arg\min_S \mathrm{tr}\big((\lambda I + \textstyle\sum_{x \in L \cup S} V_x V_x^\top)^{-1} F\big)",
    cost="2 b (N (C D)² + (C D)³)",
    use="Small last layers only (C D up to 4096): the batch that leaves the least uncertainty, by the Fisher matrix.",
)
def bait(
    probs: Array,
    features: Array,
    batch_size: int,
    *,
    labeled_probs: Array | None = None,
    labeled_features: Array | None = None,
    regularization: float = 1.0,
    progress: bool = False,
) -> Selection:
    """Batch active learning by Fisher information of the last layer: greedy to twice the batch, then pruned back.

    Parameters
    ----------
    probs : Tensor or ndarray of shape (N, C)
        Class probabilities.
    features : Tensor or ndarray of shape (N, D)
        The inputs of the linear last layer; ``C * D`` must be at most 4096.
    batch_size : int
        How many rows to pick, ``0 <= batch_size <= N``.
    labeled_probs, labeled_features : arrays of shapes (L, C) and (L, D), optional
        The same of the labelled rows, both or neither.
    regularization : float, default 1.0
        ``λ > 0``, in the unit of squared features: features times 10 go with 100 times as much.
    progress : bool, default False
        Show a progress bar.

    Returns
    -------
    Selection
        In the order picked, without those pruned; ``scores`` are the drops of the trace when picked.

    Raises
    ------
    ValueError
        A last layer that is too wide, an argument out of range (`regularization` below 1e-8 D times the largest squared
        feature), distributions that do not sum to 1 within 1e-3, NaN.

    Notes
    -----
    In float64, in tiles; memory beyond the input: six matrices of ``(C D)²`` and 128 MB. The pool is walked for each
    of ``2 b`` picks.

    References
    ----------
    .. [1] J. T. Ash, S. Goel, A. Krishnamurthy, S. Kakade. Gone fishing: neural active learning with Fisher embeddings.
       NeurIPS 2021.
    """
    rows, inputs = _model_of(probs, features, False, None, ("probs", "features"))
    batch_size = check_batch_size(batch_size, rows.count, "rows of probs")
    c, d = rows.shape[1], inputs.widths[0]
    if c * d > _WIDEST:
        raise ValueError(f"features must have C * D of at most {_WIDEST} (matrices of its square), got {c} * {d}")
    regularization = check_above_zero(regularization, "regularization")
    if (labeled_probs is None) != (labeled_features is None):
        raise ValueError("labeled_probs and labeled_features must be given together, got one of them")
    theirs, known, largest = None, 0, largest_magnitude(inputs)
    if labeled_probs is not None and labeled_features is not None and len(labeled_probs):
        both = _model_of(labeled_probs, labeled_features, False, None, ("labeled_probs", "labeled_features"))
        if both[0].shape[1] != c or both[1].widths[0] != d:
            raise ValueError(
                f"labeled_probs and labeled_features must be {c} and {d} wide, got {both[0].shape[1]} and "
                f"{both[1].widths[0]}"
            )
        largest = max(largest, largest_magnitude(both[1]))
        known, theirs = both[0].count, _fisher(*both)
    least = _LEAST_SHARE * d * largest**2
    if regularization < least:
        raise ValueError(
            f"regularization must be at least {least:.3g} beside features of this magnitude, got {regularization:.3g}"
        )
    fisher = _fisher(rows, inputs)
    start = torch.eye(len(fisher), dtype=torch.float64, device=rows.device) * regularization
    if theirs is not None:
        fisher = (fisher * rows.count + theirs * known) / (rows.count + known)
        start += theirs * (known / (known + batch_size))
    scale = math.sqrt(batch_size / (known + batch_size)) if batch_size else 1.0
    picks, drops = _greedy_and_pruned(rows, inputs, fisher, start, scale, batch_size, progress)
    out = rows.pool.out
    return Selection(
        out(torch.tensor(picks, dtype=torch.int64, device=rows.device)),
        out(torch.tensor(drops, dtype=torch.float64, device=rows.device)),
    )


def _greedy_and_pruned(
    rows: Probabilities,
    inputs: Pool,
    fisher: torch.Tensor,
    matrix: torch.Tensor,
    scale: float,
    batch_size: int,
    progress: bool,
) -> tuple[list[int], list[float]]:
    """Picks up to twice the batch, and what is left of them without those that are missed least."""
    c, d = rows.shape[1], inputs.widths[0]
    picks: list[int] = []
    drops: list[float] = []
    taken = torch.zeros(rows.count, dtype=torch.bool, device=rows.device)
    wanted = min(2 * batch_size, rows.count)
    with tqdm(total=2 * wanted - batch_size, desc="BAIT", unit="step", disable=not progress) as bar:
        for _ in range(wanted):
            inverse = _inverse(matrix)
            change = inverse @ fisher @ inverse
            gains = torch.cat(
                [_traces(p, h, inverse, change, scale, 1.0) for p, h in _sides(rows, inputs, _NUMBERS // (c * c * d))]
            )
            pick = int(_largest(gains.masked_fill_(taken, -torch.inf))[0])
            picks.append(pick)
            drops.append(float(gains[pick]))
            taken[pick] = True
            matrix = matrix + _information(rows, inputs, pick) * scale**2
            bar.update()
        while len(picks) > batch_size:
            chosen = torch.tensor(picks, device=rows.device)
            inverse = _inverse(matrix)
            change = inverse @ fisher @ inverse
            losses = _traces(
                rows.gather(chosen, torch.float64), inputs.gather(chosen)[0].double(), inverse, change, scale, -1.0
            )
            worst = int(_largest(-losses)[-1])  # of equals the latest
            matrix = matrix - _information(rows, inputs, picks.pop(worst)) * scale**2
            drops.pop(worst)
            bar.update()
    return picks, drops


def _largest(values: torch.Tensor) -> torch.Tensor:
    """The rows of the largest value, ascending; what rounding sets apart is the same."""
    best = float(values.max())
    if math.isnan(best):
        raise ValueError("regularization must be larger beside these features: float64 comes to NaN")
    return (values >= best - 1e-9 * abs(best)).nonzero().flatten()


def _sides(rows: Probabilities, inputs: Pool, size: int) -> Any:
    """Probabilities and features, so many rows at a time, in float64."""
    for begin in range(0, rows.count, max(1, size)):
        end = min(begin + max(1, size), rows.count)
        yield rows.values(rows.pool.tile(begin, end)[0], torch.float64), inputs.tile(begin, end)[0].double()


def _fisher(rows: Probabilities, inputs: Pool) -> torch.Tensor:
    """Mean Fisher matrix, in contrasts of the classes: of each row ``(diag(p) - p pᵀ) ⊗ h hᵀ``."""
    rows.check()
    c, d = rows.shape[1], inputs.widths[0]
    contrasts = _contrasts(c, rows.device)
    width = contrasts.shape[1] * d
    products = torch.zeros(width, width, dtype=torch.float64, device=rows.device)
    of_class = torch.zeros(c, d, d, dtype=torch.float64, device=rows.device)
    for p, h in _sides(rows, inputs, _NUMBERS // (4 * c * d)):
        weighted = ((p @ contrasts)[:, :, None] * h[:, None, :]).flatten(1)
        products += weighted.T @ weighted
        for y in range(c):
            of_class[y] += h.T @ (h * p[:, y : y + 1])
    diagonal = torch.einsum("yi,yj,yde->idje", contrasts, contrasts, of_class).reshape(width, width)
    return (diagonal - products) / max(1, rows.count)


@functools.lru_cache(maxsize=1)
def _contrasts(classes: int, device: torch.device) -> torch.Tensor:
    """Orthonormal directions [C, C - 1] in which class probabilities can differ: their sum has no information.

    Without it, the regularisation alone would stand in that direction, and its inverse would drown the others.
    """
    ones = torch.ones(classes, 1, dtype=torch.float64, device=device)
    if classes == 1:
        return ones
    rest = torch.eye(classes, dtype=torch.float64, device=device)[:, 1:]
    return torch.linalg.qr(torch.cat([ones, rest], 1)).Q[:, 1:].contiguous()


def _roots(p: torch.Tensor) -> torch.Tensor:
    """A [n, C - 1, C] of which ``A Aᵀ`` is ``diag(p) - p pᵀ`` in contrasts: column y is ``√p_y (e_y - p)``."""
    columns = (torch.eye(p.shape[1], dtype=p.dtype, device=p.device) - p[:, :, None]) * p[:, None, :].sqrt()
    return _contrasts(p.shape[1], p.device).T @ columns


def _traces(
    p: torch.Tensor, h: torch.Tensor, inverse: torch.Tensor, change: torch.Tensor, scale: float, sign: float
) -> torch.Tensor:
    """``tr(Vᵀ change V (I ± Vᵀ inverse V)⁻¹)`` of each row: what the trace drops by with it, or rises by without."""
    roots = _roots(p) * scale
    c, d = roots.shape[1], h.shape[1]

    def between(matrix: torch.Tensor) -> torch.Tensor:
        """``Vᵀ matrix V`` [n, C, C], for V = A ⊗ h."""
        blocks = matrix.view(c, d, c, d).permute(1, 0, 2, 3).reshape(d, c * c * d)
        inside = ((h @ blocks).view(-1, c * c, d) @ h[:, :, None]).view(-1, c, c)
        return roots.transpose(1, 2) @ inside @ roots

    ones = torch.eye(p.shape[1], dtype=p.dtype, device=p.device)
    # a trace of a product: solve(S, X) has the trace of X S⁻¹
    solved = torch.linalg.solve(ones + sign * between(inverse), between(change))
    return solved.diagonal(dim1=1, dim2=2).sum(1)


def _information(rows: Probabilities, inputs: Pool, row: int) -> torch.Tensor:
    """``V Vᵀ`` of one row."""
    index = torch.tensor([row], device=rows.device)
    roots, h = _roots(rows.gather(index, torch.float64))[0], inputs.gather(index)[0][0].double()
    v = (roots[:, None, :] * h[None, :, None]).flatten(0, 1)
    return v @ v.T


def _inverse(matrix: torch.Tensor) -> torch.Tensor:
    try:
        return torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    except torch.linalg.LinAlgError as error:
        raise ValueError(f"regularization must be larger beside these features: {error}") from error
