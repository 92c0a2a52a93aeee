"""k-center greedy (farthest-first traversal), exact, in blocks."""

from __future__ import annotations

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
from alkernels._probabilities import Probabilities
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

METRICS = ("euclidean", "cosine", "symmetric_kl")


def k_center_greedy(
    features: RowsLike,
    k: int,
    *,
    labeled: RowsLike | None = None,
    start: int | None = None,
    metric: str = "euclidean",
    generator: torch.Generator | int | None = None,
    return_distances: bool = False,
    device: torch.device | str | None = None,
    memory_limit: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> Selection | CoverSelection:
    """Pick `k` rows, each the farthest from the labelled set and all earlier picks.

    Farthest-first traversal, the greedy 2-approximation of the k-center problem, known in active learning as core-set
    selection. The picks are those of the sequential rule, ties to the lowest index; the pool is walked once for a block
    of picks instead of once for each.

    Parameters
    ----------
    features : Tensor or ndarray of shape (N, D), or a pair of shapes (N, C) and (N, D)
        The pool: float16, bfloat16, float32 or float64, any strides; a ``numpy.memmap``, or a dataset in a file that
        slices by rows (HDF5, Zarr, safetensors, Arrow). A pair ``(a, h)`` is
        the outer products ``a[i] ⊗ h[i]``, which are never built.
    k : int
        How many rows to pick, ``0 <= k <= N``.
    labeled : like `features`, shape (L, D), optional
        Rows that are centres already.
    start : int, optional
        The first pick. By default the row farthest from `labeled`; without labelled rows, one drawn by `generator`.
    metric : {"euclidean", "cosine", "symmetric_kl"}, default "euclidean"
        ``cosine`` is ``1 - cos``; a row of zeros is at distance 1 from all others. ``symmetric_kl``, of rows that are
        distributions, is ``(KL(p || q) + KL(q || p)) / 2`` in nats, as contextual diversity has it; infinite where one
        rules out a class that the other allows. A pair takes ``euclidean`` only.
    generator : torch.Generator or int, optional
        Draws the first pick where neither `labeled` nor `start` decides it. Default: torch's global generator.
    return_distances : bool, default False
        Also return each row's distance to its nearest centre, and which centre that is.
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
        ``indices`` (k,) int64, distinct, in the order picked; ``scores`` (k,), the distance to the nearest centre when
        picked, non-increasing after `start`, ``inf`` for the first of an empty start. With `return_distances` also
        ``distances`` (N,), whose maximum is the cover radius, and ``nearest`` (N,), -1 where all centres are infinitely
        far. Distances are float64. Tensors for tensors, NumPy for NumPy.

    Raises
    ------
    ValueError
        `k`, `start` or `metric` out of range, shapes that disagree, NaN or infinity; for ``symmetric_kl`` rows that do
        not sum to 1 within 1e-3 or hold negative numbers.
    TypeError
        A pool that is not floating-point, an argument of the wrong type.

    Notes
    -----
    Each pick's true distance is at least ``1 - 1e-5`` of the largest at that step; on data whose products are exact in
    float32 (small integers) the picks are those of the sequential rule. About ``2 N D k`` operations in a few dozen
    passes (four times that for ``symmetric_kl``, which is computed in float64); memory beyond the pool
    ``O(N + m D + m²)``, ``m <= 1024``. Not differentiable: features are detached.

    References
    ----------
    .. [1] T. F. Gonzalez. Clustering to minimize the maximum intercluster distance. Theor. Comput. Sci. 38, 1985.
    .. [2] O. Sener and S. Savarese. Active learning for convolutional neural networks: a core-set approach. ICLR 2018.
    .. [3] S. Agarwal, H. Arora, S. Anand, C. Arora. Contextual diversity for active learning. ECCV 2020.

    Examples
    --------
    >>> import torch, alkernels as alk
    >>> features = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
    >>> alk.k_center_greedy(features, 3, start=0)
    Selection(indices=tensor([0, 3, 1]), scores=tensor([inf, 6., 1.]))
    """
    if torch.compiler.is_compiling():
        not_compiled(device=device, memory_limit=memory_limit, checkpoint=checkpoint)
        return compiled("k_center_greedy", features, k, labeled, start, generator, return_distances, metric=metric)
    pool = check_pool(features, device)
    pool.limit_memory(check_memory_limit(memory_limit), memory_needed(pool))
    metric = check_metric(metric, pool, METRICS)
    k, start, rows = check_k(k, pool), check_start(start, pool), check_labeled(labeled, pool)
    with explain_memory(pool, f"{k} picks"):
        run = select(
            pool, k, rows, start, metric, generator, track=return_distances, checkpoint=checkpoint, progress=progress
        )
        return result(run, lambda squared: to_distance(squared, metric), return_distances)


def to_distance(squared: torch.Tensor, metric: str) -> torch.Tensor:
    """Squared distances (of rows of length one for cosine, so 2 - 2 cos) in the unit of the scores; in place.

    Symmetric KL stands where squared distances do, and is its own unit.
    """
    if metric == "symmetric_kl":
        return squared
    return squared.div_(2) if metric == "cosine" else squared.sqrt_()


def select(
    pool: Pool,
    k: int,
    labeled: Pool | None,
    start: int | None,
    metric: str,
    generator: torch.Generator | int | None,
    *,
    track: bool,
    checkpoint: str | Path | None = None,
    progress: bool,
) -> Run:
    """The selection, saved where that is wanted."""
    drawn = generator if labeled is None and start is None else 0
    arrays = {"features": pool, "labeled": labeled}
    settings = {"k": k, "start": start, "metric": metric, "return_distances": track}
    with checkpointed(checkpoint, "k_center_greedy", arrays, drawn, **settings) as saved:
        return _select(pool, k, labeled, start, metric, saved, track, progress)


def _select(
    pool: Pool,
    k: int,
    labeled: Pool | None,
    start: int | None,
    metric: str,
    saved: Checkpoint,
    track: bool,
    progress: bool,
) -> Run:
    """The blocked rule. One pass of the loop: the m farthest rows play it out among themselves, the pool follows."""
    if metric == "symmetric_kl":
        for rows in (pool, labeled):
            if rows is not None:
                Probabilities(rows, rows.name, 2, False).check()
    uniform = torch.Generator().manual_seed(saved.seed)
    state = RunningDistances(pool, metric, track)
    picks, squared = first_centers(state, k, labeled, start, uniform, saved)
    made = sum(map(len, picks))
    block = saved.state["block"] if saved.state else 16
    with tqdm(total=k, initial=made, desc="k-center greedy", unit="pick", disable=not progress) as bar:
        while made < k:
            m = min(state.candidates(block), pool.count - made)
            while True:
                values, rows = torch.ops.alkernels.top_candidates(state.d2, min(m + 1, pool.count))
                # of the rows outside; -1: all outside are picked
                bound = values[m:] if len(values) > m else values.new_full((1,), -1.0)
                values, rows = values[:m], rows[:m]
                level, doubtful = state.next_level(torch.maximum(bound, values[:1] / 4))
                if not pool.remote and state.settle(*read(level, doubtful)):
                    continue
                positions, scores = torch.ops.alkernels.k_center_block(
                    *pair(pool.gather(rows)), state.shift, state.metric, values, rows, bound, level, k - made
                )
                # the one thing that the host waits for: a GPU has played the block in the meantime, for nothing in the
                # few cases where rows must be measured first
                *known, count = read(level, doubtful, (positions >= 0).sum(dtype=torch.float64, dim=0, keepdim=True))
                if not state.settle(*known):
                    break
            block = int(count)
            picks.append(rows[positions[:block]])
            squared.append(scores[:block])
            made += block
            state.add_picks(picks[-1], lower=made < k or track)
            bar.update(block)
            saved.after_block(partial(to_save, state, squared, uniform, block), last=made == k)
    return finished(picks, squared, state)


@torch.library.impl(library, "k_center_greedy", "CompositeExplicitAutograd")
def _(features, features2, k, *, labeled=None, labeled2=None, start=-1, metric="euclidean", seed=0):  # type: ignore[no-untyped-def]
    pool, k, rows, first = op_inputs(features, features2, k, labeled, labeled2, start)
    metric = check_metric(metric, pool, METRICS)
    run = select(pool, k, rows, first, metric, seed, track=True, progress=False)
    return tuple(result(run, lambda squared: to_distance(squared, metric), True))


@torch.library.register_fake("alkernels::k_center_greedy")
def _(features, features2, k, *, labeled=None, labeled2=None, start=-1, metric="euclidean", seed=0):  # type: ignore[no-untyped-def]
    return fake_selection(features, k)


@torch.library.register_fake("alkernels::top_candidates")
def _(d2, m):  # type: ignore[no-untyped-def]
    torch._check(m >= 1)
    torch._check(m <= d2.shape[0])
    return d2.new_empty(m), d2.new_empty(m, dtype=torch.int64)


@torch.library.register_fake("alkernels::k_center_block")
def _(rows, rows2, shift, metric, values, indices, bound, level, limit):  # type: ignore[no-untyped-def]
    return torch.empty_like(indices), torch.empty_like(values)
