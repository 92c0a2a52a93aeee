"""``alkernels select --distributed``: each rank works on its part of the files, under torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from alkernels._sources import RowsOf, shape_of
from alkernels._warnings import warn_user
from alkernels.distributed.batchbald import batchbald
from alkernels.distributed.greedy_coverage import greedy_coverage
from alkernels.distributed.k_center_greedy import k_center_greedy
from alkernels.distributed.kmeans_plusplus import kmeans_plusplus


class Strategy(NamedTuple):
    """What a strategy takes here: its pool, other arrays, options; and what runs it."""

    pool: str
    arrays: tuple[str, ...]
    options: tuple[str, ...]
    run: Callable[..., dict[str, Any]]


def _k_center(shard: Any, b: int, total: int, labeled_features: Any = None, **options: Any) -> dict[str, Any]:
    # the pick after the last is the row farthest from all of them
    more = min(b + 1, total)
    picked = k_center_greedy(shard, more, labeled=labeled_features, **options)
    radius = float(picked.scores[b]) if more > b else 0.0
    return {"indices": picked.indices[:b], "scores": picked.scores[:b], "cover_radius": radius}


def _kmeans(shard: Any, b: int, total: int, labeled_features: Any = None, **options: Any) -> dict[str, Any]:
    return _fields(kmeans_plusplus(shard, b, labeled=labeled_features, **options))


def _batchbald(shard: Any, b: int, total: int, **options: Any) -> dict[str, Any]:
    return _fields(batchbald(shard, b, **options))


def _facility_location(
    shard: Any,
    b: int,
    total: int,
    labeled_features: Any = None,
    scores: Any = None,
    kernel: str = "cosine",
    **options: Any,
) -> dict[str, Any]:
    # cosines count in full, as the strategy has them
    covered = np.full(len(shard), -1.0) if kernel == "cosine" else None
    return _fields(
        greedy_coverage(shard, b, labeled=labeled_features, weights=scores, covered=covered, kernel=kernel, **options)
    )


def _fields(picked: Any) -> dict[str, Any]:
    return dict(picked._asdict())


STRATEGIES = {
    "k_center_greedy": Strategy("features", ("labeled_features",), ("start", "metric"), _k_center),
    "kmeans_plusplus": Strategy("features", ("labeled_features",), ("start",), _kmeans),
    "batchbald": Strategy("mc_probs", (), ("log_input", "max_configurations", "num_samples"), _batchbald),
    "facility_location": Strategy(
        "features", ("labeled_features", "scores"), ("kernel", "bandwidth"), _facility_location
    ),
}


def check(strategy: str, arrays: Mapping[str, Any], options: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Refuses what does not work across ranks, before any file is read.

    Parameters
    ----------
    strategy : str
    arrays, options : mapping
        By their names.
    others : mapping
        Further flags that were given.
    """
    names = ", ".join(STRATEGIES)
    if strategy not in STRATEGIES:
        raise ValueError(f"--distributed works with the strategies {names}, got {strategy}")
    found = STRATEGIES[strategy]
    given = [flag for flag, value in others.items() if value not in (None, "index")]
    if given:
        raise ValueError(f"{given[0]} must be left out with --distributed")
    if found.pool not in arrays:
        raise ValueError(f"{strategy} needs --{found.pool.replace('_', '-')}")
    for name in arrays:
        if name not in (found.pool, *found.arrays):
            raise ValueError(f"--{name.replace('_', '-')} must be left out, {strategy} has no use for it")
    for name in options:
        if name not in found.options:
            raise ValueError(f"--option must be one of {', '.join(found.options)} for {strategy}, got {name}")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "--distributed must be started by torchrun, as in torchrun --nproc-per-node 4 -m alkernels select "
            f"{strategy} ... --distributed"
        )


def run(
    strategy: str,
    batch_size: int,
    arrays: Mapping[str, Any],
    options: Mapping[str, Any],
    seed: int,
    device: str | None,
    progress: bool,
) -> tuple[dict[str, Any], int, int] | None:
    """The strategy across the ranks that torchrun started, each with its part of the pool.

    Returns
    -------
    tuple or None
        On the first rank the picks by name, as the strategy has them, its seed, which decided, and the number of ranks.
    """
    on_gpu = device is not None and device.partition(":")[0] == "cuda"
    if on_gpu:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        box = [seed]
        dist.broadcast_object_list(box)
        picked = _select(strategy, batch_size, arrays, options, box[0], device, progress)
        return (picked, box[0], dist.get_world_size()) if dist.get_rank() == 0 else None
    except RuntimeError as error:  # a rank is gone, or failed in a way of its own
        raise ConnectionError(str(error)) from error
    except (ValueError, TypeError) as error:
        text = str(error).replace("local_shard", STRATEGIES[strategy].pool)
        raise ValueError(text + (", counted in the rank's part" if " in row " in text else "")) from error
    finally:
        dist.destroy_process_group()


def _part(array: Any) -> Any:
    """This rank's rows, about as many on each."""
    if isinstance(array, tuple):
        return tuple(_part(factor) for factor in array)
    rank, size, count = dist.get_rank(), dist.get_world_size(), shape_of(array)[0]
    begin, end = count * rank // size, count * (rank + 1) // size
    # a slice of a dataset in a file would be read at once
    return (
        array[begin:end] if isinstance(array, (torch.Tensor, np.ndarray)) else RowsOf(array, torch.arange(begin, end))
    )


def _select(
    strategy: str,
    batch_size: int,
    arrays: Mapping[str, Any],
    options: Mapping[str, Any],
    seed: int,
    device: str | None,
    progress: bool,
) -> dict[str, Any]:
    found = STRATEGIES[strategy]
    pool = arrays[found.pool]
    total = shape_of(pool[0] if isinstance(pool, tuple) else pool)[0]
    if batch_size > total and dist.get_rank() == 0:
        warn_user(f"batch_size is {batch_size}, and the pool has {total} rows: all of them are picked")
    shared = {name: arrays[name] for name in found.arrays if name in arrays and name != "scores"}
    if "scores" in arrays:
        shared["scores"] = _part(arrays["scores"])
    if strategy != "facility_location":  # which draws nothing
        shared["generator"] = seed
    return found.run(_part(pool), min(batch_size, total), total, device=device, progress=progress, **shared, **options)
