"""Calls CMake. Sources and flags are in CMakeLists.txt, everything else in pyproject.toml.

Environment: ALKERNELS_CUDA=1 builds the CUDA library; ALKERNELS_CMAKE_ARGS adds arguments for CMake; MAX_JOBS limits
parallel compilation.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    def build_extension(self, ext):
        import torch

        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
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
                f"-DALKERNELS_CUDA={'ON' if os.environ.get('ALKERNELS_CUDA', '0') in ('1', 'ON', 'on') else 'OFF'}",
                *extra,
            ]
        )
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
        subprocess.check_call([cmake, "--build", str(folder), "-j", jobs])


setup(ext_modules=[Extension("alkernels._C", [])], cmdclass={"build_ext": CMakeBuild})
