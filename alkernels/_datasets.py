"""Datasets in files as rows: HDF5, Zarr, safetensors, columns of Arrow and Parquet; none is imported here."""

from __future__ import annotations

import bisect
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alkernels._sources import TORCH_DTYPES, WANTED, WELCOME, File, as_view, check_native, shape_of
from alkernels._streaming import Source

_SAFETENSORS_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
# Rows gathered from a file are read in runs: one goes on over a gap of so many bytes, up to so many bytes in all.
_BYTES_A_GAP, _BYTES_A_RUN = 1 << 14, 4 << 20


class InFile:
    """A dataset with the file that it lies in, which must stay as it is while it is read.

    Parameters
    ----------
    dataset
        A slice of safetensors or a column of Arrow: they do not say where they are from.
    path : Path
    """

    def __init__(self, dataset: Any, path: Path) -> None:
        self.dataset, self.path = dataset, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def __getitem__(self, rows: Any) -> Any:
        return self.dataset[rows]

    def __len__(self) -> int:
        return int(shape_of(self.dataset)[0])


class SlicedSource:
    """What has a shape, a dtype and slices of rows: datasets of HDF5 and Zarr, slices of safetensors, the like."""

    device = torch.device("cpu")
    stored = sliced = True
    run_bytes = 1 << 62  # rows are gathered by slices of no more than this

    def __init__(self, array: Any, name: str) -> None:
        self.array, self.name = array, name
        if hasattr(array, "get_shape"):  # safetensors
            self.shape = tuple(array.get_shape())
            kind = array.get_dtype()
            if kind not in _SAFETENSORS_DTYPES:
                raise TypeError(f"{name} must be of dtype {WELCOME}, got {kind}")
            self.dtype = _SAFETENSORS_DTYPES[kind]
            try:
                self.numpy = not isinstance(array[0:0], torch.Tensor)
            except TypeError as error:  # NumPy has no bfloat16
                raise TypeError(f"{name} of dtype {kind} must be opened with framework='pt': {error}") from None
        else:
            self.shape = tuple(int(n) for n in array.shape)
            self.dtype = TORCH_DTYPES[check_native(array.dtype, name).itemsize]
            self.numpy = True
            if np.asarray(array[0:0]).ndim != len(self.shape):  # sparse matrices
                raise TypeError(WANTED.format(name=name, got=type(array).__name__))
        # A slice reads whole chunks of rows: shards where Zarr has them.
        chunks = getattr(array, "shards", None) or getattr(array, "chunks", None)
        whole = chunks[0] if isinstance(chunks, (tuple, list)) and chunks else 1
        self.chunk = whole if isinstance(whole, int) else 1
        self.file = File(_path_of(array), name)

    def tile(self, begin: int, end: int) -> torch.Tensor:
        self.file.check()  # reading behind the end of a mapped file would end the process by a signal
        rows = self.array[begin:end]
        if len(rows) != end - begin:
            raise ValueError(f"{self.name} must not shrink while it is read, got {len(rows)} rows of {begin} to {end}")
        if isinstance(rows, torch.Tensor):
            return rows
        rows = np.asarray(rows)
        return as_view(rows, rows.dtype.newbyteorder("="))

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        width = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        chunk = min(self.chunk, max(1, self.run_bytes // width))
        return gather_runs(
            self, rows, max(chunk, _BYTES_A_GAP // width), max(chunk, min(_BYTES_A_RUN, self.run_bytes) // width)
        )

    def release(self, begin: int, end: int) -> None:
        pass

    def check(self) -> None:
        self.file.check()


def gather_runs(source: Any, rows: torch.Tensor, gap: int, most: int) -> torch.Tensor:
    """Some rows of what gives slices only, read in the file's order, near ones by one slice."""
    out = torch.empty((len(rows), *source.shape[1:]), dtype=source.dtype)
    if not len(rows):
        return out
    order = rows.argsort()
    wanted = rows[order].tolist()
    first = 0
    for last in range(1, len(wanted) + 1):
        if last < len(wanted) and wanted[last] - wanted[last - 1] <= gap and wanted[last] - wanted[first] < most:
            continue
        low = wanted[first]
        run = source.tile(low, wanted[last - 1] + 1)
        out[order[first:last]] = run[torch.tensor(wanted[first:last]) - low]
        first = last
    return out


class ColumnSource(SlicedSource):
    """A column of fixed-size lists: Arrow's, in memory or in a mapped file."""

    chunk, numpy = 1, True

    def __init__(self, column: Any, name: str) -> None:
        self.name = name
        self.width, self.native = fixed_size(column.type, name)
        self.dtype = TORCH_DTYPES[self.native.itemsize]
        self.parts = [part for part in (getattr(column, "chunks", None) or [column]) if len(part)]
        self.ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64).tolist()
        self.shape = (len(column), self.width)
        self.file = File(_path_of(column), name)

    def tile(self, begin: int, end: int) -> torch.Tensor:
        self.file.check()
        pieces = []
        for part in range(bisect.bisect_right(self.ends, begin), len(self.parts)):
            start = self.ends[part] - len(self.parts[part])
            if start >= end:
                break
            low = max(begin, start)
            pieces.append(list_values(self.parts[part].slice(low - start, min(end, self.ends[part]) - low), low, self))
        rows = (
            np.concatenate(pieces)
            if len(pieces) != 1 and pieces
            else pieces[0]
            if pieces
            else np.empty((0, self.width), self.native)
        )
        return as_view(rows, self.native)


def fixed_size(kind: Any, name: str) -> tuple[int, np.dtype]:
    """The width and dtype of an Arrow type of fixed-size lists."""
    kind = getattr(kind, "storage_type", kind)  # of tensors of a fixed shape
    if not hasattr(kind, "list_size"):
        raise TypeError(f"{name} must be a column of fixed-size lists of numbers, got one of type {kind}")
    native = np.dtype(kind.value_type.to_pandas_dtype())
    return int(kind.list_size), check_native(native, name)


def list_values(part: Any, row: int, source: Any) -> np.ndarray:
    """The numbers of an Arrow array of fixed-size lists, [rows, columns]; `row` is that of the first, for errors."""
    part = getattr(part, "storage", part)
    values = part.flatten()  # leaves out lists that are null
    if part.null_count or values.null_count:
        raise ValueError(f"{source.name} must hold no null, got one in rows {row} to {row + len(part) - 1}")
    if not len(values):
        return np.empty((0, source.width), source.native)
    numbers = np.frombuffer(values.buffers()[1], source.native)  # to_numpy would import pandas
    return numbers[values.offset : values.offset + len(values)].reshape(-1, source.width)


class ParquetColumn:
    """A column of fixed-size lists in a Parquet file, as something that can be sliced by rows.

    Slices in order are decoded once, one after the other, a part of a row group at a time. Others begin at the start of
    their row group, for the format has no other place to begin at.

    Parameters
    ----------
    path : str or Path
    column : str

    Attributes
    ----------
    shape : tuple
    dtype : numpy.dtype
    """

    def __init__(self, path: str | Path, column: str) -> None:
        import pyarrow.parquet as parquet

        self.path, self.column = Path(path), column
        # neither the whole column of a row group ahead, nor the whole of it at once
        self._file = parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20)
        names = self._file.schema_arrow.names
        if column not in names:
            raise ValueError(f"{self.path} must have a column {column}, got {', '.join(names)}")
        kind = self._file.schema_arrow.field(column).type
        self.width, self.native = fixed_size(kind, f"{self.path}:{column}")
        self.dtype = self.native
        self.name = f"{self.path}:{column}"
        groups = [self._file.metadata.row_group(g).num_rows for g in range(self._file.metadata.num_row_groups)]
        self._starts = np.cumsum([0, *groups], dtype=np.int64).tolist()
        self.shape = (self._starts[-1], self.width)
        self._batch_rows = max(1, (1 << 22) // (self.width * self.dtype.itemsize))
        self._lock = threading.Lock()
        self._batches: Iterator[Any] = iter(())
        self._at = -1  # the row that the next batch begins with
        self._rest = np.empty((0, self.width), self.dtype)  # decoded, not yet handed out; the rows before `_at`

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: slice) -> np.ndarray:
        if not isinstance(rows, slice):
            raise TypeError(f"rows of a ParquetColumn must be a slice, got {type(rows).__name__}")
        begin, end, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"a slice of a ParquetColumn must have step 1, got {step}")
        end = max(begin, end)
        out = np.empty((end - begin, self.width), self.dtype)
        with self._lock:
            if begin < end:
                self._seek(begin)
            done = 0
            while done < len(out):
                if not len(self._rest):
                    self._decode()
                some = self._rest[: len(out) - done]
                out[done : done + len(some)] = some
                self._rest = self._rest[len(some) :]
                done += len(some)
        return out

    def _seek(self, row: int) -> None:
        held = self._at - len(self._rest)
        group = bisect.bisect_right(self._starts, row) - 1
        if not (0 <= held <= row and (row < self._at or self._starts[group] <= self._at)):
            more = range(group, len(self._starts) - 1)
            self._batches = self._file.iter_batches(self._batch_rows, row_groups=more, columns=[self.column])
            self._at, self._rest = self._starts[group], self._rest[:0]
        while self._at <= row:
            self._decode()
        self._rest = self._rest[len(self._rest) - (self._at - row) :]

    def _decode(self) -> None:
        at, self._at, self._rest = self._at, -1, self._rest[:0]  # after an error the next slice starts anew
        batch = next(self._batches, None)
        if batch is None:
            raise ValueError(f"{self.name} must not shrink while it is read, got {at} rows of {len(self)}")
        self._rest = list_values(batch.column(0), at, self)
        self._at = at + len(self._rest)


def _path_of(array: Any) -> Any:
    """The file that something lies in, where it says so."""
    path = getattr(array, "path", None)  # of what open_array opened
    if not isinstance(path, Path):
        path = getattr(getattr(array, "file", None), "filename", None)  # of HDF5
    return path if isinstance(path, (str, bytes, os.PathLike)) else None


def dataset_source(array: Any, name: str) -> Source:
    """The rows of what is neither a tensor nor an array of NumPy's."""
    return (
        ColumnSource(array, name) if hasattr(array, "type") and hasattr(array, "slice") else SlicedSource(array, name)
    )
