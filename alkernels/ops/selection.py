"""What k-center greedy and k-means++ share around their rules: first centres, results, and the ops torch sees.

Each is one opaque op for torch.compile, registered here in Python over the steps that csrc implements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from alkernels._checkpoint import Checkpoint
from alkernels._inputs import CoverSelection, Pool, Selection, check_k, check_labeled, check_pool, check_start
from alkernels.ops.running_distances import RunningDistances

library = torch.library.Library("alkernels", "IMPL")


@dataclass
class Run:
    """A finished selection: positions and squared distances of the picks, and the state behind them."""

    indices: torch.Tensor
    squared: torch.Tensor
    state: RunningDistances


def result(
    run: Run, unit: Callable[[torch.Tensor], torch.Tensor], return_distances: bool
) -> Selection | CoverSelection:
    """What the user gets: squared distances through `unit` (in place), arrays of the pool's kind."""
    pool, state = run.state.pool, run.state
    indices, scores = pool.out(run.indices), pool.out(unit(run.squared))
    if not return_distances:
        return Selection(indices, scores)
    assert state.nearest is not None
    return CoverSelection(indices, scores, pool.out(unit(state.distances())), pool.out(state.nearest))


def first_centers(
    state: RunningDistances,
    k: int,
    labeled: Pool | None,
    start: int | None,
    uniform: torch.Generator,
    saved: Checkpoint,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Lowers the distances by what is given, the labelled rows and the start (drawn by `uniform` where nothing is).

    Or goes on from where a checkpoint was saved.
    """
    if saved.state is not None:
        state.restore(saved.state, labeled)
        uniform.set_state(saved.state["uniform"])
        return list(state.picks), [saved.state["squared"].to(state.pool.device)]
    if labeled is not None:
        state.add_labeled(labeled)
    elif start is None and k > 0:
        start = int(torch.randint(state.pool.count, (), generator=uniform))
    if start is None or k == 0:
        if state.passes == 0:
            state.pool.check_finite()
        return [], []
    first = torch.tensor([start], device=state.pool.device)
    if labeled is not None:
        state.measure_again(first, 0.0)  # it may lie closer to a labelled row than the level tells apart
    score = state.d2[first]
    state.add_picks(first)
    return [first], [score]


def to_save(
    state: RunningDistances, squared: list[torch.Tensor], uniform: torch.Generator, block: int
) -> dict[str, Any]:
    """A checkpoint that the next block goes on from."""
    return {**state.saved(), "squared": torch.cat(squared), "uniform": uniform.get_state(), "block": block}


def finished(picks: list[torch.Tensor], squared: list[torch.Tensor], state: RunningDistances) -> Run:
    """The run that some blocks of picks make."""
    device = state.pool.device
    indices = torch.cat([torch.empty(0, dtype=torch.int64, device=device), *picks])
    return Run(indices, torch.cat([torch.empty(0, dtype=torch.float64, device=device), *squared]), state)


def detached(*arrays: Any) -> tuple[Any, ...]:
    """What an op that is not differentiable is handed inside torch.compile."""
    return tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in arrays)


def compiled(  # type: ignore[no-untyped-def]
    name: str, features, k, labeled, start, generator, return_distances, **metric
) -> Selection | CoverSelection:
    """The op call that torch.compile traces: no check here depends on data."""
    if labeled is None and start is None and not isinstance(generator, int):
        raise ValueError(
            "generator must be an integer seed inside torch.compile, where nothing else decides the first pick"
        )
    if start is not None and start < 0:
        raise ValueError(f"start must be a row of features, got {start}")
    first, second = features if isinstance(features, (tuple, list)) else (features, None)
    known, known2 = labeled if isinstance(labeled, (tuple, list)) else (labeled, None)
    first, second, known, known2 = detached(first, second, known, known2)
    out = getattr(torch.ops.alkernels, name)(
        first,
        second,
        k,
        labeled=known,
        labeled2=known2,
        start=-1 if start is None else start,
        seed=generator if isinstance(generator, int) else 0,
        **metric,
    )
    return CoverSelection(*out) if return_distances else Selection(out[0], out[1])


def op_inputs(features, features2, k, labeled, labeled2, start):  # type: ignore[no-untyped-def]
    """The op's flat arguments, checked."""
    pool = check_pool(features if features2 is None else (features, features2))
    known = None if labeled is None else labeled if labeled2 is None else (labeled, labeled2)
    return pool, check_k(k, pool), check_labeled(known, pool), check_start(None if start < 0 else start, pool)


def fake_selection(features, k):  # type: ignore[no-untyped-def]
    torch._check(features.dim() == 2, lambda: f"features must be two-dimensional, got {features.dim()}")
    torch._check(k >= 0, lambda: f"k must not be negative, got {k}")
    torch._check(k <= features.shape[0], lambda: f"k must be at most {features.shape[0]} (rows of features), got {k}")
    n = features.shape[0]
    return (
        features.new_empty(k, dtype=torch.int64),
        features.new_empty(k, dtype=torch.float64),
        features.new_empty(n, dtype=torch.float64),
        features.new_empty(n, dtype=torch.int64),
    )
