"""What comes in and what goes out: pools as rows that can be sliced, checked arguments, named results."""

from __future__ import annotations

import math
import mmap
import numbers
import operator
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

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

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WELCOME = "float16, bfloat16, float32 or float64"
_NUMPY_DTYPES = {np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)}


def operations_a_call(device: torch.device) -> float:
    """How many operations one call of a kernel takes."""
    return _OPERATIONS_A_CALL * (1 if device.type == "cpu" else _GPU_OPERATIONS)


def bytes_a_call(device: torch.device, on_cpu: int) -> int:
    """How much memory one call may hold, where `on_cpu` bytes are right for a CPU and its caches."""
    return on_cpu * (1 if device.type == "cpu" else _GPU_MEMORY)


def is_numpy(array: Any) -> bool:
    """Whether results for an array are to be NumPy's."""
    return isinstance(array.array if isinstance(array, RowsOf) else array, np.ndarray)


def not_compiled(device: Any) -> None:
    """Refuses what an op call that torch.compile traces has no room for."""
    if device is not None:
        raise ValueError(f"device must be None inside torch.compile, got {device!r}")


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


class _TensorSource:
    """A tensor, sliced without copies."""

    def __init__(self, tensor: torch.Tensor, name: str) -> None:
        if tensor.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got layout {tensor.layout}; call .to_dense() first")
        self.tensor = tensor.detach()
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device

    def tile(self, begin: int, end: int) -> torch.Tensor:
        return self.tensor[begin:end]

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        return self.tensor.index_select(0, rows)

    def release(self, begin: int, end: int) -> None:
        pass


class _ArraySource:
    """A NumPy array or memory map. Nothing is copied but gathered rows (and tiles that torch cannot view)."""

    device = torch.device("cpu")

    def __init__(self, array: np.ndarray, name: str) -> None:
        native = array.dtype.newbyteorder("=")
        if native not in _NUMPY_DTYPES:
            raise TypeError(
                f"{name} must be of dtype float16, float32 or float64 (torch tensors: bfloat16 too), got {array.dtype}"
            )
        self.array, self.native = array, native
        self.shape = array.shape
        self.dtype = {2: torch.float16, 4: torch.float32, 8: torch.float64}[native.itemsize]
        self.map = getattr(array, "_mmap", None) if getattr(array, "mode", "c") != "c" else None
        if not (hasattr(mmap, "MADV_DONTNEED") and isinstance(self.map, mmap.mmap)):
            self.map = None

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        itemsize = self.native.itemsize
        if array.dtype != self.native or any(s < 0 or s % itemsize for s in array.strides):
            array = np.ascontiguousarray(array, dtype=self.native)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(np.asarray(array))

    def tile(self, begin: int, end: int) -> torch.Tensor:
        return self._tensor(self.array[begin:end])

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        index = rows.numpy()
        if self.map is None:
            return self._tensor(self.array[index])
        # Each row of a map may bring a large piece of the file with it: a few at a time, in the file's order.
        out = np.empty((len(index), *self.shape[1:]), dtype=self.native)
        for some in np.array_split(np.argsort(index), -(-len(index) // 16) or 1):
            out[some] = self.array[index[some]]
            if len(some):
                self.release(int(index[some[0]]), int(index[some[-1]]) + 1)
        return self._tensor(out)

    def release(self, begin: int, end: int) -> None:
        """Lets go of the pages of a memory-mapped tile, so that a pass over a file never holds the whole of it."""
        if self.map is None or self.array.strides[0] <= 0 or begin == end:
            return
        base = np.frombuffer(self.map, dtype=np.uint8).__array_interface__["data"][0]
        first = self.array[begin:end].__array_interface__["data"][0] - base
        page = mmap.PAGESIZE
        start = -(-first // page) * page
        stop = (first + (end - begin) * self.array.strides[0]) // page * page
        if stop > start:
            self.map.madvise(mmap.MADV_DONTNEED, start, stop - start)


class RowsOf:
    """Some rows of an array, in an order of their own; nothing is copied until a kernel reads them.

    Parameters
    ----------
    array : Tensor, ndarray or RowsOf
    index : Tensor of shape (n,), int64
    """

    def __init__(self, array: Any, index: torch.Tensor) -> None:
        self.array, self.index = array, index
        self.shape = (len(index), *array.shape[1:])

    def __len__(self) -> int:
        return len(self.index)

    @property
    def device(self) -> torch.device:
        return getattr(self.array, "device", torch.device("cpu")) if not is_numpy(self) else torch.device("cpu")


class _SubsetSource:
    """Some rows of a source: each tile is gathered as it is read."""

    def __init__(self, source: Source, index: torch.Tensor) -> None:
        self.source, self.index = source, index.to(source.device)
        self.shape = torch.Size((len(index), *source.shape[1:]))
        self.dtype, self.device = source.dtype, source.device

    def tile(self, begin: int, end: int) -> torch.Tensor:
        index = self.index[begin:end]
        if not len(index):
            return self.source.tile(0, 0)
        low, high = (int(x) for x in index.aminmax())
        if high - low >= 4 * len(index):
            return self.source.gather(index)
        rows = self.source.tile(low, high + 1).index_select(0, index - low)  # a file is read in its order
        self.source.release(low, high + 1)
        return rows

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        return self.source.gather(self.index[rows])

    def release(self, begin: int, end: int) -> None:
        pass  # gathered rows let go of what they touch


DIMENSIONS = {1: "one-dimensional [rows]", 2: "two-dimensional [rows, columns]", 3: "three-dimensional [N, K, C]"}


def _source(array: Any, name: str, dims: int) -> Source:
    if isinstance(array, RowsOf):
        return _SubsetSource(_source(array.array, name, dims), array.index)
    source: Source
    if isinstance(array, torch.Tensor):
        source = _TensorSource(array, name)
        if array.dtype not in DTYPES:
            raise TypeError(f"{name} must be of dtype {_WELCOME}, got {array.dtype}; call .float() first")
    elif isinstance(array, np.ndarray):
        source = _ArraySource(array, name)
    else:
        raise TypeError(
            f"{name} must be a torch.Tensor or a numpy.ndarray of dtype {_WELCOME}, got {type(array).__name__}"
        )
    if len(source.shape) != dims:
        raise ValueError(f"{name} must be {DIMENSIONS[dims]}, got shape {tuple(source.shape)}")
    if 0 in source.shape[1:]:
        what = "one column" if dims == 2 else "one draw and one class"
        raise ValueError(f"{name} must have at least {what}, got shape {tuple(source.shape)}")
    return source


class Pool:
    """Rows that can be read in tiles and gathered by index: one factor, or two for outer products.

    Parameters
    ----------
    rows : array or pair of arrays
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
    """

    def __init__(self, rows: RowsLike, name: str, dims: int = 2, *, device: torch.device | str | None = None) -> None:
        self.sources: list[Source]
        if isinstance(rows, (tuple, list)) and len(rows) == 2 and not np.isscalar(rows[0]):
            self.sources = [_source(rows[0], f"{name}[0]", dims), _source(rows[1], f"{name}[1]", dims)]
            self.numpy = all(is_numpy(r) for r in rows)
        else:
            self.sources = [_source(rows, name, dims)]
            self.numpy = is_numpy(rows)
        self.name = name
        lengths = [s.shape[0] for s in self.sources]
        if len(set(lengths)) > 1:
            raise ValueError(f"the two factors of {name} must have as many rows, got {lengths[0]} and {lengths[1]}")
        self.count = int(lengths[0])
        # tiles are made as they are read: never the whole of it at once
        self.mapped = any(isinstance(s, _SubsetSource) or getattr(s, "map", None) is not None for s in self.sources)
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
            self.sources = [_TensorSource(t, self.name) for t in whole]
        else:
            self.sources = [s if s.device == target else HostSource(s, target) for s in self.sources]
            self.streamed = self.to_host
        self.mapped = False  # nobody else reads the file

    @property
    def remote(self) -> bool:
        """Whether the host has to wait for what it reads of results."""
        return self.device.type != "cpu"

    def tile(self, begin: int, end: int) -> Factors:
        return tuple(s.tile(begin, end) for s in self.sources)

    def gather(self, rows: torch.Tensor) -> Factors:
        return tuple(s.gather(rows) for s in self.sources)

    def tiles(self, size: int) -> Iterator[tuple[int, int, Factors]]:
        """Tiles of up to `size` rows, in order; a memory map's pages are let go behind each.

        Of a streamed pool each tile is overwritten once the next is asked for.
        """
        if self.streamed:
            host = [s.host for s in self.sources if isinstance(s, HostSource)]
            yield from read_ahead(host, self.count, size, CudaStreams(self.device))
            return
        for begin in range(0, self.count, size):
            end = min(begin + size, self.count)
            yield begin, end, self.tile(begin, end)
            for source in self.sources:
                source.release(begin, end)

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
