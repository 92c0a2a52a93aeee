"""Every row's distance to its nearest centre, lowered by blocks of centres: the state behind both seeding ops."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import alkernels._load  # noqa: F401
from alkernels._inputs import Factors, Pool, bytes_a_call, operations_a_call

# Of the largest squared distance; kTolerance in csrc/cpu/metric_rows.h.
TOLERANCE = 1e-5
METRICS = {"euclidean": 0, "cosine": 1, "outer": 2, "symmetric_kl": 3}

# Beside tiles the state takes so many bytes, and so many a row.
_BYTES, _BYTES_A_ROW = 48 << 20, 40
# A block of centres is packed into at most this many numbers.
_BLOCK_NUMBERS = 1 << 20
_SAMPLE = 127


class RunningDistances:
    """Squared distances [N] to the nearest centre so far, -1 for picked rows.

    They come out of float32 products (float64 for a float64 pool), which lose digits where a distance is small beside
    the norms. Each row carries a bound of that error. What a pick needs is that no error exceeds 1e-5 of its squared
    distance, and those fall as centres are added: when they come down to `level`, the rows whose error has become too
    large are measured again in float64, against all centres, and from then on always.

    Parameters
    ----------
    pool : Pool
    metric : {"euclidean", "cosine", "outer", "symmetric_kl"}
        The last stands where squared distances do.
    track : bool
        Also keep each row's nearest centre.
    shift : Tensor, optional
        What rows are shifted by under ``euclidean``. Default: the middle of the pool.

    Attributes
    ----------
    d2, error : Tensor of shape (N,), float64 and float32
    nearest : Tensor of shape (N,), int64, or None
    level : float
        All errors are at most 1e-5 of it.
    passes : int
        How often the pool was walked.
    """

    def __init__(self, pool: Pool, metric: str, track: bool, shift: torch.Tensor | None = None) -> None:
        self.pool = pool
        self.metric = METRICS[metric]
        n, device = pool.count, pool.device
        self.count = n  # of all shards, where the pool is one of many
        self.d2 = torch.full((n,), torch.inf, dtype=torch.float64, device=device)
        self.error = torch.zeros(n, dtype=torch.float32, device=device)
        self.nearest = torch.full((n,), -1, dtype=torch.int64, device=device) if track else None
        self.level = torch.inf
        self.shift = None
        if metric == "euclidean":
            self.shift = middle(pool) if shift is None else shift
        self.largest_block = max(8, min(1024, bytes_a_call(device, _BLOCK_NUMBERS) // sum(pool.widths)))
        self.labeled: Pool | None = None
        self.picks: list[torch.Tensor] = []
        self.centers = 0
        self.passes = 0

    def saved(self) -> dict[str, Any]:
        """What :meth:`restore` goes on from."""
        picks = torch.cat(self.picks) if self.picks else self.d2.new_empty(0, dtype=torch.int64)
        state = {"picks": picks, "d2": self.d2, "error": self.error, "level": self.level, "centers": self.centers}
        return {**state, "passes": self.passes, **({} if self.nearest is None else {"nearest": self.nearest})}

    def restore(self, state: dict[str, Any], labeled: Pool | None) -> None:
        device = self.pool.device
        self.picks, self.labeled = [state["picks"].to(device)], labeled
        self.d2, self.error = state["d2"].to(device), state["error"].to(device)
        self.nearest = None if self.nearest is None else state["nearest"].to(device)
        self.level, self.centers, self.passes = state["level"], state["centers"], state["passes"]

    def candidates(self, block: int) -> int:
        """How many candidates the next block of picks should play out among, the last one having made `block` picks.

        More candidates make longer blocks and so fewer passes, each of which costs as much as some thirty centres; but
        their m x m distances cost as much as m² / N centres. Measured, not derived.
        """
        worth = int((self.count * (2 + block / 16)) ** 0.5)
        return min(max(32, 2 * block, min(max(8 * block, self.count // 200), worth)), self.largest_block)

    def add_labeled(self, labeled: Pool) -> None:
        """Lowers the distances by every row of another pool. Call before any pick."""
        self.labeled = labeled
        for block in self._labeled_blocks():
            self._lower(block)

    def add_picks(self, rows: torch.Tensor, lower: bool = True) -> None:
        """Makes `rows` picked and lowers the distances by them (unless nobody will look at them again)."""
        self.picks.append(rows)
        self.d2[rows] = -1.0
        self.error[rows] = 0.0
        if self.nearest is not None:
            self.nearest[rows] = self.centers + torch.arange(len(rows), device=rows.device)
        if lower:
            self._lower(self.pool.gather(rows))
        else:
            self.centers += len(rows)

    def next_level(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The level at which squared distances around `value` are reliable, and how many rows must be measured again.

        All three are vectors of one element on the pool's device, the count as float64: a GPU goes on with them before
        the host has seen them.
        """
        if not self.pool.remote and float(value) >= self.level:
            return value.new_full((1,), self.level), value.new_zeros(1)
        lower = value < self.level
        level = torch.where(
            lower, 0.8 * value, self.level
        )  # ahead of the fall, so that this is needed a few times only
        return level, lower * torch.count_nonzero(self.error > (TOLERANCE * level).float()).double()

    def settle(self, level: float, doubtful: float) -> bool:
        """Takes in what `next_level` gave; says whether any row was measured again."""
        self.level = level
        if doubtful:
            self.measure_again((self.error > TOLERANCE * level).nonzero().flatten(), level)
        return doubtful > 0

    def measure_again(self, rows: torch.Tensor, level: float) -> None:
        """Forgets the distances of some unpicked rows and measures them to `level`; 0: all in float64."""
        for chunk in rows.split(self.pool.rows_of(8 * sum(self.pool.widths))):
            tile = self.pool.gather(chunk)
            d2 = torch.full((len(chunk),), torch.inf, dtype=torch.float64, device=rows.device)
            error = torch.zeros(len(chunk), dtype=torch.float32, device=rows.device)
            nearest = None if self.nearest is None else self.nearest[chunk]
            first = 0
            for centers in itertools.chain(self._labeled_blocks(), self._picked_blocks()):
                self._lower_tile(tile, centers, first, level, d2, error, nearest)
                first += len(centers[0])
            self.d2[chunk], self.error[chunk] = d2, error
            if self.nearest is not None and nearest is not None:
                self.nearest[chunk] = nearest

    def distances(self) -> torch.Tensor:
        """Each row's squared distance to its nearest centre, in float64; infinite without centres."""
        assert self.nearest is not None
        out = torch.zeros_like(self.d2)
        if not self.centers:
            return out.fill_(torch.inf)
        while True:  # the last block may have brought all distances far down
            if not self.settle(*read(*self.next_level(self.d2.max().clamp(min=0).view(1)))):
                break
        labels = self.labeled.count if self.labeled is not None else 0
        dtypes = [s.dtype for s in self.pool.sources]
        if self.labeled is not None:
            dtypes = [torch.promote_types(a, s.dtype) for a, s in zip(dtypes, self.labeled.sources, strict=True)]
        # a few copies of the tile
        for begin, end, tile in self.pool.tiles(self.pool.rows_of(32 * sum(self.pool.widths))):
            nearest = self.nearest[begin:end]
            centers = tuple(
                torch.empty(t.shape, dtype=dtype, device=t.device) for t, dtype in zip(tile, dtypes, strict=True)
            )
            of_pick, of_none = nearest >= labels, nearest < 0
            for of_some in (of_pick, ~of_pick & ~of_none):
                which = nearest[of_some]
                if len(which):
                    if of_some is of_pick or self.labeled is None:
                        some = self._picked(which - labels)
                    else:
                        some = self.labeled.gather(which)
                    for center, found in zip(centers, some, strict=True):
                        center[of_some] = found.to(center.dtype)  # the wider of the pool's and the labelled set's
            for center, factor in zip(centers, tile, strict=True):
                center[of_none] = factor[of_none].to(center.dtype)
            out[begin:end] = torch.ops.alkernels.paired_distances(*pair(tile), *pair(centers), self.metric)
            out[begin:end][of_none] = torch.inf
        if self.picks:
            out[torch.cat(self.picks)] = 0.0
        return out

    def _picked(self, which: torch.Tensor) -> Factors:
        """The rows of some picks, by their numbers."""
        return self.pool.gather(torch.cat(self.picks)[which])

    def _picked_blocks(self) -> Iterator[Factors]:
        if self.picks:
            yield from map(self.pool.gather, torch.cat(self.picks).split(self.largest_block))

    def _labeled_blocks(self) -> Iterator[Factors]:
        if self.labeled is not None:
            for _, _, tile in self.labeled.tiles(self.largest_block):
                yield tile

    def _lower(self, centers: Factors) -> None:
        operations = 2.0 * sum(self.pool.widths) * len(centers[0])
        size = max(1024, int(operations_a_call(self.pool.device) / operations))
        for begin, end, tile in self.pool.tiles(size):
            nearest = None if self.nearest is None else self.nearest[begin:end]
            self._lower_tile(
                tile, centers, self.centers, self.level, self.d2[begin:end], self.error[begin:end], nearest
            )
        # (a symmetric KL may be infinite, and its rows were checked before)
        if (
            self.passes == 0
            and self.metric != METRICS["symmetric_kl"]
            and not all(bool(torch.isfinite(t).all()) for t in (self.d2, *centers))
        ):
            self.pool.check_finite()
            row = int((~torch.isfinite(self.d2)).nonzero()[0])
            raise ValueError(
                f"{self.pool.name} must have squared distances that float64 can hold, got an overflow in row {row}"
            )
        self.centers += len(centers[0])
        self.passes += 1

    def _lower_tile(
        self,
        tile: Factors,
        centers: Factors,
        first_center: int,
        level: float,
        d2: torch.Tensor,
        error: torch.Tensor,
        nearest: torch.Tensor | None,
    ) -> None:
        torch.ops.alkernels.lower_distances(
            *pair(tile), *pair(centers), self.shift, self.metric, first_center, level, d2, error, nearest
        )


def memory_needed(pool: Pool) -> int:
    """Bytes that a selection takes beside pool and tiles."""
    return _BYTES + _BYTES_A_ROW * pool.count


def read(*vectors: torch.Tensor) -> list[float]:
    """Vectors of one float64 element each, in one go: a GPU is waited for once."""
    values: list[float] = torch.cat(vectors).tolist()
    return values


def middle(pool: Pool) -> torch.Tensor:
    """A point amid the rows, float64, to shift them by: distances stay, and lose fewer digits near the origin.

    The lower median of a sample is a value of the data: integers stay integers, and a far outlier does not drag it.
    """
    count = sample_size(pool.count, pool.widths[0])
    return middle_of(pool.gather(torch.arange(count, device=pool.device) * pool.count // count)[0])


def sample_size(count: int, width: int) -> int:
    """How many of `count` rows :func:`middle` looks at."""
    return min(_SAMPLE, count, max(3, _BLOCK_NUMBERS // width))


def middle_of(sample: torch.Tensor) -> torch.Tensor:
    """The lower median of some rows."""
    sample = sample.double()
    half = (len(sample) - 1) // 2
    if sample.is_cuda:
        return sample.sort(dim=0).values[half].contiguous()  # median() has no deterministic CUDA kernel
    # torch's takes seven times as long
    return torch.from_numpy(np.partition(sample.numpy(), half, axis=0)[half].copy())


def rounding_share(width: int, dtype: torch.dtype) -> float:
    """How far a kernel's product of two rows may be off on any device, as a share of their squared lengths' sum.

    The larger of error_share in csrc/cpu/metric_rows.h and csrc/cuda/product_tile.cuh.
    """
    run = min(width, 64) if dtype == torch.float32 else width
    return (6 + run / 4 + (width - run) / 256) * torch.finfo(dtype).eps / 2


def pair(factors: Factors) -> tuple[torch.Tensor, torch.Tensor | None]:
    return factors[0], factors[1] if len(factors) == 2 else None


@torch.library.register_fake("alkernels::paired_distances")
def _(rows, rows2, others, others2, metric):  # type: ignore[no-untyped-def]
    torch._check(rows.shape == others.shape)
    return rows.new_empty(rows.shape[0], dtype=torch.float64)


@torch.library.register_fake("alkernels::lower_distances")
def _(rows, rows2, centers, centers2, shift, metric, first_center, level, d2, error, nearest):  # type: ignore[no-untyped-def]
    torch._check(rows.dim() == 2 and centers.dim() == 2 and rows.shape[1] == centers.shape[1])
    torch._check(d2.shape == (rows.shape[0],) and error.shape == d2.shape)
