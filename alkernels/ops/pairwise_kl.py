"""Pairwise KL divergence: all pairs, reductions of them, or pairs by lists of neighbours."""

from __future__ import annotations

from typing import Any

import torch
from tqdm import tqdm

from alkernels._inputs import (
    Array,
    TopK,
    as_tensor,
    bytes_a_call,
    check_integer,
    check_memory_limit,
    not_compiled,
    operations_a_call,
)
from alkernels._probabilities import Probabilities
from alkernels._streaming import explain_memory
from alkernels.ops.selection import detached, library

# A call of the kernel holds about this many bytes of either side's rows: some 32 a number in the kernel, 24 a gathered
# one.
_BYTES_A_TILE = 32 << 20
# ... but so many rows at least: the logarithms of a tile of q are taken once for each tile of p.
_ROWS_A_TILE = 128
# Beside tiles and the result it takes so many bytes.
_BYTES = 48 << 20
REDUCTIONS = ("mean", "min", "max", "topk")


def pairwise_kl(
    p: Array,
    q: Array,
    *,
    log_input: bool = False,
    neighbors: Any = None,
    gather: str = "q",
    reduce: str | None = None,
    k: int | None = None,
    device: torch.device | str | None = None,
    memory_limit: int | None = None,
    progress: bool = False,
) -> Array | TopK:
    """KL divergences ``KL(p_i || q_j)`` between the rows of two sets of distributions, in nats.

    Parameters
    ----------
    p : Tensor or ndarray of shape (N, C)
        Distributions: float16, bfloat16, float32 or float64, any strides; a ``numpy.memmap``, or a dataset
        in a file that slices by rows (HDF5, Zarr, safetensors, Arrow).
    q : like `p`, shape (M, C)
        Distributions to diverge from.
    log_input : bool, default False
        Both hold natural logarithms of probabilities (``torch.log_softmax``), which keeps what underflows otherwise.
    neighbors : integer array, optional
        Pairs instead of all pairs. With `gather` "q" of shape (N, n): the rows of `q` that each row of `p` is compared
        with. With `gather` "p" of shape (M, n): the rows of `p` that are compared with each row of `q`.
    gather : {"q", "p"}, default "q"
        Which side `neighbors` points into.
    reduce : {"mean", "min", "max", "topk"}, optional
        What is wanted of each row of `p` over all rows of `q`: nothing of size N × M is stored.
    k : int, optional
        With `reduce` "topk": how many of the smallest, ``1 <= k <= M``.
    device : torch.device or str, optional
        A CUDA device to work on arrays in host memory with: copied to it once where they take up to 0.6 of its free
        memory, else streamed at each pass. Results come back to host memory. Default: where arrays are.
    memory_limit : int, optional
        Bytes that the call may take beyond what is in memory already and the result: rows in files are read in tiles
        that fit. Default: a quarter of the free memory.
    progress : bool, default False
        Show a progress bar (tqdm).

    Returns
    -------
    Tensor or ndarray, or TopK
        (N, M); with `neighbors` (N, n) or (M, n); with "mean", "min", "max" (N,). "topk" gives ``values`` (N, k),
        ascending, and ``indices`` (N, k), ties to the lower index. In the wider dtype of the two, at least float32.

    Raises
    ------
    ValueError
        Distributions that do not sum to 1 within 1e-3, negative probabilities, NaN, shapes that disagree, neighbours or
        an option out of range. Nothing is clipped or renormalised.
    TypeError
        Arrays that are not floating-point, an argument of the wrong type.

    Notes
    -----
    ``0 log 0 = 0``, and ``+inf`` where a class has ``q = 0 < p``. All pairs come out of a matrix product of deviations
    from the means, each within 1e-4 of its own value (float64 input: 1e-12): what would lose more to cancellation is
    summed again in float64. Reductions and gathered pairs are float64 sums, and so is what decides among the smallest.
    The mean needs no pairs at all. Memory beyond input and result: 100 MB, for more than 4000 classes 24 kB each.
    Made for up to a few thousand classes: a vocabulary of 50000 takes ten times as long as plain PyTorch.

    Differentiable in both arguments unless reduced, also twice; a class with p = 0 has no share in the gradient.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> p = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    >>> alk.pairwise_kl(p, p)
    tensor([[0.0000,    inf],
            [0.6931, 0.0000]])
    """
    if reduce is not None and reduce not in REDUCTIONS:
        raise ValueError(f"reduce must be one of {', '.join(map(repr, REDUCTIONS))} or None, got {reduce!r}")
    if neighbors is not None and reduce is not None:
        raise ValueError(f"reduce must not be given together with neighbors, got {reduce!r}")
    if (k is not None) != (reduce == "topk"):
        raise ValueError(f"k must be given with reduce='topk', and only then, got k={k!r} and reduce={reduce!r}")
    if gather not in ("q", "p"):
        raise ValueError(f"gather must be 'q' or 'p', got {gather!r}")
    if gather == "p" and neighbors is None:
        raise ValueError("gather must be given with neighbors only, got 'p'")
    learned = any(isinstance(x, torch.Tensor) and x.requires_grad for x in (p, q)) and torch.is_grad_enabled()
    if torch.compiler.is_compiling() or (reduce is None and learned):
        ops = torch.ops.alkernels
        if torch.compiler.is_compiling():
            not_compiled(device=device, memory_limit=memory_limit)
        else:
            if device is not None:
                raise ValueError(f"device must be None where p or q requires a gradient, got {device!r}")
            named = ((p, "p"), (q, "q"))
            p, q = (x if isinstance(x, torch.Tensor) else Probabilities(x, n, 2, log_input).whole for x, n in named)
            neighbors = None if neighbors is None else as_tensor(neighbors, "neighbors", "a matrix of row numbers")
        if neighbors is not None:
            return ops.gathered_kl(p, q, neighbors, log_input=log_input, gather=gather)
        if reduce is None:
            return ops.pairwise_kl(p, q, log_input=log_input)
        p, q = detached(p, q)
        if reduce == "mean":
            return ops.mean_kl(p, q, log_input=log_input)
        top = TopK(*ops.topk_kl(p, q, 1 if k is None else k, largest=reduce == "max", log_input=log_input))
        return top if reduce == "topk" else top.values[:, 0]
    limit = check_memory_limit(memory_limit)
    left, right = _sides(p, q, log_input, device, limit)
    out = left.pool.out
    if neighbors is not None:
        return out(_gathered(left, right, neighbors, gather))
    if reduce is None:
        need = left.count * right.count * left.dtype.itemsize
        with explain_memory(left.pool, "all pairs", need=need, fewer=None):
            return out(_full(left, right, progress))
    if right.count == 0:
        raise ValueError(f"q must have at least one row with reduce={reduce!r}, got none")
    if reduce == "mean":
        return out(_mean(left, right))
    if k is not None:
        k = check_integer(k, "k")
        if not 1 <= k <= right.count:
            raise ValueError(f"k must be between 1 and {right.count} (rows of q), got {k}")
    with explain_memory(left.pool, f"{left.count} lists", fewer=None if k is None else "k"):
        values, indices = _top(left, right, 1 if k is None else k, reduce == "max", progress)
    return TopK(out(values), out(indices)) if reduce == "topk" else out(values[:, 0])


def _sides(
    p: Array, q: Array, log_input: bool, device: torch.device | str | None = None, limit: int | None = None
) -> tuple[Probabilities, Probabilities]:
    left = Probabilities(p, "p", 2, log_input, device=device)
    right = Probabilities(q, "q", 2, log_input, device=device)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"q must have as many classes as p, got {right.shape[1]} and {left.shape[1]}")
    if left.device != right.device:
        raise ValueError(f"q must be on the device of p ({left.device}), got {right.device}")
    for side in (left, right):
        side.limit_memory(limit, _BYTES, 2)
        side.check()
    left.dtype = right.dtype = torch.promote_types(left.dtype, right.dtype)
    return left, right


def _walk(left: Probabilities, right: Probabilities, progress: bool):  # type: ignore[no-untyped-def]
    """Tiles of p and q, as they are stored, that make one call of a kernel."""
    c = left.shape[1]
    at_once = min(bytes_a_call(left.device, _BYTES_A_TILE), 2 * left.pool.tile_bytes)
    size = max(_ROWS_A_TILE, at_once // (32 * c))
    some = min(size, max(64, int(operations_a_call(left.device) / (2.0 * c * max(1, min(size, right.count))))))
    total = left.count * right.count
    with tqdm(total=total, desc="pairwise KL", unit="pair", unit_scale=True, disable=not progress) as bar:
        for begin, end, (rows,) in left.pool.tiles(some):
            for first, last, (columns,) in right.pool.tiles(size):
                yield begin, end, rows, first, last, columns
                bar.update((end - begin) * (last - first))


def _full(left: Probabilities, right: Probabilities, progress: bool) -> torch.Tensor:
    out = torch.empty(left.count, right.count, dtype=left.dtype, device=left.device)
    for begin, end, rows, first, last, columns in _walk(left, right, progress):
        torch.ops.alkernels.divergences(rows, columns, left.log_input, out[begin:end, first:last])
    return out


def _top(
    left: Probabilities, right: Probabilities, k: int, largest: bool, progress: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.full((left.count, k), torch.inf, dtype=torch.float64, device=left.device)
    indices = torch.full((left.count, k), -1, dtype=torch.int64, device=left.device)
    for begin, end, rows, first, _, columns in _walk(left, right, progress):
        torch.ops.alkernels.nearest_divergences(
            rows, columns, left.log_input, largest, first, values[begin:end], indices[begin:end]
        )
    return (values.neg_() if largest else values).to(left.dtype), indices


def _cross(p: torch.Tensor, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """``Σ_c p (log p - log q)``, float64: 0 log 0 = 0, and infinite where q rules out what p allows."""
    allowed = log_p > -torch.inf  # of a logarithm too low for p to be more than 0, too
    terms = torch.where(allowed, p * (log_p - log_q), 0.0)
    return torch.where(allowed & (log_q == -torch.inf), torch.inf, terms).sum(-1)


def _mean(left: Probabilities, right: Probabilities) -> torch.Tensor:
    """The divergence from the mean of log q, which need not sum to 1."""
    total = torch.zeros(left.shape[1], dtype=torch.float64, device=left.device)
    for _, _, (columns,) in right.pool.tiles(right.rows_a_tile):
        total += right.logarithms(columns).sum(0)
    mean = total / right.count
    parts = [
        _cross(left.values(rows, torch.float64), left.logarithms(rows), mean)
        for _, _, (rows,) in left.pool.tiles(left.rows_a_tile)
    ]
    return torch.cat([*parts, total.new_empty(0)]).to(left.dtype)


def _gathered(left: Probabilities, right: Probabilities, neighbors: Any, gather: str) -> torch.Tensor:
    own, other = (left, right) if gather == "q" else (right, left)
    index = check_neighbors(neighbors, own, other)
    out = torch.empty(index.shape, dtype=left.dtype, device=left.device)
    pairs = max(
        1, bytes_a_call(left.device, _BYTES_A_TILE) // (48 * left.shape[1])
    )  # a few float64 copies of both rows
    columns = max(1, min(pairs, index.shape[1]))
    for begin, end, (rows,) in own.pool.tiles(max(1, pairs // columns)):
        for some in range(0, index.shape[1], columns):
            which = index[begin:end, some : some + columns]
            found = other.pool.gather(which.flatten())[0].unflatten(0, which.shape)
            a, b = (rows[:, None], found) if gather == "q" else (found, rows[:, None])
            out[begin:end, some : some + columns] = _cross(
                left.values(a, torch.float64), left.logarithms(a), right.logarithms(b)
            )
    return out


def check_neighbors(neighbors: Any, own: Probabilities, other: Probabilities) -> torch.Tensor:
    index = as_tensor(neighbors, "neighbors", "a matrix of row numbers").to(own.device)
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(f"neighbors must hold row numbers, got dtype {index.dtype}")
    if index.dim() != 2 or len(index) != own.count:
        raise ValueError(
            f"neighbors must have a row for each row of {own.name}, shape ({own.count}, n), got {tuple(index.shape)}"
        )
    outside = (index < 0) | (index >= other.count)
    if outside.any():
        where = outside.nonzero()[0].tolist()
        raise ValueError(
            f"neighbors must be rows of {other.name}, between 0 and {other.count - 1}, got "
            f"{int(index[tuple(where)])} in row {where[0]}"
        )
    return index.long()


# ---- what torch sees ----


@torch.library.impl(library, "pairwise_kl", "CompositeExplicitAutograd")
def _(p, q, *, log_input=False):  # type: ignore[no-untyped-def]
    return _full(*_sides(p, q, log_input), False)


@torch.library.impl(library, "gathered_kl", "CompositeExplicitAutograd")
def _(p, q, neighbors, *, log_input=False, gather="q"):  # type: ignore[no-untyped-def]
    return _gathered(*_sides(p, q, log_input), neighbors, gather)


@torch.library.impl(library, "mean_kl", "CompositeExplicitAutograd")
def _(p, q, *, log_input=False):  # type: ignore[no-untyped-def]
    return pairwise_kl(p, q, log_input=log_input, reduce="mean")


@torch.library.impl(library, "topk_kl", "CompositeExplicitAutograd")
def _(p, q, k, *, largest=False, log_input=False):  # type: ignore[no-untyped-def]
    left, right = _sides(p, q, log_input)
    if not 1 <= k <= right.count:
        raise ValueError(f"k must be between 1 and {right.count} (rows of q), got {k}")
    return _top(left, right, k, largest, False)


def _save(ctx, inputs, keyword_only_inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)
    ctx.log_input, ctx.gather = keyword_only_inputs["log_input"], keyword_only_inputs.get("gather")


def _logs(x: torch.Tensor, log_input: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and their logarithms, 0 for both where a probability is 0; differentiable."""
    if log_input:
        return x.exp(), torch.where(x == -torch.inf, 0.0, x)
    return x, torch.where(x > 0, torch.where(x > 0, x, 1.0).log(), 0.0)


def _to_p(p: torch.Tensor, log_p: torch.Tensor, total: torch.Tensor, share: torch.Tensor, log_input: bool):  # type: ignore[no-untyped-def]
    """The gradient in p: ``total`` times (log p + 1), less ``share``, the sum of log q weighted by the gradients."""
    slope = torch.where(p > 0, total * (log_p + 1) - share, 0.0)
    return slope * p if log_input else slope


def _to_q(q: torch.Tensor, share: torch.Tensor, log_input: bool) -> torch.Tensor:
    """The gradient in q: ``share`` is the sum of p weighted by the gradients."""
    return -share if log_input else -share / torch.where(share == 0, 1.0, q)


def _full_backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, y = ctx.saved_tensors
    # grad has the result's dtype, the wider of the two and at least float32
    (p, log_p), (q, log_q) = (_logs(z.to(grad.dtype), ctx.log_input) for z in (x, y))
    to_p = _to_p(p, log_p, grad.sum(1, keepdim=True), grad @ log_q, ctx.log_input)
    to_q = _to_q(q, grad.t() @ p, ctx.log_input)
    return to_p.to(x.dtype), to_q.to(y.dtype)


def _gathered_backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, y, neighbors = ctx.saved_tensors
    neighbors = neighbors.long()
    (p, log_p), (q, log_q) = (_logs(z.to(grad.dtype), ctx.log_input) for z in (x, y))
    total, of_p, of_q = torch.zeros_like(p[:, :1]), torch.zeros_like(p), torch.zeros_like(q)
    for which, g in zip(neighbors.unbind(1), grad.unbind(1), strict=True):  # a column of pairs at a time
        g = g[:, None]
        if ctx.gather == "q":
            total, of_p, of_q = total + g, of_p + g * log_q[which], of_q.index_add(0, which, g * p)
        else:
            total, of_p = total.index_add(0, which, g), of_p.index_add(0, which, g * log_q)
            of_q = of_q + g * p[which]
    to_p, to_q = _to_p(p, log_p, total, of_p, ctx.log_input), _to_q(q, of_q, ctx.log_input)
    return to_p.to(x.dtype), to_q.to(y.dtype), None


torch.library.register_autograd("alkernels::pairwise_kl", _full_backward, setup_context=_save)
torch.library.register_autograd("alkernels::gathered_kl", _gathered_backward, setup_context=_save)


def _fake_pair(p: torch.Tensor, q: torch.Tensor) -> torch.dtype:
    torch._check(p.dim() == 2 and q.dim() == 2, lambda: "p and q must be two-dimensional")
    torch._check(p.shape[1] == q.shape[1], lambda: "q must have as many classes as p")
    return torch.promote_types(torch.promote_types(p.dtype, q.dtype), torch.float32)


@torch.library.register_fake("alkernels::pairwise_kl")
def _(p, q, *, log_input=False):  # type: ignore[no-untyped-def]
    return p.new_empty((p.shape[0], q.shape[0]), dtype=_fake_pair(p, q))


@torch.library.register_fake("alkernels::gathered_kl")
def _(p, q, neighbors, *, log_input=False, gather="q"):  # type: ignore[no-untyped-def]
    torch._check(neighbors.dim() == 2 and neighbors.shape[0] == (p if gather == "q" else q).shape[0])
    return p.new_empty(neighbors.shape, dtype=_fake_pair(p, q))


@torch.library.register_fake("alkernels::mean_kl")
def _(p, q, *, log_input=False):  # type: ignore[no-untyped-def]
    return p.new_empty(p.shape[0], dtype=_fake_pair(p, q))


@torch.library.register_fake("alkernels::topk_kl")
def _(p, q, k, *, largest=False, log_input=False):  # type: ignore[no-untyped-def]
    torch._check(k >= 1, lambda: f"k must be at least 1, got {k}")
    torch._check(k <= q.shape[0], lambda: f"k must be at most {q.shape[0]} (rows of q), got {k}")
    shape = (p.shape[0], k)
    return p.new_empty(shape, dtype=_fake_pair(p, q)), p.new_empty(shape, dtype=torch.int64)


@torch.library.register_fake("alkernels::divergences")
def _(p, q, log_input, out):  # type: ignore[no-untyped-def]
    torch._check(p.dim() == 2 and q.dim() == 2 and p.shape[1] == q.shape[1])
    torch._check(out.shape == (p.shape[0], q.shape[0]))


@torch.library.register_fake("alkernels::nearest_divergences")
def _(p, q, log_input, largest, first_row, values, indices):  # type: ignore[no-untyped-def]
    torch._check(p.dim() == 2 and q.dim() == 2 and p.shape[1] == q.shape[1])
    torch._check(values.shape == indices.shape)
