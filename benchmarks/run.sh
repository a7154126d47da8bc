#!/usr/bin/env bash
# Measures Fovea against OpenBLAS and PyTorch on the shapes of cases.csv, alternating, with one thread and with two, and writes one Markdown table and one CSV.
# Usage: benchmarks/run.sh [--out DIR] [--filter FAMILY] [--rounds N] [--threads "1 2"]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
out=$root/out/benchmarks filter="" rounds=3 thread_counts="1 2"
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2; shift 2 ;;
    --filter) filter=$2; shift 2 ;;
    --rounds) rounds=$2; shift 2 ;;
    --threads) thread_counts=$2; shift 2 ;;
    *) echo "benchmarks/run.sh: unknown option $1 (--out, --filter, --rounds, --threads)" >&2; exit 2 ;;
  esac
done

bash "$root/cmake/install_missing.sh" benchmarks
cmake -S "$root" -B "$root/build/benchmarks" -G Ninja -DCMAKE_BUILD_TYPE=Release -DFOVEA_BUILD_BENCHMARKS=ON -DFOVEA_BUILD_TESTS=OFF -DFOVEA_BUILD_EXAMPLES=OFF >/dev/null
cmake --build "$root/build/benchmarks"
mkdir -p "$out/raw"
rm -f "$out"/raw/*.json

has_pytorch=yes
if ! python3 -c "import torch" 2>/dev/null; then
  has_pytorch=no
  echo "PyTorch is not installed (pip install torch): its rows are left out."
fi
# OpenBLAS 0.3.21 does not know the newest processors and falls back to slow kernels: name the right ones where AVX-512 is there.
if grep -qs avx512f /proc/cpuinfo; then export OPENBLAS_CORETYPE=${OPENBLAS_CORETYPE:-SKYLAKEX}; fi
for threads in $thread_counts; do
  for round in $(seq "$rounds"); do
    echo "threads $threads, round $round of $rounds"
    export FOVEA_NUM_THREADS=$threads OMP_NUM_THREADS=$threads OPENBLAS_NUM_THREADS=$threads
    "$root/build/benchmarks/benchmarks/fovea_bench" --cases="$here/cases.csv" --family="$filter" --benchmark_min_time=0.2 --benchmark_format=json \
      >"$out/raw/fovea-$threads-$round.json"
    if [ $has_pytorch = yes ]; then
      python3 "$here/pytorch_peer.py" --threads "$threads" --seconds 0.2 --filter "$filter" >"$out/raw/pytorch-$threads-$round.json"
    fi
  done
done
commit=$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)
python3 "$here/report.py" --raw "$out/raw" --cases "$here/cases.csv" --out "$out" --commit "$commit"
