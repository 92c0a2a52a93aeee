#!/usr/bin/env bash
# Compiles the CUDA library as a check, with any torch and without a GPU: warnings and register spills are errors, and every
# symbol is torch's or CUDA's. Prints what each kernel takes. Skips where there is no nvcc.
#   PYTHON=path/to/python CUDA_HOME=path tests/check_cuda.sh
set -euo pipefail

# The compiler's launcher: what ptxas says about a file is kept beside the object, for the runs that do not compile it.
if [ "${1-}" = compile ]; then
  shift
  arguments=("$@")
  for ((i = 0; i < $#; ++i)); do
    if [ "${arguments[i]}" = -o ]; then log=${arguments[i + 1]}.log; fi
  done
  "$@" >"$log" 2>&1 || { status=$?; cat "$log"; exit $status; }
  exit 0
fi

cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
export PATH="$(dirname "$PYTHON"):$PATH"
PYTHON=$(realpath -s "$(command -v "$PYTHON")")
if [ -n "${CUDA_HOME-}" ]; then nvcc=$CUDA_HOME/bin/nvcc; else nvcc=$(command -v nvcc || true); fi
if [ ! -x "$nvcc" ]; then
  echo "check_cuda: skipped, no nvcc in CUDA_HOME or on PATH"
  exit 0
fi

folder=$PWD/build/check-cuda
cmake -S . -B "$folder" -G Ninja -DALKERNELS_CUDA=ON -DALKERNELS_CUDA_RESOURCES=ON -DALKERNELS_WERROR=ON \
  -DPython_EXECUTABLE="$PYTHON" -DALKERNELS_OUTPUT="$folder/check" -DCMAKE_CUDA_COMPILER="$nvcc" \
  -DCMAKE_CUDA_COMPILER_LAUNCHER="bash;$PWD/tests/check_cuda.sh;compile" >/dev/null
cmake --build "$folder" --target alkernels_cuda
"$PYTHON" tests/cuda_resources.py "$folder"/CMakeFiles/alkernels_cuda.dir/csrc/cuda/*.log

# A CPU torch has no CUDA shims: their names are what may stay open.
torch=$("$PYTHON" -c 'import os, torch; print(os.path.dirname(torch.__file__))')
runtime=$(sed -n 's/^CUDA_cudart_LIBRARY:[^=]*=//p' "$folder/CMakeCache.txt")
open=$(LD_LIBRARY_PATH="$torch/lib:$(dirname "$runtime")" ldd -r "$folder/check/libalkernels_cuda.so" 2>&1 |
  sed -n 's/^undefined symbol: \([^ \t]*\).*/\1/p' | c++filt | grep -Ev '^(aoti_torch_\w*cuda\w*|torch_\w*cuda\w*)$' || true)
if [ -n "$open" ]; then
  printf 'check_cuda: nothing defines\n%s\n' "$open"
  exit 1
fi
echo "check_cuda: every symbol is torch's or CUDA's"
