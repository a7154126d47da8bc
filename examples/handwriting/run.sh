#!/usr/bin/env bash
# Builds Fovea, trains a recognizer on lines of handwriting that the program draws itself, and shows what it reads. Takes the options of `fovea-handwriting train`.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
bash "$root/cmake/install_missing.sh"
echo "Building ..."
cmake -S "$root" -B "$root/build/example" -G Ninja -DCMAKE_BUILD_TYPE=Release -DFOVEA_BUILD_TESTS=OFF >/dev/null
cmake --build "$root/build/example" --target fovea-handwriting
cd "$root"
exec "$root/build/example/examples/handwriting/fovea-handwriting" train --out out "$@"
