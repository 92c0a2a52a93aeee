"""What the strategies share about their arguments: checks, and rows of length one."""

from __future__ import annotations

import math
from typing import Any

import torch

from alkernels._inputs import Array, Pool, as_tensor, bytes_a_call, check_number, check_pool

_BYTES_A_TILE = 16 << 20


def check_features(features: Array, device: torch.device | str | None = None) -> Pool:
    return check_single(check_pool(features, device))


def check_single(pool: Pool) -> Pool:
    """Rows that are no pairs of factors."""
    if len(pool.sources) > 1:
        raise TypeError(f"{pool.name} must be one array, got a pair")
    return pool


def check_as_many(count: int, name: str, wanted: int, of: str) -> None:
    if count != wanted:
        raise ValueError(f"{name} must have as many rows as {of}, got {count} and {wanted}")


def check_above_zero(value: Any, name: str) -> float:
    number = check_number(value, name, "above 0 and finite")
    if number <= 0:
        raise ValueError(f"{name} must be above 0 and finite, got {value!r}")
    return number


def check_not_negative(value: Any, name: str) -> float:
    number = check_number(value, name, "finite and not negative")
    if number < 0:
        raise ValueError(f"{name} must be finite and not negative, got {value!r}")
    return number


def multiple(factor: Any, name: str, batch_size: int, count: int) -> int:
    """How many rows `factor` times the batch are, at most all."""
    number = check_number(factor, name, "at least 1 and finite")
    if number < 1:
        raise ValueError(f"{name} must be at least 1 and finite, got {factor!r}")
    return min(count, math.ceil(number * batch_size))


def check_either(first: Any, second: Any, names: str) -> None:
    """Exactly one of two arrays that stand for each other."""
    if (first is None) == (second is None):
        raise ValueError(f"either {names} must be given, got {'none' if second is None else 'both'}")


def check_one_of(value: Any, name: str, known: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {value!r}")
    return value


def check_classes(values: Any, name: str, count: int | None, classes: int | None, of: str) -> torch.Tensor:
    """Integers that are not negative, one a row, below the number of classes where that is known."""
    given = as_tensor(values, name, "a vector of integers")
    if given.numel() == 0:
        given = given.long()  # of an empty list
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got dtype {given.dtype}")
    given = given.long()
    if given.dim() != 1 or (count is not None and len(given) != count):
        raise ValueError(f"{name} must have one number a row of {of}, shape ({count},), got {tuple(given.shape)}")
    wrong = (given < 0) if classes is None else (given < 0) | (given >= classes)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        most = "not be negative" if classes is None else f"be between 0 and {classes - 1}"
        raise ValueError(f"{name} must {most}, got {int(given[row])} in row {row}")
    return given


def rows_a_tile(device: torch.device, numbers_a_row: int) -> int:
    return max(1, bytes_a_call(device, _BYTES_A_TILE) // (8 * numbers_a_row))


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows of length one in float64; rows of zeros stay."""
    rows = rows.double()
    largest = rows.abs().amax(1, keepdim=True)
    rows = rows / largest.masked_fill_(largest == 0, 1)  # no square overflows or vanishes
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1)  # the largest entry is 1, or all are 0


def scaled_to_one(pool: Pool) -> torch.Tensor:
    """A copy of the rows, scaled to length one, at least float32."""
    dtype = torch.promote_types(pool.sources[0].dtype, torch.float32)
    out = torch.empty(pool.count, pool.widths[0], dtype=dtype, device=pool.device)
    for begin, end, (tile,) in pool.tiles(rows_a_tile(pool.device, 3 * pool.widths[0])):
        out[begin:end] = unit_rows(tile)
    return out
