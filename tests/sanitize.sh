#!/usr/bin/env bash
# Builds the extension with address and undefined-behaviour sanitizers beside the normal one and runs the op tests on it.
#   PYTHON=path/to/python tests/sanitize.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
site=$PWD/build/sanitize/site
export PATH="$(dirname "$PYTHON"):$PATH"

mkdir -p "$site"
cp -r alkernels "$site"
rm -f "$site"/alkernels/_C*.so
cmake -S . -B build/sanitize -G Ninja -DALKERNELS_SANITIZE=address,undefined -DPython_EXECUTABLE="$(command -v "$PYTHON")" \
  -DALKERNELS_OUTPUT="$site/alkernels" >/dev/null
cmake --build build/sanitize

# what meets every path of the kernels; pytest wants it on one line
touching="integers or layouts or dtypes or hard or zeros or ties or definition or brute or numpy or finite or bad"
touching="$touching or any_shape or bound"
if [ $# -eq 0 ]; then
  set -- tests/test_{k_center_greedy,kmeans_plusplus,error_bound,batchbald,greedy_coverage,knn,pairwise_kl}.py \
    -k "($touching) and not law and not cost and not knows and not wide and not progress and not memory and not compile"
fi
# Python itself is not instrumented: the runtime is preloaded, and its leaks are its own.
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH="$site" OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive \
  "$PYTHON" -P -m pytest -q -n auto -p no:cacheprovider "$@"
