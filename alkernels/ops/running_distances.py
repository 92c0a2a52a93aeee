"""Every row's distance to its nearest centre, lowered by blocks of centres: the state behind both seeding ops."""

from __future__ import annotations

import torch

import alkernels._load  # noqa: F401
from alkernels._inputs import Factors, Pool

METRICS = {"euclidean": 0, "cosine": 1, "outer": 2}

# One call of the kernel takes about this many operations (0.05 to 0.5 s), so that Ctrl-C is noticed between calls ...
_OPERATIONS_A_CALL = 1.5e10
# ... and no more bytes than this of a memory-mapped pool are held at a time.
_MAPPED_BYTES_A_CALL = 16 << 20
# A block of centres is packed into at most this many numbers.
_BLOCK_NUMBERS = 1 << 20
_SAMPLE = 127


class RunningDistances:
    """Squared distances [N] to the nearest centre so far, -1 for picked rows.

    Parameters
    ----------
    pool : Pool
    metric : {"euclidean", "cosine", "outer"}
    track : bool
        Also keep each row's nearest centre and refine its distance in float64.

    Attributes
    ----------
    passes : int
        How often the pool was walked.
    operations : float
        Multiplications and additions of the distance products so far.
    """

    def __init__(self, pool: Pool, metric: str, track: bool) -> None:
        self.pool = pool
        self.metric = METRICS[metric]
        self.d2 = torch.full((pool.count,), torch.inf, dtype=torch.float64, device=pool.device)
        self.nearest = torch.full((pool.count,), -1, dtype=torch.int64, device=pool.device) if track else None
        count = min(_SAMPLE, pool.count)
        self._sample_rows = torch.arange(count, device=pool.device) * pool.count // count
        self._sample = pool.gather(self._sample_rows)
        # Distances do not change when all rows are shifted, and lose fewer digits near the origin. The lower median is a
        # value of the data: integers stay integers, and a far outlier does not drag it along.
        self.shift = self._sample[0].double().median(dim=0).values if metric == "euclidean" else None
        self.largest_block = max(32, min(1024, _BLOCK_NUMBERS // sum(pool.widths)))
        self.centers = 0
        self.passes = 0
        self.operations = 0.0

    def candidates(self, block: int) -> int:
        """How many candidates the next block of picks should play out among, the last one having made `block` picks.

        More candidates make longer blocks and so fewer passes, each of which costs as much as some thirty centres; but their
        m x m distances cost as much as m² / N centres. Measured, not derived.
        """
        return min(max(32, 2 * block, int((self.pool.count * (2 + block / 16)) ** 0.5)), self.largest_block)

    def mark(self, rows: torch.Tensor) -> None:
        """Makes `rows` picked; call before their lower(), which numbers them."""
        self.d2[rows] = -1.0
        if self.nearest is not None:
            self.nearest[rows] = self.centers + torch.arange(len(rows), device=rows.device)

    def lower(self, centers: Factors, guard: float | None = None) -> None:
        """Lowers all distances by a block of centres.

        Parameters
        ----------
        centers : tuple of tensors
        guard : float, optional
            A lower bound of the largest squared distance after this call; decides which rows need float64. By default a
            sample of the pool is lowered first, in float64, and its largest taken.
        """
        if guard is None:
            sample = self.d2[self._sample_rows]
            self._lower_tile(self._sample, centers, 0.0, sample, None)
            guard = float(sample.max())
        operations = 2.0 * sum(self.pool.widths) * len(centers[0])
        size = max(1024, int(_OPERATIONS_A_CALL / operations))
        if any(getattr(s, "map", None) is not None for s in self.pool.sources):
            size = min(size, max(1, _MAPPED_BYTES_A_CALL // (8 * sum(self.pool.widths))))
        for begin, end, tile in self.pool.tiles(size):
            nearest = None if self.nearest is None else self.nearest[begin:end]
            self._lower_tile(tile, centers, guard, self.d2[begin:end], nearest)
        if self.passes == 0 and not torch.isfinite(self.d2).all():
            self.pool.check_finite()
            row = int((~torch.isfinite(self.d2)).nonzero()[0])
            raise ValueError(f"{self.pool.name} must have squared distances that float64 can hold, got an overflow in row {row}")
        self.centers += len(centers[0])
        self.passes += 1
        self.operations += operations * self.pool.count

    def lower_by_pool(self, labeled: Pool) -> None:
        """Lowers all distances by every row of another pool, a block at a time."""
        for begin in range(0, labeled.count, self.largest_block):
            self.lower(labeled.tile(begin, min(begin + self.largest_block, labeled.count)))

    def _lower_tile(
        self, tile: Factors, centers: Factors, guard: float, d2: torch.Tensor, nearest: torch.Tensor | None
    ) -> None:
        torch.ops.alkernels.lower_distances(
            *pair(tile), *pair(centers), self.shift, self.metric, self.centers, guard, d2, nearest
        )


def pair(factors: Factors) -> tuple[torch.Tensor, torch.Tensor | None]:
    return factors[0], factors[1] if len(factors) == 2 else None


@torch.library.register_fake("alkernels::lower_distances")
def _(rows, rows2, centers, centers2, shift, metric, first_center, guard, d2, nearest):  # type: ignore[no-untyped-def]
    torch._check(rows.dim() == 2 and centers.dim() == 2 and rows.shape[1] == centers.shape[1])
    torch._check(d2.shape == (rows.shape[0],))
