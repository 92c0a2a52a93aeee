"""BatchBALD over the shards of several ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from alkernels._inputs import Array, Selection
from alkernels._probabilities import Probabilities
from alkernels._warnings import warn_user
from alkernels.distributed._ranks import Ranks
from alkernels.distributed._shards import check_count, check_total, facts_of, first_largest, seed_facts
from alkernels.ops.batchbald import NOTHING, lazily, margin, saturated
from alkernels.ops.joint_entropy import MAX_CONFIGURATIONS, NUM_SAMPLES, Configurations, check_draws, check_positive


def batchbald(
    local_shard: Array | Probabilities,
    batch_size: int,
    *,
    log_input: bool = False,
    max_configurations: int = MAX_CONFIGURATIONS,
    num_samples: int = NUM_SAMPLES,
    generator: torch.Generator | int | None = None,
    group: dist.ProcessGroup | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Selection:
    """Pick a batch whose labels together say the most about the posterior draws, from a pool spread over ranks.

    :func:`alkernels.batchbald` of all shards one behind the other: each rank finds the best of its own candidates, and
    one collective a pick decides among these. Every rank calls it, with its own shard, and gets the same picks.

    Parameters
    ----------
    local_shard : Tensor or ndarray of shape (n, K, C)
        Class probabilities of this rank's rows under K posterior draws; there may be no rows. Draw k must be the same
        weights (dropout masks) for every row on every rank. K, C and dtype are the same on all ranks.
    batch_size : int
        How many rows to pick, at most as many as all shards have together.
    log_input, max_configurations, num_samples
        As in :func:`alkernels.batchbald`; the same on every rank.
    generator : torch.Generator or int, optional
        Draws the samples, in the same state on every rank. Default: torch's global generator on rank 0.
    group : ProcessGroup, optional
        The ranks that hold the pool. Default: all.
    device : torch.device or str, optional
        A CUDA device to work on shards in host memory with, as in :func:`alkernels.batchbald`.
    progress : bool, default False
        Show a progress bar (tqdm), on rank 0.

    Returns
    -------
    Selection
        ``indices`` (b,) int64, global rows in the order picked: a shard's rows are numbered behind those of all lower
        ranks; ``scores`` (b,) float64 as in one process. The same on all ranks.

    Raises
    ------
    ValueError
        As in one process, on all ranks where it is so on one, with its number; ranks that disagree on an argument.
    TypeError
        An array that is not floating-point, an argument of the wrong type.
    RuntimeError
        A rank raised another error, is gone, or stopped answering within the group's timeout; ranks whose picks differ.

    Warns
    -----
    UserWarning
        As in one process, on rank 0.

    Notes
    -----
    The picks and gains are those of one process that holds all shards, bit by bit, while configurations are enumerated.
    Once they are sampled the same configurations are drawn on all ranks, and only which candidates are skipped as too
    far behind, by a margin of the noise, depends on the sharding. A message is one row of K x C float64 numbers.

    References
    ----------
    .. [1] A. Kirsch, J. van Amersfoort, Y. Gal. BatchBALD: efficient and diverse batch acquisition for deep Bayesian
       active learning. NeurIPS 2019.

    Examples
    --------
    On each rank of a process group:

    >>> batch = alk.distributed.batchbald(shard, 10, generator=0)  # doctest: +SKIP
    """
    with Ranks(group, "batchbald") as ranks:
        found: dict[str, Any] = {}

        def facts() -> dict[str, Any]:
            draws = found["draws"] = check_draws(local_shard, "local_shard", log_input, device=device)
            return {
                **facts_of(draws.pool),
                "batch_size": check_count(batch_size, "batch_size"),
                "log_input": bool(log_input),
                "max_configurations": int(check_positive(max_configurations, "max_configurations")),
                "num_samples": int(check_positive(num_samples, "num_samples")),
                "rows": draws.count,
                **seed_facts(generator),
            }

        seed = ranks.agree(facts)[0]["drawn"]
        draws: Probabilities = found["draws"]
        ranks.home = draws.device
        configurations = Configurations(draws, max_configurations, num_samples, seed)
        picks, gains = select(ranks, draws, int(batch_size), configurations, progress=progress)
        return ranks.finish(lambda: Selection(draws.pool.out(picks), draws.pool.out(gains)))


def select(
    ranks: Ranks, probs: Probabilities, batch_size: int, configurations: Configurations, *, progress: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The lazy rule on each rank, and the best of what they find."""
    device = probs.device
    picks: list[int] = []
    gains: list[float] = []

    def walk() -> tuple[()]:
        check_total(ranks, "local_shard", batch_size, "batch_size")
        walked.append(lazily(probs, configurations))
        return ()

    walked: list[Any] = []
    ranks.exchange("walk", [], walk)
    alone, gain, greedy = walked[0]
    if ranks.rank == 0 and probs.shape[1] == 1 and batch_size:
        warn_user(f"{probs.name} holds one draw, which cannot disagree: every score is 0")
    draws, classes = (int(s) for s in probs.shape[1:])
    fields = [(torch.float64, (1, 3)), (torch.int64, (1, 2)), (torch.float64, (1, draws, classes))]
    point, warned = None, False

    def offer() -> tuple[torch.Tensor, ...]:
        """The best row, the one of the largest BALD where the best says next to nothing, and what is known of both."""
        if point is not None:
            configurations.add(point)
            greedy.margin = margin(configurations)
        left = greedy.bounds > -torch.inf
        if not bool(left.any()):
            return tuple(torch.empty((0, *shape[1:]), dtype=dtype, device=device) for dtype, shape in fields)
        first = first_largest(torch.where(left, alone, -torch.inf))
        if picks:
            best, found = greedy.best()
        else:
            best, found = first, float(alone[first])
        shown, of_first = best, found
        if picks and found < NOTHING and not configurations.sampled:
            shown, of_first = first, float(gain(torch.tensor([first], device=device), True))
        return (
            torch.tensor([[found, float(alone[first]), of_first]], dtype=torch.float64, device=device),
            torch.tensor([[best, first]], device=device) + ranks.offset,
            probs.gather(torch.tensor([shown], device=device), torch.float64),
        )

    with tqdm(total=batch_size, desc="BatchBALD", unit="pick", disable=not (progress and ranks.rank == 0)) as bar:
        for step in range(batch_size):
            got = ranks.exchange("pick", fields, offer)
            some = [rank for rank, count in enumerate(got.counts) if count]
            values, rows = got.fields[0][some, 0], got.fields[1][some, 0]
            # ranks are in the order of their rows: the first of equal ones has the lowest
            winner = first_largest(values[:, 0])
            found, pick = float(values[winner, 0]), int(rows[winner, 0])
            if step and found < NOTHING and not configurations.sampled:
                winner = first_largest(values[:, 1])
                found, pick = float(values[winner, 2]), int(rows[winner, 1])
            if step and draws == 1:
                found = 0.0
            elif step and not configurations.sampled:
                found = max(found, 0.0)
            point = got.fields[2][some[winner], 0]
            picks.append(pick)
            gains.append(found)
            ranks.witness(torch.tensor([pick]))
            if ranks.offset <= pick < ranks.offset + probs.count:
                greedy.exclude(pick - ranks.offset)
            bar.update()
            if ranks.rank == 0:
                warned = warned or saturated(gains, draws, batch_size)
    return (
        torch.tensor(picks, dtype=torch.int64, device=device),
        torch.tensor(gains, dtype=torch.float64, device=device),
    )
