#!/usr/bin/env bash
# The whole check of a machine with a GPU: builds the CUDA backend, compares what the tests without a GPU take for hardware with hardware (test_cuda_ptx*), runs the tests
# of the kernels and then everything else that runs on a device, and runs the kernels' tests again under compute-sanitizer where that is installed.
# Usage: tests/run_gpu.sh [--build DIR] [--out DIR] [--minutes M] [--jobs N] [--dry-run]
#        tests/run_gpu.sh --build DIR --pack FILE.tar.gz
#   --build DIR   a folder that is built already, here or elsewhere
#   --out DIR     where summary.txt and log.txt go (out/gpu)
#   --minutes M   no program is started after that, and those that run are stopped; says which were left out
#   --jobs N      so many programs beside each other (1); the sanitizer's and those that fill the GPU's memory run alone
#   --dry-run     without a GPU: tests of kernels only list their cases, the others run on the CPU. Shows that all programs find their libraries and files
#   --pack FILE   packs what this script and benchmarks/run_gpu.sh need of the build, without symbols, for a machine without a compiler; runs nothing
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build="" out=$root/out/gpu minutes="" pack="" jobs=1 dry=no
while [ $# -gt 0 ]; do
  case $1 in
    --build) build=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --minutes) minutes=$2; shift 2 ;;
    --jobs) jobs=$2; shift 2 ;;
    --pack) pack=$2; shift 2 ;;
    --dry-run) dry=yes; shift ;;
    *) echo "tests/run_gpu.sh: unknown option $1 (--build, --out, --minutes, --jobs, --dry-run, --pack)" >&2; exit 2 ;;
  esac
done
if [ -n "$build" ] && [ ! -e "$build/tests/device_tests.txt" ]; then
  echo "tests/run_gpu.sh: $build holds no build of CUDA's tests (tests/device_tests.txt is not there)" >&2
  exit 2
fi

# The build's programs for a GPU as FILE.tar.gz: a folder gpu-build with the tests, the benchmark and its modules, and libfovea.so where it is a shared library.
pack_build() {
  local folder file size
  folder=$(mktemp -d)
  mkdir -p "$folder/gpu-build/tests" "$folder/gpu-build/benchmarks/cuda"
  cp "$build/tests/device_tests.txt" "$folder/gpu-build/tests"
  git -C "$root" describe --always --dirty 2>/dev/null >"$folder/gpu-build/commit.txt"
  for file in "$build"/tests/test_cuda* $(sed "s|^|$build/tests/|" "$build/tests/device_tests.txt") "$build"/benchmarks/cuda/fovea_cuda_bench "$build"/benchmarks/cuda/fovea_vendor_*.so \
              "$build"/libfovea.so.*.*.*; do
    [ -e "$file" ] || continue
    case $file in */libfovea.so.*) file=$(readlink -f "$build"/libfovea.so) ;; esac
    strip -o "$folder/gpu-build/${file#"$build"/}" "$file" || return 1
  done
  for file in "$build"/libfovea.so*; do [ -L "$file" ] && cp -P "$file" "$folder/gpu-build"; done
  # CUDA's runtime, which a shared library shares too: small, and not on every machine.
  file=$(ldd "$build"/tests/test_cuda | awk '$1 ~ /^libcudart/ { print $3 }')
  [ -z "$file" ] || cp -L "$file" "$folder/gpu-build"
  tar -czf "$pack" -C "$folder" gpu-build || return 1
  size=$(du -sm "$folder/gpu-build" | cut -f1)
  echo "$pack: $(($(stat -c %s "$pack") / 1000000)) MB ($size MB unpacked), $(ls "$folder"/gpu-build/tests/test_* | wc -l) test programs$(
    [ -e "$folder/gpu-build/benchmarks/cuda/fovea_cuda_bench" ] && echo " and the benchmark" || echo "; the benchmark is not built (-DFOVEA_BUILD_BENCHMARKS=ON)")"
  [ -e "$folder"/gpu-build/libfovea.so ] || echo "with -DBUILD_SHARED_LIBS=ON it would be a small part of that: every program holds all kernels"
  rm -r "$folder"
}
if [ -n "$pack" ]; then
  [ -n "$build" ] || { echo "tests/run_gpu.sh: --pack needs --build DIR" >&2; exit 2; }
  build=$(cd "$build" && pwd)
  pack_build
  exit
fi

if [ $dry = no ] && ! nvidia-smi -L >/dev/null 2>&1; then
  echo "tests/run_gpu.sh: this machine has no NVIDIA GPU (nvidia-smi finds none); tests without one: cmake --preset host-cuda, or --dry-run" >&2
  exit 2
fi
mkdir -p "$out"
if [ -z "$build" ]; then
  build=$root/build/cuda
  bash "$root/cmake/install_missing.sh" tests || exit 1
  (cd "$root" && cmake --preset cuda && cmake --build --preset cuda) >"$out/build.log" 2>&1 || { tail -n 30 "$out/build.log"; exit 1; }
fi
build=$(cd "$build" && pwd)
. "$root/cmake/cuda_libraries.sh"                # where cuBLAS is, if not beside the toolkit
export LD_LIBRARY_PATH=$build:$LD_LIBRARY_PATH
export FOVEA_SOURCE_DIR=$root                    # the build may have been made elsewhere

end=""
[ -n "$minutes" ] && end=$((SECONDS + $(awk "BEGIN { printf \"%.0f\", 60 * $minutes }")))
seconds_left() { if [ -n "$end" ]; then echo $((end - SECONDS)); else echo 900; fi; }
say() { echo "$1" | tee -a "$out/summary.txt"; }
: >"$out/summary.txt"
device=cuda only=()
if [ $dry = yes ]; then
  device=cpu only=(--list-test-cases)
  say "no GPU: tests of kernels are only listed, the others run on the CPU"
  cp "$out/summary.txt" "$out/log.txt"
else
  nvidia-smi >"$out/log.txt"
fi
parts=$(mktemp -d)                               # a program's output until it has ended
trap 'rm -rf "$parts"' EXIT

run() {                                          # name, command ...
  local name=$1 started=$SECONDS most status
  shift
  most=$(seconds_left)
  if [ "$most" -le 0 ]; then
    say "left out  $name: the time is up"
    return
  fi
  timeout -k 5 $((most < 300 ? most : 300)) "$@" >"$parts/$name" 2>&1
  status=$?
  { echo; echo "=== $name: status $status"; cat "$parts/$name"; } >>"$out/log.txt"
  if [ $status -eq 0 ]; then
    say "passed    $name  ($((SECONDS - started)) s)"
  elif [ $status -eq 124 ] && [ "$most" -lt 300 ]; then
    say "left out  $name: stopped after $((SECONDS - started)) s, the time is up"
  else
    say "FAILED    $name  (status $status$([ $status -eq 124 ] && echo ", stopped after $((SECONDS - started)) s"); see $out/log.txt)"
    tail -n 15 "$parts/$name"
  fi
  rm -f "$parts/$name"
}
beside() {                                       # as run, with others at the same time
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
  run "$@" &
}
for test in "$build"/tests/test_cuda_ptx*; do run "$(basename "$test")" "$test" "${only[@]}"; done
for test in "$build"/tests/test_cuda*; do
  case $test in
    */test_cuda_ptx*) ;;
    */test_cuda | */test_cuda_runtime | */test_cuda_launch) run "$(basename "$test")" "$test" "${only[@]}" ;;      # they fill the memory, and lose devices
    *) beside "$(basename "$test")" "$test" "${only[@]}" ;;
  esac
done
wait
while read -r name; do
  if [ -x "$build/tests/$name" ]; then beside "device_$name" env FOVEA_DEVICE=$device "$build/tests/$name"
  else say "left out  device_$name: $build/tests/$name is not built"; fi
done <"$build/tests/device_tests.txt"
wait
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ -n "$sanitizer" ] && [ $dry = no ]; then
  for tool in "memcheck --report-api-errors no" racecheck; do      # calls of CUDA that fail are what some tests are about
    for test in "$build"/tests/test_cuda*; do                      # not of the processes that tests start: there a kernel fails on purpose
      run "${tool%% *}-$(basename "$test")" "$sanitizer" --tool $tool --target-processes application-only --error-exitcode 1 "$test"
    done
  done
else
  say "compute-sanitizer is not installed, or there is no GPU: not run"
fi
failed=$(grep -c ^FAILED "$out/summary.txt")
left=$(grep -c "^left out" "$out/summary.txt")
say "$(grep -c ^passed "$out/summary.txt") passed, $failed failed, $left left out; all output in $out/log.txt"
[ "$failed" -eq 0 ]
