#!/usr/bin/env bash
# The whole check of a machine with a GPU: builds the CUDA backend, compares what the tests without a GPU take for hardware with hardware (test_cuda_ptx*), runs the tests
# of the kernels and then everything else that runs on a device, and runs the kernels' tests again under compute-sanitizer where that is installed.
# Usage: tests/run_gpu.sh [--build DIR] [--out DIR]      --build: a folder that is built already;  --out: where the logs go (out/gpu)
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build="" out=$root/out/gpu
while [ $# -gt 0 ]; do
  case $1 in
    --build) build=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    *) echo "tests/run_gpu.sh: unknown option $1 (--build, --out)" >&2; exit 2 ;;
  esac
done
if ! nvidia-smi -L >/dev/null 2>&1; then
  echo "tests/run_gpu.sh: this machine has no NVIDIA GPU (nvidia-smi finds none); tests without one: cmake --preset host-cuda" >&2
  exit 2
fi
mkdir -p "$out"
if [ -z "$build" ]; then
  build=$root/build/cuda
  bash "$root/cmake/install_missing.sh" tests || exit 1
  (cd "$root" && cmake --preset cuda && cmake --build --preset cuda) >"$out/build.log" 2>&1 || { tail -n 30 "$out/build.log"; exit 1; }
fi

failed=0
run() {                                          # name, command ...
  local name=$1 started=$SECONDS
  shift
  if "$@" >"$out/$name.log" 2>&1; then
    echo "passed  $name  ($((SECONDS - started)) s)"
  else
    echo "FAILED  $name  (see $out/$name.log)"
    tail -n 15 "$out/$name.log"
    failed=$((failed + 1))
  fi
}
nvidia-smi >"$out/machine.log"
for test in "$build"/tests/test_cuda_ptx*; do run "$(basename "$test")" "$test"; done
for test in "$build"/tests/test_cuda*; do
  [[ $test == */test_cuda_ptx* ]] || run "$(basename "$test")" "$test"
done
while read -r name; do
  [ -x "$build/tests/$name" ] && run "device_$name" env FOVEA_DEVICE=cuda "$build/tests/$name"
done <"$build/tests/device_tests.txt"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do             # not of the processes that tests start: there a kernel fails on purpose
    for test in "$build"/tests/test_cuda_*; do run "$tool-$(basename "$test")" compute-sanitizer --tool "$tool" --target-processes application-only --error-exitcode 1 "$test"; done
  done
else
  echo "compute-sanitizer is not installed: left out"
fi
echo "$failed failed; logs in $out"
[ "$failed" -eq 0 ]
