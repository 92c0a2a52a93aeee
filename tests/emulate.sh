#!/usr/bin/env bash
# Runs the op tests on the CUDA kernels, emulated on the CPU: in the threads' plain order, in others, under the address and
# undefined-behaviour sanitizers, and under a race detector. Needs CUDA's headers alone; where no toolkit is, pip brings them.
#   PYTHON=path/to/python tests/emulate.sh [pytest arguments]     with arguments: these, in one way
#   BUILD=emulation|emulation-sanitize|emulation-races            that way; plain unless told
#   ALK_EMU_ORDER=forward|reverse|random:SEED
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
export PATH="$(dirname "$PYTHON"):$PATH"
PYTHON=$(realpath -s "$(command -v "$PYTHON")")
step() { printf '\n-- %s (%d s)\n' "$1" "$SECONDS"; }

headers=
for folder in ${CUDA_HOME:+"$CUDA_HOME"} /usr/local/cuda /usr/local/cuda-*; do
  if [ -z "$headers" ] && [ -e "$folder/include/cuda_fp16.h" ]; then headers=$folder/include; fi
done
if [ -z "$headers" ]; then
  headers=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13/include
  for wheel in runtime crt cccl; do
    "$PYTHON" -m pip --disable-pip-version-check install -q --no-deps "nvidia-cuda-$wheel==13.0.*"
  done
fi

# build FOLDER
build() {
  local folder=$PWD/build/$1 sanitize=
  case $1 in
    emulation-sanitize) sanitize=address,undefined ;;
    emulation-races) sanitize=thread ;;
  esac
  cmake -S . -B "$folder" -G Ninja -DALKERNELS_EMULATION=ON -DALKERNELS_WERROR=ON -DALKERNELS_SANITIZE=$sanitize \
    -DCUDA_HEADERS="$headers" -DPython_EXECUTABLE="$PYTHON" -DALKERNELS_OUTPUT="$folder/out" >/dev/null
  cmake --build "$folder" --target alkernels_emulated emulation_self_test
  ctest --test-dir "$folder" --output-on-failure --progress | tail -4
}

# run FOLDER ORDER pytest-arguments
run() {
  local folder=$1 order=$2 preload=
  shift 2
  # Python itself is not instrumented: the runtime is preloaded, and its leaks are its own.
  if [ "$folder" = emulation-sanitize ]; then
    preload="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)"
  fi
  LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0 ALK_EMU_ORDER=$order \
    ALKERNELS_EMULATED=$PWD/build/$folder/emulation/libalkernels_emulated.so \
    "$PYTHON" -m pytest -p no:cacheprovider --kernels=emulated "$@"
}

if [ $# -gt 0 ]; then
  build "${BUILD:-emulation}"
  run "${BUILD:-emulation}" "${ALK_EMU_ORDER:-forward}" "$@"
  exit
fi

# The emulation makes about 100 million inner steps a second: what is large or slow, or runs no kernel, is left out.
all=(tests/test_{k_center_greedy,kmeans_plusplus,error_bound,batchbald,greedy_coverage,knn,pairwise_kl,prediction_scores}.py)
leave_out="not law and not cost and not knows and not wide and not progress and not memory and not compile and not threads and not gains_of_zero and not uniform and not refused and not 50000 and not 3001 and not 3-1-1000 and not 1000-3 and not 300-150"
large="2300 or 700 or 3000 or 5000 or level_zero or near_ties"
# in another order, under the sanitizers and under the race detector, which is twenty times slower still
fewer="($leave_out) and not ($large) and (integers or zeros or ties or hand)"
# what else meets every path of the kernels
rest="($leave_out) and not ($large) and not (integers or zeros or ties or hand) and (layouts or dtypes or error or definition or brute_force)"

step "build, and the emulation's own tests"
build emulation

# Two at a time: the emulation takes one core.
export OMP_NUM_THREADS=1
(
  step "sanitizers"
  build emulation-sanitize
  run emulation-sanitize forward -q "${all[@]}" -k "$fewer"
  step "races"
  build emulation-races
  run emulation-races forward -q "${all[@]}" -k "$fewer"
) >build/emulate.log 2>&1 &
others=$!

failed=0
step "plain order"
run emulation forward -q "${all[@]}" -k "($rest) or (($leave_out) and hard and not many)" || failed=1
step "another order"
run emulation random:1 -q "${all[@]}" -k "$fewer" || failed=1
wait $others || failed=1
cat build/emulate.log
step "done"
exit $failed
