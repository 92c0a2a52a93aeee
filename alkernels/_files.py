"""Arrays from files, and files written whole or not at all: the command line's reading and writing."""

from __future__ import annotations

import os
import pickle
import re
import secrets
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from alkernels._inputs import Array

_NAMED = re.compile(r"(.+?\.(?:npz|pth?|safetensors)):(.+)", re.IGNORECASE)


def read_array(text: str, flag: str) -> Array:
    """The array that `text`, a file or ``file:name``, stands for; memory-mapped where the format allows.

    Parameters
    ----------
    text : str
        A .npy file, or a .npz, .pt, .pth or .safetensors file; ``:name`` behind it picks one of several arrays.
    flag : str
        The option that it was given to, for errors.
    """
    path, name = split_name(text)
    if not path.is_file():
        what = "which is not a regular file" if path.exists() else "which does not exist"
        raise FileNotFoundError(f"{flag} must be a file, got {path}, {'a directory' if path.is_dir() else what}")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{flag} must be a file that ends in {_listed(list(_READERS), 'or')}, got {text}")
    try:
        return reader(path, name)
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


def _read_safetensors(path: Path, name: str | None) -> torch.Tensor:
    try:
        from safetensors import safe_open
    except ImportError:
        raise ImportError("the package safetensors is missing: pip install safetensors") from None
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(_choose(list(file.keys()), name, path))


_READERS: dict[str, Callable[[Path, str | None], Array]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".safetensors": _read_safetensors,
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
