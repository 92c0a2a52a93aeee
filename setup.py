"""Calls CMake. Sources and flags are in CMakeLists.txt, everything else in pyproject.toml.

Environment: ALKERNELS_CUDA=1 builds the CUDA library, 0 does not, unset builds it where torch has CUDA and there is an
nvcc in CUDA_HOME or on PATH; ALKERNELS_CMAKE_ARGS adds arguments for CMake; MAX_JOBS limits parallel compilation.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CUDA_LIBRARY = "libalkernels_cuda.so"


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which("nvcc", path=str(Path(home) / "bin")) if home else shutil.which("nvcc")


def other_cuda(nvcc, torch):
    """What is wrong with this nvcc beside this torch, if anything: both bring a libcudart, of one major version."""
    if torch.version.cuda is None:
        return None
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)\.\d+", said)
    if release is None or release[1] == torch.version.cuda.split(".")[0]:
        return None
    return (
        f"torch {torch.__version__} has CUDA {torch.version.cuda}, {nvcc} is of {release[0].removeprefix('release ')}"
    )


def cuda_arguments(torch):
    """CMake's arguments for the CUDA library; why, in words."""
    asked = os.environ.get("ALKERNELS_CUDA", "").lower()
    if asked not in ("", "0", "off", "1", "on"):
        raise RuntimeError(f"ALKERNELS_CUDA is 0 or 1, not {asked}")
    nvcc = find_nvcc()
    if asked in ("0", "off"):
        wanted, why = False, "ALKERNELS_CUDA=0"
    elif asked in ("1", "on"):
        if nvcc is None:
            raise RuntimeError("ALKERNELS_CUDA=1, but no nvcc in CUDA_HOME or on PATH")
        if other_cuda(nvcc, torch):
            raise RuntimeError(f"ALKERNELS_CUDA=1, but {other_cuda(nvcc, torch)}")
        wanted, why = True, "ALKERNELS_CUDA=1"
    elif torch.version.cuda is None:
        wanted, why = False, f"torch {torch.__version__} has no CUDA"
    elif nvcc is None:
        wanted, why = False, "no nvcc in CUDA_HOME or on PATH"
    elif other_cuda(nvcc, torch):
        wanted, why = False, other_cuda(nvcc, torch)
    else:
        wanted, why = True, f"torch has CUDA {torch.version.cuda}, and there is {nvcc}"
    print(f"alkernels: CUDA library: {'yes' if wanted else 'no'} ({why})", flush=True)
    return [f"-DALKERNELS_CUDA={'ON' if wanted else 'OFF'}", *([f"-DCMAKE_CUDA_COMPILER={nvcc}"] if wanted else [])]


class CMakeBuild(build_ext):
    def build_extension(self, ext):
        import torch

        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        cuda = cuda_arguments(torch)
        extra = shlex.split(os.environ.get("ALKERNELS_CMAKE_ARGS", ""))
        # A build folder is kept for each environment, so that a second build compiles only what changed. An isolated
        # build's environment is gone afterwards, and a folder that remembers its paths would break the next build.
        if "pip-build-env" in torch.__file__:
            folder = Path(self.build_temp).resolve() / "cmake"
        else:
            tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}-torch{torch.__version__}"
            folder = (
                ROOT
                / "build"
                / "-".join(["cmake", tag, *(a.strip("-D").replace("=", "_").replace(",", "_") for a in extra)])
            )
        ninja = shutil.which("ninja", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        cmake = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        if cmake is None or ninja is None:
            raise RuntimeError("building alkernels needs cmake and ninja: pip install cmake ninja")
        subprocess.check_call(
            [
                cmake,
                *("-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
                "-UCMAKE_MAKE_PROGRAM",
                f"-DCMAKE_MAKE_PROGRAM={ninja}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-DALKERNELS_OUTPUT={output}",
                f"-DALKERNELS_VERSION={self.distribution.get_version()}",
                *cuda,
                *extra,
            ]
        )
        if "-DALKERNELS_CUDA=OFF" in cuda:
            # one that an earlier build left would be loaded beside the new _C
            (output / CUDA_LIBRARY).unlink(missing_ok=True)
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
        subprocess.check_call([cmake, "--build", str(folder), "-j", jobs])

    def copy_extensions_to_source(self):
        # setuptools knows of _C alone
        super().copy_extensions_to_source()
        built, source = Path(self.build_lib) / "alkernels" / CUDA_LIBRARY, ROOT / "alkernels" / CUDA_LIBRARY
        # removed first: a process may have the old one open
        source.unlink(missing_ok=True)
        if built.exists():
            shutil.copy2(built, source)


setup(ext_modules=[Extension("alkernels._C", [])], cmdclass={"build_ext": CMakeBuild})
