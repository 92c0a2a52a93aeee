#!/usr/bin/env bash
# Everything that wants a GPU, within 8 minutes: builds with CUDA kernels, tests, sanitizers, benchmarks.
#   PYTHON=python3 benchmarks/gpu.sh [--only build,tests,sanitizer,bench]
# Each part has its own limit, and a part that fails does not keep the next from running. Without a GPU it builds for the
# CPU, runs what runs there, and says what it leaves out. Logs go to build/gpu, tables to benchmarks/results; copies of
# both to $OUT where that is set.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
only=build,tests,sanitizer,bench
[ "${1:-}" = --only ] && only=${2:?--only takes a list of build, tests, sanitizer, bench}
[ $# -eq 0 ] || [ "${1:-}" = --only ] || { sed -n 2,6p "$0"; exit 2; }
logs=build/gpu
mkdir -p "$logs"
export PYTHONPATH=$PWD MAX_JOBS=${MAX_JOBS:-$(nproc)}
jobs=$(($(nproc) > 12 ? 6 : 1))
failed=()

wanted() { [[ ,$only, == *,$1,* ]]; }
has() { "$PYTHON" -c "import $1" 2>/dev/null; }
# part NAME SECONDS COMMAND...: runs under a limit, its output in a log; the last lines are shown where it fails.
part() {
  local name=$1 limit=$2 began=$SECONDS left=$((470 - SECONDS))
  shift 2
  limit=$((limit < left ? limit : left))
  if [ $limit -lt 5 ]; then
    echo "$name: FAILED, no time left"
    failed+=("$name")
    return 1
  fi
  printf '\n== %s (limit %d s, %d s so far)\n' "$name" "$limit" "$SECONDS"
  timeout -s INT -k 10 "$limit" "$@" >"$logs/$name.log" 2>&1
  local status=$?
  if [ $status -eq 0 ]; then
    echo "$name: done in $((SECONDS - began)) s"
  elif grep -q "^=* *Device not supported" "$logs/$name.log"; then
    echo "$name: left out, it does not run on this machine"
    return 0
  else
    failed+=("$name")
    tail -n 25 "$logs/$name.log"
    [ $status -eq 124 ] && echo "$name: FAILED, cut off after $limit s" || echo "$name: FAILED with status $status"
  fi
  return $status
}

gpu=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")')
if [ -n "$gpu" ]; then
  echo "GPU: $gpu"
  export ALKERNELS_CUDA=1
  kernels=cuda
else
  echo "no GPU that torch can use: left out are the CUDA build, tests of CUDA kernels, the sanitizers and the benchmarks"
  kernels=cpu
fi

if wanted build; then
  part build 180 "$PYTHON" setup.py build_ext --inplace
  "$PYTHON" -c 'import alkernels as alk; print(alk.build_info())' || failed+=(import)
fi

if wanted tests; then
  # Against the CPU's own kernels, then all tests of ops with their CPU tensors sent to the GPU.
  workers=()
  [ $jobs -gt 1 ] && has xdist && workers=(-n $jobs)
  cache=(-q -p no:cacheprovider)
  export OMP_NUM_THREADS=$((jobs > 1 ? 2 : $(nproc)))
  part tests-devices 80 "$PYTHON" -m pytest "${cache[@]}" "${workers[@]}" tests/test_devices.py tests/test_streaming.py
  tail -n 1 "$logs/tests-devices.log"
  if has hypothesis; then
    part tests-nccl 60 "$PYTHON" -m pytest "${cache[@]}" tests/distributed/test_selections.py -k one_rank_on_each_device
    tail -n 1 "$logs/tests-nccl.log"
  fi
  if [ $kernels = cuda ]; then
    files=()
    for name in k_center_greedy kmeans_plusplus error_bound batchbald greedy_coverage knn pairwise_kl; do
      missing=$(for m in hypothesis scipy; do grep -q "^from $m\|^import $m" "tests/test_$name.py" && ! has $m && echo $m; done)
      if [ -n "$missing" ]; then echo "left out: tests/test_$name.py, which needs $missing"; else files+=("tests/test_$name.py"); fi
    done
    # (host memory is the GPU driver's, too; compiled functions are slow to make, and the same on every device)
    [ ${#files[@]} -gt 0 ] && part tests-redirected 120 "$PYTHON" -m pytest "${cache[@]}" "${workers[@]}" --kernels=cuda \
      "${files[@]}" -k "not memory and not compile"
    tail -n 1 "$logs/tests-redirected.log"
  fi
  unset OMP_NUM_THREADS
fi

if wanted sanitizer && [ $kernels = cuda ]; then
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
  if [ -z "$sanitizer" ]; then
    echo "left out: the sanitizers, there is no compute-sanitizer"
  else
    # torch's own memory pool would hide what is read beyond a tensor's end
    for tool in memcheck racecheck; do
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 part "sanitizer-$tool" 60 "$sanitizer" --tool $tool --error-exitcode 9 \
        "$PYTHON" benchmarks/gpu.py --smoke
      grep "ERROR SUMMARY\|RACECHECK SUMMARY" "$logs/sanitizer-$tool.log"
    done
  fi
fi

if wanted bench; then
  if [ $kernels = cuda ]; then
    part bench 470 "$PYTHON" benchmarks/gpu.py --budget $((455 - SECONDS))
  else
    part bench 60 "$PYTHON" benchmarks/gpu.py --device cpu --small
  fi
  cat "$logs/bench.log"
fi

if [ -n "${OUT:-}" ]; then
  tar -czf "$OUT/logs.tar.gz" -C build gpu
  slug=$(tr '[:upper:]' '[:lower:]' <<<"$gpu" | sed 's/[^a-z0-9]\+/-/g; s/^-//; s/-$//')
  [ -n "$slug" ] && cp benchmarks/results/"$slug".* "$OUT" 2>/dev/null
fi

failed=(${failed[@]})
printf '\n%d s. ' $SECONDS
if [ ${#failed[@]} -eq 0 ]; then echo "Nothing failed."; else echo "FAILED: ${failed[*]}"; exit 1; fi
