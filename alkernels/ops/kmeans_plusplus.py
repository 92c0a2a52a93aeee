"""k-means++ (D²) seeding, exact in distribution, in blocks."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from alkernels._checkpoint import Checkpoint, checkpointed
from alkernels._inputs import (
    CoverSelection,
    Pool,
    RowsLike,
    Selection,
    check_k,
    check_labeled,
    check_memory_limit,
    check_metric,
    check_pool,
    check_start,
    not_compiled,
)
from alkernels._streaming import explain_memory
from alkernels.ops.running_distances import RunningDistances, memory_needed, pair, read
from alkernels.ops.selection import (
    Run,
    compiled,
    fake_selection,
    finished,
    first_centers,
    library,
    op_inputs,
    result,
    to_save,
)


def kmeans_plusplus(
    features: RowsLike,
    k: int,
    *,
    labeled: RowsLike | None = None,
    start: int | None = None,
    generator: torch.Generator | int | None = None,
    return_distances: bool = False,
    device: torch.device | str | None = None,
    memory_limit: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> Selection | CoverSelection:
    """Draw `k` rows, each with probability proportional to its squared distance to the nearest centre so far.

    The D² law of k-means++ without local trials, exact in distribution: proposals are drawn from stale weights for a
    whole block of picks and accepted by rejection, so that the pool is walked a few times instead of once a pick.

    Parameters
    ----------
    features : Tensor or ndarray of shape (N, D), or a pair of shapes (N, C) and (N, D)
        The pool: float16, bfloat16, float32 or float64, any strides; a ``numpy.memmap``, or a dataset in a file that
        slices by rows (HDF5, Zarr, safetensors, Arrow). A pair ``(a, h)`` is
        the outer products ``a[i] ⊗ h[i]``, which are never built (BADGE's gradient embeddings).
    k : int
        How many rows to draw, ``0 <= k <= N``.
    labeled : like `features`, shape (L, D), optional
        Rows that are centres already.
    start : int, optional
        The first pick. By default one drawn by the D² law from `labeled`; without labelled rows, drawn uniformly.
    generator : torch.Generator or int, optional
        Makes all draws. Default: torch's global generator.
    return_distances : bool, default False
        Also return each row's squared distance to its nearest centre, and which centre that is.
    device : torch.device or str, optional
        A CUDA device to work on features in host memory with: copied to it once where they take up to 0.6 of its free
        memory, else streamed at each pass. Results come back to host memory. Default: where features are.
    memory_limit : int, optional
        Bytes that the call may take beyond what is in memory already: rows in files are read in tiles that fit.
        Default: a quarter of the free memory.
    checkpoint : str or Path, optional
        A file that the state is saved to after blocks of picks, and taken from where it exists: a run that was killed
        at any moment goes on to the picks it would have made. Ctrl-C saves before it ends; a second one ends at once.
        Features are walked once more, for a fingerprint. The file stays behind.
    progress : bool, default False
        Show a progress bar (tqdm).

    Returns
    -------
    Selection or CoverSelection
        ``indices`` (k,) int64, distinct, in the order drawn; ``scores`` (k,), the squared distance to the nearest
        centre when drawn, ``inf`` for the first of an empty start. With `return_distances` also ``distances`` (N,),
        squared like the scores (their sum is the k-means cost), and ``nearest`` (N,). Distances are float64.
        Tensors for tensors, NumPy for NumPy.

    Raises
    ------
    ValueError
        `k` or `start` out of range, shapes that disagree, NaN or infinity.
    TypeError
        A pool that is not floating-point, an argument of the wrong type.

    Notes
    -----
    Weights are within 1e-4 of the mean weight of their float64 values. When every row coincides with a centre, unpicked
    rows follow in index order with score 0. Memory beyond the pool ``O(N + m D + m²)``, ``m <= 1024``. Not
    differentiable: features are detached.

    References
    ----------
    .. [1] D. Arthur and S. Vassilvitskii. k-means++: the advantages of careful seeding. SODA 2007.
    .. [2] J. T. Ash et al. Deep batch active learning by diverse, uncertain gradient lower bounds. ICLR 2020.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> features = torch.tensor([[0.0], [0.0], [0.0], [9.0]])
    >>> alk.kmeans_plusplus(features, 2, start=0).indices
    tensor([0, 3])
    """
    if torch.compiler.is_compiling():
        not_compiled(device=device, memory_limit=memory_limit, checkpoint=checkpoint)
        if not isinstance(generator, int):
            raise ValueError("generator must be an integer seed inside torch.compile")
        return compiled("kmeans_plusplus", features, k, labeled, start, generator, return_distances)
    pool = check_pool(features, device)
    pool.limit_memory(check_memory_limit(memory_limit), memory_needed(pool))
    k, start, rows = check_k(k, pool), check_start(start, pool), check_labeled(labeled, pool)
    with explain_memory(pool, f"{k} draws"):
        run = select(pool, k, rows, start, generator, track=return_distances, checkpoint=checkpoint, progress=progress)
        return result(run, to_weight, return_distances)


def to_weight(squared: torch.Tensor) -> torch.Tensor:
    """The unit of the scores: squared distances as they are."""
    return squared


def select(
    pool: Pool,
    k: int,
    labeled: Pool | None,
    start: int | None,
    generator: torch.Generator | int | None,
    *,
    track: bool,
    checkpoint: str | Path | None = None,
    progress: bool,
) -> Run:
    """The selection, saved where that is wanted."""
    arrays = {"features": pool, "labeled": labeled}
    settings = {"k": k, "start": start, "return_distances": track}
    with checkpointed(checkpoint, "kmeans_plusplus", arrays, generator, **settings) as saved:
        return _select(pool, k, labeled, start, saved, track, progress)


def _select(
    pool: Pool, k: int, labeled: Pool | None, start: int | None, saved: Checkpoint, track: bool, progress: bool
) -> Run:
    """The blocked rule. One pass of the loop: a block of proposals from stale weights, then the pool follows."""
    uniform = torch.Generator().manual_seed(saved.seed)
    state = RunningDistances(pool, check_metric("euclidean", pool), track)
    picks, squared = first_centers(state, k, labeled, start, uniform, saved)
    made = sum(map(len, picks))
    block = saved.state["block"] if saved.state else 32
    with tqdm(total=k, initial=made, desc="k-means++", unit="pick", disable=not progress) as bar:
        while made < k:
            # About twice as many proposals as the last block accepted, and no more than the rest may need.
            m = min(max(64, 2 * block), state.largest_block, 2 * (k - made) + 16)
            draws = torch.rand(2, m, dtype=torch.float64, generator=uniform).to(pool.device)
            while True:
                # weights of ten times the mean are reliable: none is off by more than 1e-4 of the mean
                level, doubtful = state.next_level(10 * state.d2.clamp(min=0).mean().view(1))
                if not pool.remote and state.settle(*read(level, doubtful)):
                    continue
                rows, weight = torch.ops.alkernels.draw_by_weight(state.d2, draws[0])
                rows = rows.clamp_(min=0)  # of no weight at all: none is accepted
                positions, values = torch.ops.alkernels.kmeans_plusplus_block(
                    *pair(pool.gather(rows)),
                    state.shift,
                    state.metric,
                    state.d2[rows].clamp_(min=0),
                    rows,
                    draws[1],
                    level,
                    k - made,
                )
                # the one thing that the host waits for (see k_center_greedy)
                count = (positions >= 0).sum(dtype=torch.float64, dim=0, keepdim=True)
                *known, total, accepted = read(level, doubtful, weight, count)
                if not state.settle(*known):
                    break
            if not math.isfinite(total):
                raise ValueError("features must have squared distances whose sum float64 can hold, got an overflow")
            if total == 0:  # every row left coincides with a centre
                picks.append((state.d2 >= 0).nonzero().flatten()[: k - made])
                squared.append(torch.zeros(len(picks[-1]), dtype=torch.float64, device=pool.device))
                state.add_picks(picks[-1], lower=False)
                bar.update(len(picks[-1]))
                break
            block = int(accepted)
            picks.append(rows[positions[:block]])
            squared.append(values[:block])
            made += block
            state.add_picks(picks[-1], lower=made < k or track)
            bar.update(block)
            saved.after_block(partial(to_save, state, squared, uniform, block), last=made == k)
    return finished(picks, squared, state)


@torch.library.impl(library, "kmeans_plusplus", "CompositeExplicitAutograd")
def _(features, features2, k, *, labeled=None, labeled2=None, start=-1, seed=0):  # type: ignore[no-untyped-def]
    pool, k, rows, first = op_inputs(features, features2, k, labeled, labeled2, start)
    run = select(pool, k, rows, first, seed, track=True, progress=False)
    return tuple(result(run, to_weight, True))


@torch.library.register_fake("alkernels::kmeans_plusplus")
def _(features, features2, k, *, labeled=None, labeled2=None, start=-1, seed=0):  # type: ignore[no-untyped-def]
    return fake_selection(features, k)


@torch.library.register_fake("alkernels::draw_by_weight")
def _(d2, uniforms):  # type: ignore[no-untyped-def]
    return torch.empty_like(uniforms, dtype=torch.int64), d2.new_empty(1)


@torch.library.register_fake("alkernels::kmeans_plusplus_block")
def _(rows, rows2, shift, metric, values, indices, uniforms, level, limit):  # type: ignore[no-untyped-def]
    return torch.empty_like(indices), torch.empty_like(values)
