#!/usr/bin/env bash
# Measures Fovea's CUDA kernels against cuDNN, cuBLAS and PyTorch on this machine's GPU, and writes logs, CSV and a report.
# Usage: benchmarks/run_gpu.sh [--build DIR] [--out DIR] [--quick] [--family "conv lstm"] [--minutes M] [--dry-run]
#   --build DIR   a folder that is built already (cmake --preset cuda -DFOVEA_BUILD_BENCHMARKS=ON); otherwise build/cuda-benchmarks is made
#   --quick       the rows of the first tier only, about three minutes instead of nine (without the build)
#   --minutes M   for all of our rows together (6.5; with --quick 2), shared out over the families; PyTorch takes about a quarter of it on top
#   --dry-run     a handful of tiny rows over the model of CUDA on the CPU (build: cmake --preset host-cuda): tries the scripts, measures nothing
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
build="" out="" minutes="" tier=2 dry=no families="conv ctc lstm batchnorm optimizer steps elementwise gemm softmax pooling"
while [ $# -gt 0 ]; do
  case $1 in
    --build) build=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --family) families=$2; shift 2 ;;
    --minutes) minutes=$2; shift 2 ;;
    --quick) tier=1; shift ;;
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
rm -f "$out"/*.csv "$out"/report.md
commit=$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)

# cuDNN and cuBLAS often come with PyTorch only: headers for the build, libraries for the run.
packages=$(python3 -c 'import importlib.util as u; s = u.find_spec("nvidia"); print(list(s.submodule_search_locations)[0] if s else "")' 2>/dev/null)
cudnn_root=""
if [ -n "$packages" ]; then
  [ -e "$packages/cudnn/include/cudnn.h" ] && cudnn_root=$packages/cudnn
  for folder in "$packages"/cudnn/lib "$packages"/cublas/lib "$packages"/cu1*/lib; do
    [ -d "$folder" ] && LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder
  done
  export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}
fi

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

shapes=$here/cuda/shapes vendor=auto seconds=0.2 search=1.5
if [ $dry = yes ]; then
  shapes=$shapes/model vendor=self minutes=${minutes:-4}
else
  if [ $tier = 1 ]; then minutes=${minutes:-2} seconds=0.1 search=0.7; else minutes=${minutes:-6.5}; fi
  nvidia-smi >"$out/machine.log"
fi
share_of() {                                     # of all minutes, in percent
  case $1 in conv) echo 32 ;; lstm) echo 12 ;; ctc | batchnorm | optimizer | elementwise | gemm) echo 9 ;; steps) echo 5 ;; *) echo 3 ;; esac
}
failed=""
measure() {                                      # family, then further options
  local family=$1 most
  shift
  most=$(python3 -c "print($minutes * $(share_of "$family") / 100)")
  # The program stops by itself when its minutes are over; timeout is for one that hangs.
  timeout "$(python3 -c "print(int(60 * $most + 60))")" "$bench" --shapes "$shapes" --family "$family" --tier $tier --minutes "$most" --seconds $seconds --search $search \
    --machine "$out/machine.csv" --commit "$commit" --out "$out/$family.csv" "$@" >>"$out/$family.log" 2>&1
}
"$bench" --ceilings --machine "$out/machine.csv" --commit "$commit" >"$out/ceilings.log" 2>&1 || { cat "$out/ceilings.log"; echo "benchmarks/run_gpu.sh: the ceilings could not be measured" >&2; exit 1; }
for family in $families; do
  started=$SECONDS
  : >"$out/$family.log"
  rival=$vendor
  [ $dry = yes ] && [ "$family" = steps ] && rival=none      # a training step takes seconds over the model
  measure "$family" --vendor $rival
  status=$?
  # A crash may be the vendor's library: what is left of the rows is then measured without it.
  if [ $status -gt 2 ] && [ $dry = no ]; then
    echo "$family ended with status $status; the rest of its rows is measured without a vendor" | tee -a "$out/$family.log"
    measure "$family" --vendor none --skip-done
    status=$?
  fi
  # Over the model everything but eager steps must go into a graph: on a GPU the host's time would be measured with the rest.
  if [ $dry = yes ] && grep -q "no graph" "$out/$family.csv"; then status=1; grep "no graph" "$out/$family.csv" | cut -d, -f1-5 | sed 's/^/not recorded: /'; fi
  [ $status -eq 0 ] || failed="$failed $family"
  echo "$family: $(($(wc -l 2>/dev/null <"$out/$family.csv" || echo 1) - 1)) rows in $((SECONDS - started)) s$([ $status -eq 0 ] || echo ", status $status, see $out/$family.log")"
done

if [ $dry = no ]; then
  if python3 -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else 1)' 2>/dev/null; then
    for family in $families; do
      [ "$family" = gemm ] && continue           # cuBLAS is there already
      timeout 120 python3 "$here/cuda/pytorch_peer.py" --shapes "$shapes" --family "$family" --tier $tier --minutes "$(python3 -c "print($minutes * $(share_of "$family") / 400)")" \
        --seconds $seconds --commit "$commit" --out "$out/pytorch-$family.csv" >"$out/pytorch-$family.log" 2>&1 || echo "pytorch $family: see $out/pytorch-$family.log"
    done
  else
    echo "PyTorch is not installed, or finds no GPU: its columns stay empty"
  fi
fi
python3 "$here/cuda/report.py" --machine "$out/machine.csv" --out "$out/report.md" $(ls "$out"/*.csv | grep -v /machine.csv) >"$out/summary.txt" 2>"$out/report.log" || { cat "$out/report.log"; exit 1; }
head -n 60 "$out/summary.txt"
echo "report: $out/report.md"
if [ -n "$failed" ]; then
  echo "rows that failed, are wrong or were refused in:$failed"
  exit 1
fi
