#!/usr/bin/env bash
# Installs what is missing, builds a Release and runs every test. Arguments go to ctest, e.g. tests/run.sh -R autograd
set -euo pipefail
cd "$(dirname "$0")/.."

cmake/install_missing.sh tests
cmake --preset release
cmake --build --preset release
ctest --preset release -j "$(nproc)" "$@"
