"""Loads the compiled libraries and says what they are."""

from pathlib import Path

import torch  # first: _C carries no path to torch's libraries

from alkernels import _C  # registers schemas and CPU kernels

_CUDA_LIBRARY = Path(__file__).with_name("libalkernels_cuda.so")

if torch.version.cuda is not None and _CUDA_LIBRARY.exists():
    torch.ops.load_library(_CUDA_LIBRARY)

version: str = _C.version


def has_cuda_kernels() -> bool:
    """Whether this installation carries CUDA kernels and loaded them."""
    return torch.version.cuda is not None and _CUDA_LIBRARY.exists()


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
