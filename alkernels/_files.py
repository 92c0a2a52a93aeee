"""Arrays from files, and files written whole or not at all: the command line's reading and writing."""

from __future__ import annotations

import importlib
import os
import pickle
import re
import secrets
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from alkernels._datasets import InFile, ParquetColumn

_NAMED = re.compile(r"(.+?\.(?:npz|pth?|safetensors|h5|hdf5|zarr|parquet|arrow|feather)):(.+)", re.IGNORECASE)


def open_array(path: str | os.PathLike[str]) -> Any:
    """The array in a file, for functions that read it as they need it.

    Parameters
    ----------
    path : str or Path
        A file that ends in .npy, .npz, .pt, .pth, .safetensors, .h5, .hdf5, .parquet, .arrow or .feather, or a .zarr
        folder. ``path:name`` is one of several arrays, or a column.

    Returns
    -------
    array
        .npy and .pt files are mapped; datasets of HDF5 and Zarr, slices of safetensors and columns of fixed-size lists
        are read a slice at a time; .npz files, compressed .arrow and .feather files, and arrays of integers, whole.

    Raises
    ------
    ValueError
        A file that cannot be read as an array, or of several arrays without a name.
    FileNotFoundError
        A file that does not exist.
    ImportError
        A format whose package (h5py, zarr, safetensors, pyarrow) is not installed.

    Notes
    -----
    Rows are picked in Parquet and gzip'ed files too, but what is stored in pieces is unpacked a piece at a time: where
    picks are far apart, reading them costs as much as a pass. Parquet unpacks from the start of a row group.

    Examples
    --------
    >>> import alkernels as alk
    >>> pool = alk.open_array("pool.h5:features")  # doctest: +SKIP
    >>> alk.k_center_greedy(pool, 1000, memory_limit=400_000_000)  # doctest: +SKIP
    """
    return read_array(os.fspath(path), "path")


def read_array(text: str, flag: str) -> Any:
    """The array that `text`, a file or ``file:name``, stands for: :func:`open_array`.

    Parameters
    ----------
    text : str
    flag : str
        The option that it was given to, for errors.
    """
    path, name = split_name(text)
    if not path.is_file() and not (path.suffix.lower() == ".zarr" and path.is_dir()):
        what = "which is not a regular file" if path.exists() else "which does not exist"
        raise FileNotFoundError(f"{flag} must be a file, got {path}, {'a directory' if path.is_dir() else what}")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{flag} must be a file that ends in {_listed(list(_READERS), 'or')}, got {text}")
    try:
        return reader(path, name)
    except ImportError as error:
        raise ImportError(f"{flag} {text} cannot be read: {error}") from None
    except Exception as error:  # what a damaged file makes the readers raise is documented nowhere
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{flag} {text} cannot be read as an array: {reason}") from error


def split_name(text: str) -> tuple[Path, str | None]:
    """``file.npz:name`` as the file and the name; a file that is really called so wins."""
    match = _NAMED.fullmatch(text)
    if match is None or os.path.exists(text):
        return Path(text), None
    return Path(match[1]), match[2]


def _read_npy(path: Path, name: str | None) -> np.ndarray:
    with open(path, "rb") as file:
        # np.load takes anything else for a pickle, and says so
        if file.read(6) != b"\x93NUMPY":
            raise ValueError("it is not in NumPy's .npy format")
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _read_npz(path: Path, name: str | None) -> np.ndarray:
    _check_zip(path, "np.savez")
    with np.load(path, allow_pickle=False) as archive:
        array = archive[_choose(archive.files, name, path)]
    if not isinstance(array, np.ndarray):
        raise ValueError(f"its entry {name} is not in NumPy's .npy format")
    return array


def _read_torch(path: Path, name: str | None) -> torch.Tensor:
    _check_zip(path, "torch.save")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        # torch's message advises to load it unsafely
        raise ValueError("it holds Python objects, and only tensors and plain containers of them are loaded") from None
    if isinstance(loaded, torch.Tensor) and name is None:
        return loaded
    if not isinstance(loaded, dict):
        what = "one tensor without a name" if isinstance(loaded, torch.Tensor) else f"a {type(loaded).__name__}"
        raise ValueError(f"it holds {what}, not tensors by name")
    tensors = {str(key): value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
    return tensors[_choose(list(tensors), name, path)]


def _read_safetensors(path: Path, name: str | None) -> Any:
    file = _package("safetensors").safe_open(path, framework="pt")
    rows = file.get_slice(_choose(list(file.keys()), name, path))
    return InFile(rows, path) if len(rows.get_shape()) > 1 and "F" in rows.get_dtype() else rows[...]


def _read_hdf5(path: Path, name: str | None) -> Any:
    h5py = _package("h5py")
    file = h5py.File(path, "r")
    found: list[str] = []
    file.visititems(lambda key, item: found.append(key) if isinstance(item, h5py.Dataset) else None)
    if name is not None and isinstance(file.get(name), h5py.Dataset):  # a link, too
        return _rows(file[name])
    return _rows(file[_choose(found, name, path)])


def _read_zarr(path: Path, name: str | None) -> Any:
    zarr = _package("zarr")
    found = zarr.open(path, mode="r")
    if isinstance(found, zarr.Array):
        return _rows(found)
    inside = [key for key, item in found.members(max_depth=None) if isinstance(item, zarr.Array)]
    return _rows(found[_choose(inside, name, path)])


def _read_parquet(path: Path, name: str | None) -> Any:
    schema = _package("pyarrow.parquet").read_schema(path)
    column = _choose(list(schema.names), name, path)
    if not _of_fixed_size(schema.field(column).type):
        return _package("pyarrow.parquet").read_table(path, columns=[column])[column].to_numpy()
    return ParquetColumn(path, column)


def _read_arrow(path: Path, name: str | None) -> Any:
    arrow = _package("pyarrow")
    file = arrow.memory_map(str(path))
    try:
        table = arrow.ipc.open_file(file).read_all()
    except arrow.ArrowInvalid:
        file.seek(0)
        table = arrow.ipc.open_stream(file).read_all()
    column = table[_choose(table.column_names, name, path)]
    return InFile(column, path) if _of_fixed_size(column.type) else column.to_numpy()


def _of_fixed_size(kind: Any) -> bool:
    """Whether an Arrow type is that of fixed-size lists, or of tensors of a fixed shape."""
    return hasattr(getattr(kind, "storage_type", kind), "list_size")


def _rows(dataset: Any) -> Any:
    """Rows of floating-point numbers as they are, to be read in slices; anything else is small, and read whole."""
    return dataset if len(dataset.shape) > 1 and dataset.dtype.kind == "f" else np.asarray(dataset[...])


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise ImportError(f"the package {package} is missing, pip install 'alkernels[files]' brings it") from None


_READERS: dict[str, Callable[[Path, str | None], Any]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".safetensors": _read_safetensors,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
    ".zarr": _read_zarr,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
}


def _check_zip(path: Path, writer: str) -> None:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"it is not a complete zip archive as {writer} writes it")


def _choose(names: Sequence[str], name: str | None, path: Path) -> str:
    """`name`, or the only one there is."""
    if not names:
        raise ValueError("it holds no arrays")
    if name is None and len(names) == 1:
        return names[0]
    if name is None or name not in names:
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        wanted = f"pick one as in {path}:{names[0]}" if name is None else f"{name} is none of them"
        raise ValueError(f"it holds the arrays {shown}; {wanted}")
    return name


def _listed(words: Sequence[str], conjunction: str) -> str:
    return ", ".join(words[:-1]) + f" {conjunction} {words[-1]}" if len(words) > 1 else words[0]


def check_out(text: str, extensions: Sequence[str], inputs: Sequence[str] = (), flag: str = "--out") -> Path:
    """Where to write, checked before anything is computed: a known extension, a folder, none of the input files."""
    # The file behind a link is replaced, not the link.
    path = Path(os.path.realpath(text))
    if path.suffix.lower() not in extensions:
        raise ValueError(f"{flag} must end in {_listed(extensions, 'or')}, got {text}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{flag} must be in an existing folder, got {text}")
    if path.is_dir():
        raise IsADirectoryError(f"{flag} must be a file, got {text}, a directory")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{flag} must be in a folder that can be written to, got {text}")
    for source in inputs:
        file = split_name(source)[0]
        if path.exists() and file.exists() and path.samefile(file):
            raise ValueError(f"{flag} must not be a file that is read, got {text}")
    return path


@contextmanager
def replacing(path: Path, flag: str = "--out") -> Iterator[BinaryIO]:
    """A binary file to write to that becomes `path` when all went well; else `path` stays what it was."""
    # Not tempfile's: its files are unreadable for others, whatever the umask says.
    temporary = path.with_name(f".alkernels-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(f"{flag} {path} could not be written: {error.strerror or error}") from error
        raise


SELECTION_EXTENSIONS = (".npy", ".npz", ".txt", ".csv")


def write_selection(path: Path, **arrays: np.ndarray) -> None:
    """Writes .npy (indices), .npz (everything), or .txt and .csv (one index a line)."""
    extension = path.suffix.lower()
    with replacing(path) as file:
        if extension == ".npy":
            np.save(file, arrays["indices"])
        elif extension == ".npz":
            np.savez(file, **arrays)  # type: ignore[arg-type]
        else:
            file.write("".join(f"{i}\n" for i in arrays["indices"]).encode())
