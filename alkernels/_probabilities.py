"""Probabilities that come in: checked, tile by tile, and handed out in the dtype that a computation wants."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from alkernels._inputs import Array, Pool, check_device, check_flag

# How far from 1 a distribution may sum. What is further off is no rounding, and is refused rather than renormalised.
# bfloat16 rounds each probability by up to 2^-8 of itself, and their sum by as much.
_SUM_TOLERANCE, _OF_BFLOAT16 = 1e-3, 4e-3


class Probabilities:
    """Rows of distributions, [N, C] or [N, K, C], given as probabilities or as their logarithms.

    Parameters
    ----------
    array : Tensor, ndarray or Pool
    name : str
        The argument's name, for errors.
    dims : int
        2 or 3.
    log_input : bool
        The array holds natural logarithms of probabilities.
    device : torch.device or str, optional
        As for :class:`Pool`.
    """

    def __init__(
        self,
        array: Array | Pool,
        name: str,
        dims: int,
        log_input: bool,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        check_flag(log_input, "log_input")
        self.pool = array if isinstance(array, Pool) else Pool(array, name, dims, device=device)
        if len(self.pool.sources) > 1:
            raise TypeError(f"{name} must be one array, got a pair")
        check_device(self.pool)
        self.name, self.log_input = name, log_input
        self.count, self.shape, self.device = self.pool.count, self.pool.sources[0].shape, self.pool.device
        # float32 products where the input is no wider: float16 and bfloat16 are widened
        self.dtype = torch.promote_types(self.pool.sources[0].dtype, torch.float32)
        rounded = not log_input and self.pool.sources[0].dtype == torch.bfloat16
        self.tolerance = _OF_BFLOAT16 if rounded else _SUM_TOLERANCE
        self.rows_a_tile = self.pool.rows_of(8 * self.pool.widths[0])  # in the widest dtype

    def limit_memory(self, limit: int | None, needed: int, pools: int = 1) -> None:
        """As :meth:`Pool.limit_memory`."""
        self.pool.limit_memory(limit, needed, pools)
        self.rows_a_tile = min(self.rows_a_tile, self.pool.rows_of(8 * self.pool.widths[0]))

    @property
    def whole(self) -> torch.Tensor:
        """All rows as they are stored: probabilities or logarithms."""
        return self.pool.tile(0, self.count)[0]

    def tiles(self, dtype: torch.dtype | None = None) -> Iterator[tuple[int, int, torch.Tensor]]:
        """All rows' probabilities in order, a tile at a time."""
        for begin, end, (tile,) in self.pool.tiles(self.rows_a_tile):
            yield begin, end, self.values(tile, dtype)

    def checked_tiles(self, dtype: torch.dtype | None = None) -> Iterator[tuple[int, int, torch.Tensor]]:
        """The same, each checked as :meth:`check` does before it is handed out: one walk for both."""
        for begin, end, (tile,) in self.pool.tiles(self.rows_a_tile):
            self.check_tile(begin, tile)
            yield begin, end, self.values(tile, dtype)

    def gather(self, rows: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        return self.values(self.pool.gather(rows)[0], dtype)

    def values(self, tile: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Stored rows as probabilities, in `dtype` or the one that products are taken in."""
        tile = tile.to(dtype or self.dtype)
        return tile.exp() if self.log_input else tile

    def logarithms(self, tile: torch.Tensor) -> torch.Tensor:
        """Stored rows as natural logarithms in float64, -inf for a probability of zero."""
        tile = tile.double()
        return tile if self.log_input else tile.log()

    def check(self) -> None:
        """Raises a ValueError that names the first row that is no distribution, if there is one."""
        for begin, _, (tile,) in self.pool.tiles(self.rows_a_tile):
            self.check_tile(begin, tile)

    def check_tile(self, begin: int, tile: torch.Tensor) -> None:
        """The same for rows `begin` and on, as they are stored."""
        values = self.values(tile)
        sums = values.sum(-1)
        sound = (sums - 1).abs() <= self.tolerance  # False for NaN
        if bool(sound.all()) and bool(values.amin() >= 0 if values.numel() else True):
            return
        bad = (~sound) | (values < 0).any(-1)
        where = bad.nonzero()[0].tolist()
        row = values[tuple(where)]
        place = f"row {begin + where[0]}" + (f", draw {where[1]}" if len(where) > 1 else "")
        what = "logarithms of probabilities" if self.log_input else "probabilities"
        if not torch.isfinite(row).all():
            bad_value = tile[tuple(where)][~torch.isfinite(row)][0].item()
            raise ValueError(f"{self.name} must hold {what}, got {bad_value} in {place}")
        if (row < 0).any():
            raise ValueError(f"{self.name} must hold {what}, got {row[row < 0][0].item():.6g} in {place}")
        dtype = self.pool.sources[0].dtype
        if dtype == torch.float16 or (dtype == torch.bfloat16 and self.log_input):
            which = "log_softmax" if self.log_input else "softmax"
            place += f"; {str(dtype).removeprefix('torch.')} may round by more than that: take the {which} in float32"
        hint = "" if self.log_input or bool(row.sum() > 0) else "; pass log_input=True for logarithms"
        raise ValueError(
            f"{self.name} must hold {what} that sum to 1 within {self.tolerance:g}, got {row.sum().item():.6g} in "
            f"{place}{hint}"
        )
