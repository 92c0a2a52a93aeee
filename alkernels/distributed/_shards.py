"""A pool in pieces, one a rank: what the functions of this package have in common."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from alkernels._inputs import (
    Factors,
    Pool,
    RowsLike,
    check_device,
    check_generator,
    check_integer,
    check_labeled,
    check_metric,
    seed_of,
)
from alkernels._probabilities import Probabilities
from alkernels.distributed._ranks import Field, Gathered, Ranks
from alkernels.ops.running_distances import RunningDistances, middle_of, read, sample_size
from alkernels.ops.selection import Run

# Of what the last block of picks could go down to, where the next is expected to begin: distances are made reliable to
# there before the largest of all shards is known, so that no second collective is needed.
_AHEAD = 0.6


def check_shard(rows: RowsLike, name: str, device: torch.device | str | None, pairs: bool = True) -> Pool:
    """A rank's rows, of which there may be none."""
    pool = Pool(rows, name, device=device)
    if len(pool.sources) > 1 and not pairs:
        raise TypeError(f"{name} must be one array, got a pair")
    check_device(pool)
    return pool


def facts_of(pool: Pool) -> dict[str, Any]:
    """What the shards of all ranks must have in common."""
    names = [str(s.dtype).removeprefix("torch.") for s in pool.sources]
    return {
        f"the shape of a row of {pool.name}": [" x ".join(map(str, s.shape[1:])) for s in pool.sources],
        f"the dtype of {pool.name}": names,
        f"the kind of device of {pool.name}": pool.device.type,
    }


def seed_facts(generator: Any, needed: bool = True) -> dict[str, Any]:
    """A call's seed: one that ranks must agree on, or one that rank 0's generator decides."""
    check_generator(generator)
    seed = seed_of(generator) if needed else 0
    given = generator is not None and needed
    return {"generator": f"seed {seed}" if given else "None", "drawn": seed}


def digest(pool: Pool | None) -> str | None:
    """What rows that all ranks should hold are compared by."""
    if pool is None:
        return None
    found = hashlib.blake2b(digest_size=8)
    for source in pool.sources:
        found.update(f"{tuple(source.shape)} {source.dtype}".encode())
    for _, _, factors in pool.tiles(max(1, (1 << 22) // sum(pool.widths))):
        for factor in factors:
            found.update(np.ascontiguousarray(factor.contiguous().view(torch.uint8).cpu().numpy()).tobytes())
    return found.hexdigest()


def check_count(value: Any, name: str) -> int:
    """A number of picks, as far as one rank can tell."""
    value = check_integer(value, name)
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}")
    return value


def check_total(ranks: Ranks, name: str, value: int | None = None, what: str = "k") -> None:
    """Of all shards together: at least one row, and as many as are asked for."""
    if not ranks.total:
        raise ValueError(f"{name} must have at least one row on some rank, got none on all {ranks.size}")
    if value is not None and value > ranks.total:
        raise ValueError(f"{what} must be between 0 and {ranks.total} (rows of all shards), got {value}")


def row_fields(pool: Pool, rows: int) -> list[Field]:
    """The fields of some rows of a pool."""
    return [(s.dtype, (rows, *s.shape[1:])) for s in pool.sources]


def shared_middle(ranks: Ranks, pool: Pool, check: Any = None, wanted: bool = True) -> torch.Tensor | None:
    """The middle of all shards, as :func:`middle` has it of one pool, where it is wanted.

    Parameters
    ----------
    ranks : Ranks
    pool : Pool
    check : function, optional
        Runs before, under the same collective.
    """
    count = sample_size(ranks.total, pool.widths[0]) if wanted else 0
    rows = torch.arange(count) * ranks.total // max(count, 1)
    starts = torch.tensor([*ranks.starts, ranks.total])
    bounds = torch.searchsorted(rows, starts)
    share = int(bounds.diff().max())

    def sample() -> Factors:
        if check is not None:
            check()
        if not count:
            return ()
        mine = rows[int(bounds[ranks.rank]) : int(bounds[ranks.rank + 1])] - ranks.offset
        return pool.gather(mine.to(pool.device))

    got = ranks.exchange("sample", row_fields(pool, share) if count else [], sample)
    return middle_of(got.joined()) if count else None


class ShardDistances(RunningDistances):
    """:class:`RunningDistances` of one shard, lowered by centres of all shards.

    The picks' rows stay here, as many as there are picks: they come from other ranks, and rows that are measured again
    need them.

    Attributes
    ----------
    pending : tuple of Tensor
        Rows of centres that the distances are yet to be lowered by.
    ahead : float
        A squared distance that the next block may begin at: all ranks settle to it before they send.
    """

    def __init__(self, ranks: Ranks, pool: Pool, metric: str, track: bool, shift: torch.Tensor | None) -> None:
        super().__init__(pool, metric, track, shift)
        self.ranks, self.count = ranks, ranks.total
        self.kept: list[Factors] = []
        self.pending: Factors | None = None
        self.ahead = torch.inf

    def take(self, rows: torch.Tensor, centers: Factors | None) -> None:
        """Makes some global rows picked; `centers`, their features, lower the distances at the next :meth:`follow`."""
        self.ranks.witness(rows)
        local = rows - self.ranks.offset
        mine = (local >= 0) & (local < self.pool.count)
        local = local[mine]
        self.picks.append(local)
        self.d2[local] = -1.0
        self.error[local] = 0.0
        if self.nearest is not None:
            self.nearest[local] = self.centers + mine.nonzero().flatten()
        if centers is None:
            self.centers += len(rows)
        else:
            self.kept.append(centers)
            self.pending = centers

    def follow(self) -> None:
        """Lowers the distances by the centres that wait, and makes them reliable to what is ahead."""
        if self.pending is not None:
            self._lower(self.pending)
            self.pending = None
        if self.ahead < self.level:
            self.settle(*read(*self.next_level(self.d2.new_full((1,), self.ahead))))

    def followed(self, run: Run) -> Run:
        """The run, with distances that all picks have lowered where they are kept track of; all rows were looked at."""
        if self.nearest is not None or self.passes == 0:
            self.follow()
        return run

    def expect(self, value: float) -> None:
        """The next block is likely to begin not far below `value`."""
        self.ahead = _AHEAD * value

    def must_reach(self, value: float) -> None:
        """The next block begins at `value`."""
        self.ahead = value

    def distances(self) -> torch.Tensor:
        return super().distances() if self.pool.count else torch.zeros_like(self.d2)

    def _picked(self, which: torch.Tensor) -> Factors:
        if len(self.kept) > 1:
            self.kept = [tuple(torch.cat(parts) for parts in zip(*self.kept, strict=True))]
        # behind the last: picks that coincided with a centre are nobody's centre, and have distance 0
        if not self.kept:
            return self.pool.gather(torch.zeros_like(which))
        return tuple(factor[which.clamp(max=len(factor) - 1)] for factor in self.kept[0])

    def _picked_blocks(self) -> Any:
        yield from self.kept


def first_centers(
    ranks: Ranks, state: ShardDistances, k: int, labeled: Pool | None, start: int | None, uniform: torch.Generator
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The first picks and their squared distances, none where labelled rows decide; see ops.selection."""
    pool = state.pool
    if labeled is None and start is None and k > 0:
        start = int(torch.randint(ranks.total, (), generator=uniform))
    if k == 0 or start is None:

        def lower() -> tuple[()]:
            if labeled is not None:
                state.add_labeled(labeled)
            else:
                pool.check_finite()
            return ()

        ranks.exchange("labelled rows", [], lower)
        return [], []
    local, owner = start - ranks.offset, max(r for r in range(ranks.size) if ranks.starts[r] <= start)
    while not ranks.counts[owner]:
        owner -= 1

    def offer() -> tuple[torch.Tensor, ...]:
        if labeled is not None:
            state.add_labeled(labeled)
        if ranks.rank != owner:
            return (state.d2[:0], *pool.gather(torch.empty(0, dtype=torch.int64, device=pool.device)))
        row = torch.tensor([local], device=pool.device)
        if labeled is not None:
            state.measure_again(row, 0.0)  # it may lie closer to a labelled row than the level tells apart
        return (state.d2[row], *pool.gather(row))

    got = ranks.exchange("start", [(torch.float64, (1,)), *row_fields(pool, 1)], offer)
    picks = torch.tensor([start], device=pool.device)
    state.take(picks, tuple(field[owner] for field in got.fields[1:]))
    return [picks], [got.fields[0][owner]]


def check_selection(
    ranks: Ranks,
    local_shard: RowsLike,
    k: Any,
    labeled: RowsLike | None,
    start: Any,
    metric: Any,
    metrics: tuple[str, ...],
    generator: Any,
    device: torch.device | str | None,
    draws: bool,
) -> tuple[Pool, Pool | None, str, int, torch.Tensor | None]:
    """The arguments of a seeding function, the same on all ranks: shard, labelled rows, metric, seed and shift."""
    found: dict[str, Any] = {}

    def facts() -> dict[str, Any]:
        pool = found["pool"] = check_shard(local_shard, "local_shard", device)
        known = found["labeled"] = check_labeled(labeled, pool)
        found["metric"] = check_metric(metric, pool, metrics)
        first = None if start is None else check_integer(start, "start")
        return {
            **facts_of(pool),
            "k": check_count(k, "k"),
            "metric": found["metric"],
            "start": first,
            "labeled, whose digest is compared": digest(known),
            "rows": pool.count,
            **seed_facts(generator, draws or (known is None and start is None)),
        }

    told = ranks.agree(facts)
    pool, known, kind = found["pool"], found["labeled"], found["metric"]
    ranks.home = pool.device

    def check() -> None:
        check_total(ranks, "local_shard", k)
        if start is not None and not 0 <= start < ranks.total:
            raise ValueError(f"start must be a row of all shards, between 0 and {ranks.total - 1}, got {start}")
        if kind == "symmetric_kl":
            for rows in (pool, known):
                if rows is not None:
                    Probabilities(rows, rows.name, 2, False).check()

    shift = shared_middle(ranks, pool, check, kind == "euclidean")
    return pool, known, kind, told[0]["drawn"], shift


def larger_first(got: Gathered, most: int) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """The largest of all ranks' first fields, larger first, then those of lower rows; whose and which they are."""
    values = got.fields[0].clone()
    for part, count in zip(values, got.counts, strict=True):
        part[count:] = -torch.inf
    # ranks are in the order of their rows, and each of them put its own in order
    values, order = values.flatten().sort(descending=True, stable=True)
    some = min(most, sum(got.counts))
    width = got.fields[0].shape[1]
    return values[:some], (order[:some] // width, order[:some] % width)


def first_largest(values: torch.Tensor) -> int:
    """Where the largest value is, the first of equal ones."""
    return int((values == values.max()).nonzero()[0])


def no_rows(pool: Pool) -> torch.Tensor:
    return torch.empty(0, dtype=torch.int64, device=pool.device)
