#!/usr/bin/env bash
# Installs what building Fovea needs and this machine lacks, through apt, and says what. Usage: cmake/install_missing.sh [tests] [fuzzers] [consumers] [benchmarks]
set -euo pipefail

missing=()
need_program() { command -v "$1" >/dev/null || missing+=("$2"); }
need_header() {                                  # header, package
  local root
  for root in /usr/include /usr/include/stb /usr/local/include /usr/local/include/stb ${CPATH:+${CPATH//:/ }}; do
    [ -e "$root/$1" ] && return
  done
  missing+=("$2")
}

need_program g++ g++
need_program cmake cmake
need_program ninja ninja-build
need_header hwy/highway.h libhwy-dev
need_header stb_image.h libstb-dev
for part in "$@"; do
  case $part in
    tests) need_header doctest/doctest.h doctest-dev ;;
    fuzzers) need_program clang++ clang; dpkg -s libclang-rt-14-dev libclang-rt-dev >/dev/null 2>&1 || missing+=(libclang-rt-dev) ;;
    consumers) need_program pkg-config pkg-config ;;
    benchmarks) need_header benchmark/benchmark.h libbenchmark-dev ;;
    *) echo "install_missing.sh: no part is called '$part' (tests, fuzzers, consumers, benchmarks)" >&2; exit 2 ;;
  esac
done
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
  echo "Missing: ${missing[*]} (Debian's package names). This machine has no apt-get; install them with its package manager and run this again." >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "Missing: ${missing[*]}. Install them as root and run this again: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
echo "Installing what is missing: ${missing[*]}"
"${as_root[@]}" apt-get update -qq || echo "apt-get update failed; trying with the package lists that are there" >&2
if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >/dev/null; then
  echo "apt-get could not install ${missing[*]}; the message above says why" >&2
  exit 1
fi
