#!/usr/bin/env bash
# Measures Fovea's CUDA kernels against cuDNN, cuBLAS and PyTorch on this machine's GPU, and writes logs, CSV and a report.
# Usage: benchmarks/run_gpu.sh [--build DIR] [--out DIR] [--quick] [--family "conv lstm"] [--minutes M] [--dry-run]
#   --build DIR   a folder that is built already (cmake --preset cuda -DFOVEA_BUILD_BENCHMARKS=ON), here or elsewhere; otherwise build/cuda-benchmarks is made
#   --quick       the rows of the first tier only
#   --minutes M   for everything together, the build excepted (12; with --quick 6). The rows of the first tier come first, in all families; what is left over goes to
#                 the second tier. Results and report are complete after every family, so that a run which is stopped has lost nothing.
#   --dry-run     a handful of tiny rows over the model of CUDA on the CPU (build: cmake --preset host-cuda): tries the scripts, measures nothing
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
build="" out="" minutes="" tiers="1 2" dry=no families="conv lstm ctc batchnorm steps optimizer elementwise gemm softmax pooling"
while [ $# -gt 0 ]; do
  case $1 in
    --build) build=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --family) families=$2; shift 2 ;;
    --minutes) minutes=$2; shift 2 ;;
    --quick) tiers=1; shift ;;
    --dry-run) dry=yes; shift ;;
    *) echo "benchmarks/run_gpu.sh: unknown option $1 (--build, --out, --quick, --family, --minutes, --dry-run)" >&2; exit 2 ;;
  esac
done
out=${out:-$root/out/gpu-benchmarks}
if [ $dry = no ] && ! nvidia-smi -L >/dev/null 2>&1; then
  echo "benchmarks/run_gpu.sh: this machine has no NVIDIA GPU (nvidia-smi finds none); what can be tried without one: --dry-run" >&2
  exit 2
fi
mkdir -p "$out"
rm -f "$out"/*.csv "$out"/*.csv.row "$out"/*.log "$out"/report.md "$out"/summary.txt
of_python=${LD_LIBRARY_PATH:-}                   # PyTorch finds its own libraries
. "$root/cmake/cuda_libraries.sh"                # sets LD_LIBRARY_PATH and cudnn_root

if [ -z "$build" ] && [ $dry = yes ]; then build=$root/build/host-cuda; fi
if [ -z "$build" ]; then
  build=$root/build/cuda-benchmarks
  bash "$root/cmake/install_missing.sh" || exit 1
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
  { cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DFOVEA_CUDA=ON -DFOVEA_CUDA_ARCHITECTURES="${capability:-90}" -DFOVEA_BUILD_BENCHMARKS=ON \
      -DFOVEA_BUILD_TESTS=OFF -DFOVEA_BUILD_EXAMPLES=OFF ${cudnn_root:+-DFOVEA_CUDNN_ROOT="$cudnn_root"} &&
    cmake --build "$build" --target fovea_cuda_bench; } >"$out/build.log" 2>&1 || { tail -n 30 "$out/build.log"; exit 1; }
fi
bench=$build/benchmarks/cuda/fovea_cuda_bench
[ -x "$bench" ] || { echo "benchmarks/run_gpu.sh: $bench is not there; was $build configured with -DFOVEA_BUILD_BENCHMARKS=ON?" >&2; exit 2; }
LD_LIBRARY_PATH=$build:$LD_LIBRARY_PATH          # libfovea.so, where it is a shared library
commit=$(cat "$build/commit.txt" 2>/dev/null || git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)      # the first of a build that was packed

shapes=$here/cuda/shapes vendor=auto seconds=0.15 search=1
if [ $dry = yes ]; then
  shapes=$shapes/model vendor=self minutes=${minutes:-6} tiers=2
elif [ "$tiers" = 1 ]; then
  minutes=${minutes:-6}
else
  minutes=${minutes:-12}
fi
[ $dry = yes ] || nvidia-smi >"$out/machine.log"

calculate() { awk "BEGIN { printf \"%.0f\", $1 }"; }
end=$((SECONDS + $(calculate "60 * $minutes")))
weight_of() {                                    # shares of the time
  case $1 in conv) echo 30 ;; lstm) echo 12 ;; ctc | batchnorm) echo 9 ;; optimizer | elementwise | gemm) echo 7 ;; steps) echo 6 ;; pytorch) echo 25 ;; *) echo 3 ;; esac
}
weights_of() { local sum=0 name; for name in "$@"; do sum=$((sum + $(weight_of "$name"))); done; echo $sum; }
report() {
  python3 "$here/cuda/report.py" --machine "$out/machine.csv" --out "$out/report.md" "$out/results.csv" "$out/pytorch.csv" >"$out/summary.txt" 2>"$out/report.log"
}
# Ours and the vendor's of one family, as far as a tier, in so many seconds. The program stops by itself when they are over, and after a row that never ends; timeout is for what
# hangs all the same. Status 3 is a row after which the device is lost, more than 128 a crash: the rest of the rows is measured by a new process.
measure() {                                      # family, tier, seconds, further options
  local family=$1 tier=$2 until=$((SECONDS + $3)) status=0 attempt
  shift 3
  for attempt in 1 2 3 4 5 6 7 8; do
    timeout -k 5 $((until - SECONDS + 70)) "$bench" --shapes "$shapes" --family "$family" --tier "$tier" --minutes "$(calculate "100 * ($until - $SECONDS) / 60")e-2" --seconds $seconds \
      --search $search --machine "$out/machine.csv" --commit "$commit" --out "$out/results.csv" --skip-done "$@" >>"$out/ours.log" 2>&1
    status=$?
    if [ $status -le 2 ] || [ $status -eq 124 ] || [ $dry = yes ]; then break; fi
    echo "$family ended with status $status, and is started again" | tee -a "$out/ours.log"
    [ $((until - SECONDS)) -gt 0 ] || break
  done
  return $status
}
rows_of() { awk -F, -v family="$1" '$6 == family' "$out/results.csv" 2>/dev/null | wc -l; }

"$bench" --ceilings --machine "$out/machine.csv" --commit "$commit" >"$out/ceilings.log" 2>&1 || { cat "$out/ceilings.log"; echo "benchmarks/run_gpu.sh: the ceilings could not be measured" >&2; exit 1; }
has_pytorch=no
if [ $dry = no ]; then
  if LD_LIBRARY_PATH=$of_python python3 -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else 1)' 2>"$out/pytorch.log"; then has_pytorch=yes
  else echo "PyTorch is not installed, or finds no GPU: its columns stay empty"; fi
fi
failed=""
for tier in $tiers; do
  # Of the time that is left the first of two tiers takes three fifths at most.
  left=$((end - SECONDS))
  [ "$tiers" = "1 2" ] && [ "$tier" = 1 ] && left=$((left * 3 / 5))
  tier_end=$((SECONDS + left)) waiting="$families $([ $has_pytorch = no ] || echo pytorch)"
  for family in $families; do
    left=$((tier_end - SECONDS))
    [ $left -gt 0 ] || { echo "$family, tier $tier: left out, the time is up"; continue; }
    most=$((left * $(weight_of "$family") / $(weights_of $waiting))) started=$SECONDS before=$(rows_of "$family")
    rival=$vendor
    [ $dry = yes ] && [ "$family" = steps ] && rival=none    # a training step takes seconds over the model
    measure "$family" "$tier" $most --vendor $rival
    status=$?
    waiting=$(echo " $waiting " | sed "s/ $family / /")
    # Over the model everything but eager steps must go into a graph: on a GPU the host's time would be measured with the rest.
    if [ $dry = yes ] && grep ",$family," "$out/results.csv" | grep -q "no graph"; then status=1; grep "no graph" "$out/results.csv" | cut -d, -f1-5 | sed 's/^/not recorded: /'; fi
    [ $status -eq 0 ] || failed="$failed $family"
    echo "$family, tier $tier: $(($(rows_of "$family") - before)) rows in $((SECONDS - started)) s$([ $status -eq 0 ] || echo ", status $status, see $out/ours.log")"
    report
  done
  left=$((tier_end - SECONDS))
  [ $has_pytorch = yes ] && [ $left -gt 5 ] || continue
  started=$SECONDS
  for attempt in 1 2 3 4; do                     # status 3: the device was lost in a row, which has its line
    LD_LIBRARY_PATH=$of_python timeout -k 5 $((tier_end - SECONDS + 60)) python3 "$here/cuda/pytorch_peer.py" --shapes "$shapes" --family "$families" --tier "$tier" \
      --minutes "$(calculate "100 * ($tier_end - $SECONDS) / 60")e-2" --seconds $seconds --commit "$commit" --out "$out/pytorch.csv" --skip-done >>"$out/pytorch.log" 2>&1
    status=$?
    if [ $status -ne 3 ] || [ $((tier_end - SECONDS)) -le 0 ]; then break; fi
  done
  [ $status -eq 0 ] || echo "pytorch: status $status, see $out/pytorch.log"
  echo "pytorch, tier $tier: in $((SECONDS - started)) s"
  report
done
report || { cat "$out/report.log"; exit 1; }
head -n 60 "$out/summary.txt"
echo "report: $out/report.md"
if [ -n "$failed" ]; then
  echo "rows that failed, are wrong or were refused, or a program that ended early, in:$failed"
  exit 1
fi
