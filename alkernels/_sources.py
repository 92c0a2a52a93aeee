"""Rows that can be sliced: tensors, arrays, and what lies in files, read a slice at a time."""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import os
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from alkernels._streaming import Source

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WELCOME = "float16, bfloat16, float32 or float64"
_NUMPY_DTYPES = {np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)}
TORCH_DTYPES = {2: torch.float16, 4: torch.float32, 8: torch.float64}
DIMENSIONS = {1: "one-dimensional [rows]", 2: "two-dimensional [rows, columns]", 3: "three-dimensional [N, K, C]"}
# Linux reads no more ahead at a time than a device's setting says, 128 kB to some MB.
_BYTES_AHEAD = 1 << 20
_libc: Any = None if sys.platform == "win32" else ctypes.CDLL(None)
WANTED = (
    f"{{name}} must be a torch.Tensor or a numpy.ndarray of dtype {WELCOME}, or a dataset whose slices are such rows "
    "(HDF5, Zarr, safetensors, Arrow), got {got}"
)


# ---- what was read ----


@dataclass
class Reads:
    """What :func:`count_reads` counts, of pools in files.

    Attributes
    ----------
    passes : int
        Walks over a pool from its first row on.
    bytes : int
        Read in passes.
    gathered_bytes : int
        Read beside them, row by row.
    """

    passes: int = 0
    bytes: int = 0
    gathered_bytes: int = 0


_reads: ContextVar[tuple[Reads, ...]] = ContextVar("alkernels_reads", default=())


@contextmanager
def count_reads() -> Iterator[Reads]:
    """Counts what is read of pools in files, by what this thread calls within the block.

    Yields
    ------
    Reads
        ``passes``, ``bytes`` and ``gathered_bytes``, counted as it goes on.

    Examples
    --------
    >>> import numpy as np, alkernels as alk
    >>> pool = np.load("pool.npy", mmap_mode="r")  # doctest: +SKIP
    >>> with alk.count_reads() as reads:  # doctest: +SKIP
    ...     picks = alk.k_center_greedy(pool, 1000)
    >>> reads.passes, reads.bytes  # doctest: +SKIP
    (9, 36864000000)
    """
    reads = Reads()
    token = _reads.set((*_reads.get(), reads))
    try:
        yield reads
    finally:
        _reads.reset(token)


# ---- in memory ----


class TensorSource:
    """A tensor, sliced without copies."""

    stored, sliced, chunk, numpy = False, False, 1, False

    def __init__(self, tensor: torch.Tensor, name: str) -> None:
        if tensor.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, got layout {tensor.layout}; call .to_dense() first")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name} must be of dtype {WELCOME}, got {tensor.dtype}; call .float() first")
        self.tensor = tensor.detach()
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device

    def tile(self, begin: int, end: int) -> torch.Tensor:
        return self.tensor[begin:end]

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        return self.tensor.index_select(0, rows)

    def release(self, begin: int, end: int) -> None:
        pass

    def check(self) -> None:
        pass


class ArraySource:
    """A NumPy array or memory map. Nothing is copied but gathered rows (and tiles that torch cannot view)."""

    device, chunk, numpy = torch.device("cpu"), 1, True

    def __init__(self, array: np.ndarray, name: str) -> None:
        self.native = check_native(array.dtype, name)
        self.array, self.name = array, name
        self.shape = array.shape
        self.dtype = TORCH_DTYPES[self.native.itemsize]
        self.map = getattr(array, "_mmap", None) if getattr(array, "mode", "c") != "c" else None
        if not (hasattr(mmap, "MADV_DONTNEED") and isinstance(self.map, mmap.mmap)):
            self.map = None
        self.stored = self.sliced = self.map is not None
        if self.map is not None:
            # where the first row begins in the map, and how long the file must be
            self.address = np.frombuffer(self.map, np.uint8).ctypes.data
            self.first = array.ctypes.data - self.address
            last = sum(s * (n - 1) for s, n in zip(array.strides, array.shape, strict=True) if s > 0 and n > 0)
            offset = int(array.offset)  # type: ignore[attr-defined]
            begin = offset - offset % mmap.ALLOCATIONGRANULARITY
            self.needed = begin + self.first + last + array.itemsize if array.size else 0
            self.file = File(array.filename, name)  # type: ignore[attr-defined]
            # what the system has of a file it tells who owns it or may write to it, and everybody else that it has all
            self.tells = self.file.was is not None and (
                self.file.was.st_uid == os.geteuid() or os.access(self.file.path, os.W_OK)
            )
            _hear_the_warning()  # before another thread does
            self.asked = (-1, 0)  # where the next tile begins, and up to where it was asked for
            self.check()

    def tile(self, begin: int, end: int) -> torch.Tensor:
        if self.map is not None and begin < end and self.array.strides[0] > 0:
            self._check_size()
            stride = self.array.strides[0]
            first = self.first + begin * stride
            last = min(first + (end - begin) * stride, len(self.map))
            # Asked for as a whole and the next tile with it: a disk is never idle, where faults alone read it at half
            # its speed.
            begin_of_next, asked = self.asked
            ahead = min(2 * last - first, len(self.map))
            start = asked if first == begin_of_next else first
            for piece in range(start - start % mmap.PAGESIZE, ahead, _BYTES_AHEAD):
                if not self._is_there(piece):
                    self._advise(mmap.MADV_WILLNEED, piece, min(_BYTES_AHEAD, ahead - piece))
            self.asked = (last, ahead)
            # Waits for the last byte of each piece, so that kernels in other threads need not; they map the pages
            # themselves, all of them at once. (A tensor: NumPy would keep the interpreter waiting.)
            ends = np.frombuffer(self.map, np.uint8)[first + (last - first - 1) % _BYTES_AHEAD : last : _BYTES_AHEAD]
            as_view(ends, ends.dtype).sum()
        return self._tensor(self.array[begin:end])

    def _advise(self, advice: int, start: int, size: int) -> None:
        """What the map's own method does, which keeps the interpreter waiting while the system works."""
        _libc.madvise(ctypes.c_void_p(self.address + start), ctypes.c_size_t(size), advice)

    def _is_there(self, start: int) -> bool:
        """Whether the system has a page of the file in memory: asking for it would cost more than mapping it."""
        found = ctypes.c_ubyte()
        asked = ctypes.c_void_p(self.address + start), ctypes.c_size_t(1), ctypes.byref(found)
        return self.tells and _libc.mincore(*asked) == 0 and bool(found.value & 1)

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        index = rows.numpy()
        if self.map is None:
            return self._tensor(self.array[index])
        self._check_size()
        # Each row of a map may bring a large piece of the file with it: a few at a time, in the file's order, all of
        # them asked for at first, so that a disk has many to choose from.
        out = np.empty((len(index), *self.shape[1:]), dtype=self.native)
        order = np.argsort(index)
        stride = self.array.strides[0]
        self._advise(mmap.MADV_RANDOM, 0, len(self.map))
        try:
            for row in index[order].tolist() if stride > 0 else ():
                first = self.first + row * stride
                start = first - first % mmap.PAGESIZE
                if not self._is_there(start):
                    self._advise(mmap.MADV_WILLNEED, start, min(first + stride, len(self.map)) - start)
            for some in np.array_split(order, -(-len(index) // 16) or 1):
                out[some] = self.array[index[some]]
                if len(some):
                    self.release(int(index[some[0]]), int(index[some[-1]]) + 1)
        finally:
            self._advise(mmap.MADV_NORMAL, 0, len(self.map))
        return self._tensor(out)

    def release(self, begin: int, end: int) -> None:
        """Lets go of the pages of a memory-mapped tile, so that a pass over a file never holds the whole of it."""
        if self.map is None or self.array.strides[0] <= 0 or begin == end:
            return
        first = self.first + begin * self.array.strides[0]
        page = mmap.PAGESIZE
        start = -(-first // page) * page
        stop = (first + (end - begin) * self.array.strides[0]) // page * page
        if stop > start:
            self._advise(mmap.MADV_DONTNEED, start, stop - start)

    def check(self) -> None:
        """Before each walk: the file is what it was."""
        if self.map is not None:
            self._check_size()
            self.file.check()

    def _check_size(self) -> None:
        """Reading behind the end of a file that was cut off would end the process by a signal."""
        assert self.map is not None
        size = self.map.size()
        if size < self.needed:
            raise ValueError(f"{self.name} must not shrink while it is read, got {size} of {self.needed} bytes")

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return as_view(array, self.native)


def check_native(dtype: Any, name: str) -> np.dtype:
    native = np.dtype(dtype).newbyteorder("=")
    if native not in _NUMPY_DTYPES:
        raise TypeError(
            f"{name} must be of dtype float16, float32 or float64 (torch tensors: bfloat16 too), got {dtype}"
        )
    return native


def as_view(array: np.ndarray, native: np.dtype) -> torch.Tensor:
    """A view where torch can have one."""
    itemsize = native.itemsize
    if array.dtype != native or any(s < 0 or s % itemsize for s in array.strides):
        array = np.ascontiguousarray(array, dtype=native)
    if not array.flags.writeable:
        _hear_the_warning()
    return torch.from_numpy(np.asarray(array))


@functools.cache
def _hear_the_warning() -> None:
    """Torch warns of arrays that are not writable, once. Here and not at each: filters are those of all threads."""
    array = np.empty(1)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        torch.from_numpy(array)


class File:
    """A file that must stay as it is. One of the same name that takes its place is another one, and no concern."""

    def __init__(self, path: Any, name: str) -> None:
        self.path, self.name = path, name
        self.was = self._now()

    def _now(self) -> os.stat_result | None:
        try:
            return None if self.path is None else os.stat(self.path)
        except OSError:
            return None  # gone, or never one: what is open can still be read

    def check(self) -> None:
        now = self._now()
        if self.was is None or now is None or now.st_ino != self.was.st_ino:
            return
        if (now.st_size, now.st_mtime_ns) != (self.was.st_size, self.was.st_mtime_ns):
            raise ValueError(
                f"{self.name} must not change while it is read, but {self.path} did: {self.was.st_size} bytes then, "
                f"{now.st_size} now, written {now.st_mtime - self.was.st_mtime:.3g} s later"
            )


# ---- some rows ----


class RowsOf:
    """Some rows of an array, in an order of their own; nothing is copied until a kernel reads them.

    Parameters
    ----------
    array : Tensor, ndarray, RowsOf or anything that slices
    index : Tensor of shape (n,), int64
    """

    def __init__(self, array: Any, index: torch.Tensor) -> None:
        self.array, self.index = array, index
        self.shape = (len(index), *shape_of(array)[1:])

    def __len__(self) -> int:
        return len(self.index)

    @property
    def device(self) -> torch.device:
        device = getattr(self.array, "device", None)
        return device if isinstance(device, torch.device) else torch.device("cpu")


class WithOnes:
    """An array's rows with a 1 behind each; like :class:`RowsOf`, nothing is copied until a kernel reads them.

    Parameters
    ----------
    array : Tensor, ndarray, RowsOf or anything that slices, of shape (N, D)
    """

    def __init__(self, array: Any) -> None:
        self.array = array
        count, width = shape_of(array)
        self.shape = (count, width + 1)


class SubsetSource:
    """Some rows of a source: each tile is gathered as it is read."""

    sliced, chunk = True, 1

    def __init__(self, source: Source, index: torch.Tensor) -> None:
        self.source, self.index = source, index.to(source.device)
        self.shape = torch.Size((len(index), *source.shape[1:]))
        self.dtype, self.device = source.dtype, source.device
        self.stored, self.numpy = source.stored, source.numpy

    def tile(self, begin: int, end: int) -> torch.Tensor:
        index = self.index[begin:end]
        if not len(index):
            return self.source.tile(0, 0)
        # in parts: what is read of a file at a time is no more than the tile
        parts = [self._some(part) for part in index.split(-(-len(index) // 4) if self.stored else len(index))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _some(self, index: torch.Tensor) -> torch.Tensor:
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

    def check(self) -> None:
        self.source.check()


class OnesSource:
    """A source's rows with a 1 behind each: each tile is made as it is read."""

    sliced = True

    def __init__(self, source: Source) -> None:
        self.source = source
        self.shape = torch.Size((source.shape[0], source.shape[1] + 1))
        self.dtype, self.device = source.dtype, source.device
        self.stored, self.chunk, self.numpy = source.stored, source.chunk, source.numpy

    def tile(self, begin: int, end: int) -> torch.Tensor:
        out = torch.empty((end - begin, self.shape[1]), dtype=self.dtype, device=self.device)
        out[:, -1] = 1
        # in parts: what is read of a file at a time beside the tile is a part of it
        parts = out.split(max(1, -(-len(out) // 4) if self.stored else len(out)))
        for part in parts:
            part[:, :-1] = self.source.tile(begin, begin + len(part))
            self.source.release(begin, begin + len(part))
            begin += len(part)
        return out

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(self.source.gather(rows), (0, 1), value=1.0)

    def release(self, begin: int, end: int) -> None:
        self.source.release(begin, end)  # pages that two parts share

    def check(self) -> None:
        self.source.check()


def shape_of(array: Any) -> tuple[int, ...]:
    """Of anything that :func:`source_of` takes."""
    if hasattr(array, "get_shape"):
        return tuple(array.get_shape())
    kind: Any = getattr(array, "type", None)
    kind = getattr(kind, "storage_type", kind)
    if hasattr(kind, "list_size"):
        return (len(array), kind.list_size)
    if not hasattr(array, "shape"):  # other columns of Arrow
        raise TypeError(WANTED.format(name="the pool", got=f"{type(array).__name__} of type {kind}"))
    return tuple(array.shape)


def dtype_name(array: Any) -> str:
    """Of anything that :func:`source_of` takes, and other arrays."""
    known = getattr(array, "dtype", None)
    return str(source_of(array, "", len(shape_of(array))).dtype if known is None else known).removeprefix("torch.")


def is_numpy(array: Any) -> bool:
    """Whether results for an array are to be NumPy's: those for tensors, in memory or in a file, are tensors."""
    if isinstance(array, RowsOf):
        return is_numpy(array.array)
    if hasattr(array, "get_shape"):
        return not isinstance(array[0:0], torch.Tensor)
    return not isinstance(array, torch.Tensor) and is_rows(array)


def is_rows(array: Any) -> bool:
    """Whether it looks like rows of numbers: a shape and a dtype, or a column of Arrow's."""
    if isinstance(array, (torch.Tensor, np.ndarray, RowsOf)) or hasattr(array, "get_shape"):
        return True
    if hasattr(array, "type") and hasattr(array, "slice"):  # a column of Arrow
        return True
    return (
        hasattr(array, "shape") and hasattr(array, "dtype") and hasattr(array, "__getitem__") and not np.isscalar(array)
    )


def source_of(array: Any, name: str, dims: int) -> Source:
    """The rows of an array, checked for their kind and shape."""
    if isinstance(array, RowsOf):
        return SubsetSource(source_of(array.array, name, dims), array.index)
    if isinstance(array, WithOnes):
        return OnesSource(source_of(array.array, name, dims))
    source: Source
    if isinstance(array, torch.Tensor):
        source = TensorSource(array, name)
    elif isinstance(array, np.ndarray):
        source = ArraySource(array, name)
    elif not is_rows(array):
        raise TypeError(WANTED.format(name=name, got=type(array).__name__))
    else:
        from alkernels._datasets import dataset_source

        source = dataset_source(array, name)
    if len(source.shape) != dims:
        raise ValueError(f"{name} must be {DIMENSIONS[dims]}, got shape {tuple(source.shape)}")
    if 0 in source.shape[1:]:
        what = "one column" if dims == 2 else "one draw and one class"
        raise ValueError(f"{name} must have at least {what}, got shape {tuple(source.shape)}")
    return source


# ---- reading ahead ----


def bytes_a_row(sources: list[Source]) -> int:
    return sum(s.dtype.itemsize * math.prod(s.shape[1:]) for s in sources)


def read_slabs(
    sources: list[Source], count: int, size: int, most: int
) -> Iterator[tuple[int, int, tuple[torch.Tensor, ...]]]:
    """Tiles of up to `size` rows of what is read as it is walked, in order.

    Slabs of many tiles are read, one by a thread while the last is worked on, and let go of behind. They end where
    chunks of the file end, if those are no larger than a slab, and each row is read once.

    Parameters
    ----------
    sources : list of Source
    count, size : int
    most : int
        Bytes of a slab; two are held.
    """
    rows = min(max(1, most // bytes_a_row(sources)), count)
    size = min(size, rows)
    if size <= 0:
        return
    chunk = math.lcm(*(s.chunk for s in sources))
    rows -= rows % next((unit for unit in (math.lcm(size, chunk), chunk, size) if unit <= rows), 1)
    slabs = [(begin, min(begin + rows, count)) for begin in range(0, count, rows)]
    stored = [s for s in sources if s.stored]
    counters = _reads.get() if stored else ()
    for source in stored:
        source.check()
    for reads in counters:
        reads.passes += 1
    of_files = bytes_a_row(stored)

    def turn(done: tuple[int, int] | None, coming: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        """Lets go of one slab and reads another."""
        if done is not None:
            for source in sources:
                source.release(*done)
        return tuple(s.tile(*coming) for s in sources)

    ahead = ThreadPoolExecutor(1, "alkernels-read-ahead") if stored and len(slabs) > 1 else None
    coming: Future[tuple[torch.Tensor, ...]] | None = None
    carried: tuple[torch.Tensor, ...] = ()  # the start of a tile that goes on in the next slab
    begin = 0
    done: tuple[int, int] | None = None
    try:
        for number, (first, last) in enumerate(slabs):
            factors = turn(done, (first, last)) if coming is None else coming.result()
            if ahead is not None and number + 1 < len(slabs):
                coming = ahead.submit(turn, done, slabs[number + 1])
            for reads in counters:
                reads.bytes += (last - first) * of_files
            while begin < last:
                end = min(begin + size, count)
                tile = tuple(f[max(begin, first) - first : end - first] for f in factors)
                if carried:
                    tile = tuple(torch.cat(parts) for parts in zip(carried, tile, strict=True))
                    carried = ()
                if end > last:
                    carried = tuple(t.clone() for t in tile)
                    break
                yield begin, end, tile
                begin = end
            del factors, tile
            done = (first, last)
    finally:
        if ahead is not None:
            ahead.shutdown(cancel_futures=True)
        for source in sources:
            source.release(0, count)


def gathered(sources: list[Source], rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Some rows, in an order of their own."""
    stored = [s for s in sources if s.stored]
    if stored:
        for reads in _reads.get():
            reads.gathered_bytes += len(rows) * bytes_a_row(stored)
    return tuple(s.gather(rows) for s in sources)


def free_host_memory() -> int:
    """Bytes of host memory that can be had without swapping, as far as the system and the process's limits tell."""
    free = 1 << 32
    try:
        with open("/proc/meminfo") as lines:
            free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        if "SC_AVPHYS_PAGES" in os.sysconf_names:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if sys.platform != "win32":
        import resource

        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            limit = resource.getrlimit(kind)[0]
            if limit != resource.RLIM_INFINITY:
                free = min(free, limit // 2)
    return free
