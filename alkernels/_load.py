"""Loads the compiled libraries and says what they are."""

import warnings
from pathlib import Path

import torch  # first: _C carries no path to torch's libraries

from alkernels import _C  # registers schemas and CPU kernels

version: str = _C.version


def _load_cuda(library: Path) -> bool:
    """Loads the CUDA kernels where torch has CUDA and they were built; looks for no GPU."""
    if torch.version.cuda is None or not library.exists():
        return False
    try:
        torch.ops.load_library(library)
    except OSError as error:
        warnings.warn(
            f"the CUDA kernels of alkernels do not load beside torch {torch.__version__} and are left out, rebuild "
            f"alkernels with this torch: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


_cuda = _load_cuda(Path(__file__).with_name("libalkernels_cuda.so"))


def has_cuda_kernels() -> bool:
    """Whether this installation carries CUDA kernels and loaded them."""
    return _cuda


def build_info() -> dict[str, str]:
    """What the CPU kernels were built with and which instruction set they run on.

    Returns
    -------
    dict
        ``version``, ``torch`` (the version whose headers were used; any from 2.10 on runs), ``compiler``,
        ``cpu_capability`` (``portable``, ``avx2`` or ``avx512``; the environment variable ``ATEN_CPU_CAPABILITY``,
        which torch obeys too, lowers it) and ``cuda`` (``yes`` or ``no``).
    """
    return {
        "version": _C.version,
        "torch": _C.torch_version,
        "compiler": _C.compiler,
        "cpu_capability": _C.cpu_capability(),
        "cuda": "yes" if has_cuda_kernels() else "no",
    }
