"""What comes in and what goes out: pools as rows that can be sliced, checked arguments, named results."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from alkernels._sources import (
    RowsOf,
    TensorSource,
    bytes_a_row,
    free_host_memory,
    gathered,
    is_rows,
    read_slabs,
    shape_of,
    source_of,
)
from alkernels._streaming import CudaStreams, HostSource, Source, check_target, move, read_ahead

Array: TypeAlias = "torch.Tensor | np.ndarray"
# One array, or a pair whose rows stand for their outer products.
RowsLike: TypeAlias = "Array | tuple[Array, Array]"
# The same rows as tensors: one factor, or two.
Factors: TypeAlias = tuple[torch.Tensor, ...]

# One call of a kernel takes about this many operations (0.05 to 0.5 s), so that Ctrl-C is noticed between calls. On a
# GPU it takes so many times as many, and so many times the memory.
_OPERATIONS_A_CALL = 1.5e10
_GPU_OPERATIONS, _GPU_MEMORY = 300, 8

# Features up to this leave room for squares and their sums in float32; larger ones are multiplied in float64.
LARGEST_NARROW = 1e15

# A tile of rows that are widened, or read from a file, takes so many bytes.
_BYTES_A_TILE = 16 << 20
# Of rows in files three tiles are held: one that is worked on, one that is read meanwhile, one that is widened. A limit
# of memory leaves room for so many rows of each.
_TILES, _FEWEST_ROWS = 3, 64
# So much is read of a file at a time where it is to be fast, and memory allows: a thread's turn costs the kernels a
# millisecond on two cores.
_BYTES_A_SLAB = 64 << 20
# Where no limit is given, this share of the free memory is one.
_SHARE = 0.25


def operations_a_call(device: torch.device) -> float:
    """How many operations one call of a kernel takes."""
    return _OPERATIONS_A_CALL * (1 if device.type == "cpu" else _GPU_OPERATIONS)


def bytes_a_call(device: torch.device, on_cpu: int) -> int:
    """How much memory one call may hold, where `on_cpu` bytes are right for a CPU and its caches."""
    return on_cpu * (1 if device.type == "cpu" else _GPU_MEMORY)


def not_compiled(**arguments: Any) -> None:
    """Refuses what an op call that torch.compile traces has no room for."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name} must be None inside torch.compile, got {value!r}")


class Selection(NamedTuple):
    """Picked rows, in the order picked.

    Attributes
    ----------
    indices : Tensor or ndarray of shape (b,), int64
    scores : Tensor or ndarray of shape (b,), float
        The value that made each pick, higher = better.
    """

    indices: Any
    scores: Any


class CoverSelection(NamedTuple):
    """A :class:`Selection` with the state it leaves behind.

    Attributes
    ----------
    indices, scores
        As in :class:`Selection`.
    distances : Tensor or ndarray of shape (N,), float
        Each row's distance to its nearest centre, in the unit of `scores`; their maximum is the cover radius.
    nearest : Tensor or ndarray of shape (N,), int64
        That centre: ``j < L`` is row ``j`` of `labeled`, ``L + j`` is pick number ``j``.
    """

    indices: Any
    scores: Any
    distances: Any
    nearest: Any


class CoverageSelection(NamedTuple):
    """A :class:`Selection` with the coverage it leaves behind.

    Attributes
    ----------
    indices, scores
        As in :class:`Selection`.
    covered : Tensor or ndarray of shape (N,), float64
        Each row's similarity to the row that covers it best.
    """

    indices: Any
    scores: Any
    covered: Any


class Neighbors(NamedTuple):
    """The nearest points of some queries, nearest first.

    Attributes
    ----------
    distances : Tensor or ndarray of shape (N, k), float64
    indices : Tensor or ndarray of shape (N, k), int64
    """

    distances: Any
    indices: Any


class TopK(NamedTuple):
    """The best few values of each row, in order.

    Attributes
    ----------
    values : Tensor or ndarray of shape (N, k), float
    indices : Tensor or ndarray of shape (N, k), int64
    """

    values: Any
    indices: Any


class Pool:
    """Rows that can be read in tiles and gathered by index: one factor, or two for outer products.

    Parameters
    ----------
    rows : array or pair of arrays
        Tensors, NumPy arrays, or what lies in files: memory maps, and datasets that can be sliced by rows.
    name : str
        The argument's name, for errors.
    dims : int, default 2
        The arrays' dimensions: 3 for rows that are matrices (draws by classes).
    device : torch.device or str, optional
        The CUDA device to work on rows in host memory with. They are copied to it once where they take up to 0.6 of its
        free memory, and otherwise streamed: read ahead tile by tile, as often as they are walked, through 256 MB of its
        memory and as much pinned host memory. Rows that are on it already stay as they are.

    Attributes
    ----------
    device : torch.device
        Where tiles and gathered rows are.
    target : torch.device or None
        The parameter, checked: what further pools of the same call are to be given.
    streamed : bool
    sliced : bool
        Tiles are made as they are read: there is never the whole of it in memory.
    tile_bytes : int
        What a tile of rows may take, also after they are widened. Of rows in files two more are held.
    """

    def __init__(self, rows: RowsLike, name: str, dims: int = 2, *, device: torch.device | str | None = None) -> None:
        self.sources: list[Source]
        if isinstance(rows, (tuple, list)) and len(rows) == 2 and not np.isscalar(rows[0]):
            self.sources = [source_of(rows[0], f"{name}[0]", dims), source_of(rows[1], f"{name}[1]", dims)]
        else:
            self.sources = [source_of(rows, name, dims)]
        self.numpy = all(s.numpy for s in self.sources)
        self.name = name
        lengths = [s.shape[0] for s in self.sources]
        if len(set(lengths)) > 1:
            raise ValueError(f"the two factors of {name} must have as many rows, got {lengths[0]} and {lengths[1]}")
        self.count = int(lengths[0])
        self.target = None if device is None else check_target(device)
        self.to_host = self.streamed = False
        if self.target is not None:
            self._take_to(self.target)
        devices = {s.device for s in self.sources}
        if len(devices) > 1:
            raise ValueError(
                f"the two factors of {name} must be on one device, got {' and '.join(sorted(map(str, devices)))}"
            )
        self.widths = [int(np.prod(s.shape[1:])) for s in self.sources]
        self.device = self.sources[0].device
        self.sliced = any(s.sliced for s in self.sources)
        self.tile_bytes = bytes_a_call(self.device, _BYTES_A_TILE)
        self._limit: int | None = None  # what tiles may take

    def _take_to(self, target: torch.device) -> None:
        for source in self.sources:
            if source.device not in (target, torch.device("cpu")):
                raise ValueError(f"{self.name} must be in host memory or on {target} (device), got {source.device}")
        host = [s for s in self.sources if s.device != target]
        self.to_host = len(host) == len(self.sources)
        if not host:
            return
        # one factor on the device already: the other follows it, as rows are handed out
        whole = move(host, self.count, target) if self.to_host else None
        if whole is not None:
            self.sources = [TensorSource(t, self.name) for t in whole]
        else:
            self.sources = [s if s.device == target else HostSource(s, target) for s in self.sources]
            self.streamed = self.to_host

    @property
    def remote(self) -> bool:
        """Whether the host has to wait for what it reads of results."""
        return self.device.type != "cpu"

    def rows_of(self, bytes_each: int) -> int:
        """How many rows a tile may have, of which each takes so many bytes in the computation."""
        return max(1, self.tile_bytes // bytes_each)

    @property
    def slab_bytes(self) -> int:
        """What is read of files at a time: some tiles, or a chunk where memory allows."""
        chunk = bytes_a_row(self.sources) * min(max(s.chunk for s in self.sources), self.count)
        if self._limit is None and chunk <= self.tile_bytes:  # free memory is not asked for at each walk of every pool
            return self.tile_bytes
        room = (int(free_host_memory() * _SHARE) if self._limit is None else self._limit) // _TILES
        some = 0 if self._limit is None or not any(s.stored for s in self.sources) else min(_BYTES_A_SLAB, room)
        return max(self.tile_bytes, some, chunk if chunk <= room else 0)

    def tile(self, begin: int, end: int) -> Factors:
        return tuple(s.tile(begin, end) for s in self.sources)

    def gather(self, rows: torch.Tensor) -> Factors:
        return gathered(self.sources, rows)

    def tiles(self, size: int) -> Iterator[tuple[int, int, Factors]]:
        """Tiles of up to `size` rows, in order; of rows in files the next ones are read meanwhile.

        Of a streamed pool each tile is overwritten once the next is asked for.
        """
        if self.streamed:
            host = [s.host for s in self.sources if isinstance(s, HostSource)]
            yield from read_ahead(host, self.count, size, CudaStreams(self.device))
        elif self.sliced:
            yield from read_slabs(self.sources, self.count, size, self.slab_bytes)
        else:
            for begin in range(0, self.count, size):
                end = min(begin + size, self.count)
                yield begin, end, self.tile(begin, end)

    def limit_memory(self, limit: int | None, needed: int, pools: int = 1) -> None:
        """Makes tiles so small that an operation which needs so many bytes beside them stays within a limit.

        Of several pools that are walked at the same time each has its part. Raises a ValueError where not even small
        tiles fit.
        """
        if limit is None and not self.sliced:
            return
        room = int(free_host_memory() * _SHARE) if limit is None else limit - needed
        smallest = least_tiles(sum(self.widths))
        if limit is not None and room < pools * smallest:
            raise ValueError(
                f"memory_limit must be at least {needed + pools * smallest} bytes for {self.count} rows of "
                f"{self.name}, {needed} of them beside tiles of {_FEWEST_ROWS} rows, got {limit}"
            )
        self._limit = max(room // pools, smallest)
        self.tile_bytes = min(self.tile_bytes, self._limit // _TILES)
        self._bound_runs()

    def _bound_runs(self) -> None:
        for source in self.sources:
            if hasattr(source, "run_bytes"):
                source.run_bytes = self.slab_bytes

    def limit_like(self, other: Pool) -> None:
        """Tiles as those of another pool of the same call, and nothing larger."""
        self.tile_bytes = other.tile_bytes
        self._limit = None if other._limit is None else _TILES * other.tile_bytes
        self._bound_runs()

    def check_finite(self) -> float:
        """Raises a ValueError that names the first NaN or infinity, if there is one; returns the largest magnitude."""
        largest = 0.0
        numbers = 1 << (20 if self.device.type == "cpu" else 24)  # on a GPU each tile costs a few launches and waits
        for begin, _, factors in self.tiles(max(1, numbers // sum(self.widths))):
            largest = max(largest, self.check_tile(begin, factors))
        return largest

    def check_tile(self, begin: int, factors: Factors) -> float:
        """The same of the rows from `begin` on."""
        largest = 0.0
        for f, factor in enumerate(factors):
            bad = ~torch.isfinite(factor)
            if bad.any():
                row, column = (int(x) for x in bad.nonzero()[0])
                name = self.name if len(factors) == 1 else f"{self.name}[{f}]"
                raise ValueError(
                    f"{name} must be finite, got {factor[row, column].item()} in row {begin + row}, column {column}"
                )
            largest = max(largest, float(factor.abs().max())) if factor.numel() else largest
        return largest

    def out(self, tensor: torch.Tensor) -> Array:
        """A result as the caller's kind of array, where the caller's rows are."""
        tensor = tensor.cpu() if self.to_host else tensor
        return tensor.numpy() if self.numpy else tensor


def least_tiles(width: int) -> int:
    """Bytes of the tiles without which nothing is done."""
    return _TILES * _FEWEST_ROWS * 8 * width


def largest_magnitude(rows: Pool) -> float:
    """Of all features; raises where they are not finite, or their squares overflow."""
    return check_squares(rows, rows.check_finite())


def check_squares(rows: Pool, largest: float) -> float:
    """Raises where features of this magnitude have squares that overflow."""
    # the squared lengths of two rows, each shifted by a third
    if largest > math.sqrt(torch.finfo(torch.float64).max / (8 * rows.widths[0])):
        raise ValueError(f"{rows.name} must have squares that float64 can hold, got a magnitude of {largest:.3g}")
    return largest


def check_labeled(labeled: RowsLike | None, pool: Pool, name: str = "labeled") -> Pool | None:
    """The labelled set as a Pool that fits `pool`; None where it is missing or empty."""
    if labeled is None:
        return None
    rows = Pool(labeled, name, device=pool.target)
    rows.limit_like(pool)
    if rows.widths != pool.widths:
        raise ValueError(f"{name} must be as wide as {pool.name}, got width {_widths(rows)} and {_widths(pool)}")
    if rows.device != pool.device:
        raise ValueError(f"{name} must be on the device of {pool.name} ({pool.device}), got {rows.device}")
    rows.check_finite()
    return rows if rows.count else None


def _widths(pool: Pool) -> str:
    return " and ".join(map(str, pool.widths)) if len(pool.widths) > 1 else str(pool.widths[0])


def check_integer(value: Any, name: str) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__} {value!r}") from None


def check_count(value: Any, name: str) -> int:
    count = check_integer(value, name)
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return count


def check_number(value: Any, name: str, wanted: str) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
    return float(value)


def check_flag(value: Any, name: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__} {value!r}")
    return bool(value)


def check_k(k: Any, pool: Pool) -> int:
    k = check_integer(k, "k")
    if not 0 <= k <= pool.count:
        raise ValueError(f"k must be between 0 and {pool.count} (rows of {pool.name}), got {k}")
    return k


def as_tensor(values: Any, name: str, wanted: str) -> torch.Tensor:
    """Numbers of any kind as a tensor; lists of floats as float64."""
    if isinstance(values, torch.Tensor):
        return values.detach()
    if is_rows(values) and not isinstance(values, (np.ndarray, RowsOf)):
        values = values[0 : shape_of(values)[0]] if shape_of(values) else values[()]
        return as_tensor(values, name, wanted)
    try:
        array = np.ascontiguousarray(values)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"got dtype {array.dtype}")
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be {wanted}, got {type(values).__name__}: {error}") from None
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True))


def check_vector(values: Any, name: str, pool: Pool) -> torch.Tensor:
    """A finite number for each row of `pool`, as float64 on its device; never the caller's own memory."""
    vector = as_tensor(values, name, "a vector of numbers")
    if vector.is_complex() or vector.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, got dtype {vector.dtype}")
    if vector.shape != (pool.count,):
        raise ValueError(
            f"{name} must have one element a row of {pool.name}, shape ({pool.count},), got {tuple(vector.shape)}"
        )
    vector = vector.to(pool.device, torch.float64, copy=True)
    if not torch.isfinite(vector).all():
        row = int((~torch.isfinite(vector)).nonzero()[0])
        raise ValueError(f"{name} must be finite, got {vector[row].item()} in row {row}")
    return vector


def check_rows(rows: Any, name: str, count: int, device: torch.device, of: str) -> torch.Tensor:
    """A mask or distinct numbers of `count` rows of something, as row numbers, ascending."""
    index = as_tensor(rows, name, "a mask or a vector of row numbers").to(device)
    if index.dtype == torch.bool:
        if index.shape != (count,):
            raise ValueError(
                f"{name} must be a mask of shape ({count},) or row numbers, got a mask of shape {tuple(index.shape)}"
            )
        return index.nonzero().flatten()
    if index.numel() == 0:
        return torch.empty(0, dtype=torch.int64, device=device)
    if index.is_floating_point() or index.is_complex() or index.dim() != 1:
        raise TypeError(
            f"{name} must be a mask or a vector of row numbers, got {index.dim()} dimensions of dtype {index.dtype}"
        )
    index = index.long()
    outside = (index < 0) | (index >= count)
    if outside.any():
        raise ValueError(f"{name} must be rows of {of}, between 0 and {count - 1}, got {int(index[outside][0])}")
    values, counts = index.unique(return_counts=True)
    if len(values) < len(index):
        raise ValueError(f"{name} must name each row once, got row {int(values[counts > 1][0])} more than once")
    return values


def check_start(start: Any, pool: Pool) -> int | None:
    if start is None:
        return None
    start = check_integer(start, "start")
    if not 0 <= start < pool.count:
        raise ValueError(f"start must be a row of {pool.name}, between 0 and {pool.count - 1}, got {start}")
    return start


def check_metric(metric: Any, pool: Pool, allowed: tuple[str, ...] = ("euclidean", "cosine")) -> str:
    if not isinstance(metric, str) or metric not in allowed:
        names = [repr(name) for name in allowed]
        raise ValueError(f"metric must be {', '.join(names[:-1])} or {names[-1]}, got {metric!r}")
    if len(pool.widths) == 2:
        if metric != "euclidean":
            raise ValueError(f"metric must be 'euclidean' for a pair of factors, got {metric!r}")
        return "outer"
    return metric


def check_device(pool: Pool) -> None:
    if pool.device.type == "cpu":
        return
    from alkernels._load import has_cuda_kernels

    if pool.device.type != "cuda":
        raise ValueError(f"{pool.name} is on {pool.device}, and kernels are for the CPU and CUDA devices only")
    if not has_cuda_kernels():
        raise ValueError(
            f"{pool.name} is on {pool.device}, and this build of alkernels has kernels for the CPU only; "
            f"pass {pool.name}.cpu()"
        )


def check_memory_limit(limit: Any) -> int | None:
    """Bytes, or None."""
    return None if limit is None else check_count(limit, "memory_limit")


def check_pool(features: RowsLike, device: torch.device | str | None = None) -> Pool:
    pool = Pool(features, "features", device=device)
    if pool.count == 0:
        raise ValueError(
            "features must have at least one row, got shape " + " and ".join(str(tuple(s.shape)) for s in pool.sources)
        )
    check_device(pool)
    return pool


def seed_of(generator: torch.Generator | int | None) -> int:
    """One integer that decides all randomness of a call, the same on every device."""
    seed = check_generator(generator)
    if isinstance(generator, torch.Generator):
        return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    return int(torch.randint(2**63 - 1, ())) if seed is None else seed


def check_generator(generator: Any) -> int | None:
    """Raises where it is no generator, seed or None; the seed, if it is one."""
    if generator is None or isinstance(generator, torch.Generator):
        return None
    try:
        seed = check_integer(generator, "generator")
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"generator must be a seed of 64 bits, got {seed}")
        return seed
    except TypeError:
        raise TypeError(
            f"generator must be a torch.Generator, an integer seed or None, got {type(generator).__name__}"
        ) from None
