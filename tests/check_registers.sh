#!/usr/bin/env bash
# Reads what ptxas said while the CUDA backend was built (-DFOVEA_PTXAS_REPORT=ON) and fails where a kernel spills registers to memory, or has no limit of its own:
# __launch_bounds__ beside a kernel is its limit, which ptxas keeps by spilling. Prints the kernels that use the most registers.
# Usage: tests/check_registers.sh BUILD_LOG
set -euo pipefail
log=${1:?usage: tests/check_registers.sh BUILD_LOG}
root=$(cd "$(dirname "$0")/.." && pwd)

unbounded=$(grep -rn --include='*.cu' --include='*.h' '__global__' "$root/kernels/cuda" | grep -v '__launch_bounds__' || true)
if [ -n "$unbounded" ]; then
  echo "kernels without __launch_bounds__:" && echo "$unbounded" && exit 1
fi

table=$(mktemp)
trap 'rm -f "$table"' EXIT
# One line a kernel: registers, bytes of spill stores and loads, bytes of stack, architecture, name.
awk '/Compiling entry function/ { split($0, part, "\047"); name = part[2]; arch = part[4] }
     /bytes spill stores/       { stack = $1; spill = $5 + $9; sub(/^.*frame, /, ""); split($0, w, " "); spill = w[1] + w[5] }
     /Used [0-9]+ registers/    { for (i = 1; i < NF; ++i) if ($i == "Used") print $(i + 1), spill, stack, arch, name }' "$log" >"$table"
kernels=$(wc -l <"$table")
[ "$kernels" -gt 0 ] || { echo "$log: says nothing of kernels; was it built from nothing with -DFOVEA_PTXAS_REPORT=ON?"; exit 1; }

readable() { if command -v c++filt >/dev/null; then c++filt; else cat; fi; }
echo "$kernels kernels; those with the most registers:"
sort -rn "$table" | awk 'NR <= 5 { print "  " $1 " registers, " $4 ", " $5 }' | readable
spilling=$(awk '$2 > 0 { print "  " $2 " bytes, " $4 ", " $5 }' "$table" | readable)
if [ -n "$spilling" ]; then
  echo "kernels that spill:" && echo "$spilling" && exit 1
fi
echo "none spills"
