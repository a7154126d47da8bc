#!/usr/bin/env bash
# Installs the library into an empty prefix, static and shared, moves it, and builds and runs a program that uses it through find_package and
# pkg-config; then once more through add_subdirectory. Usage: tests/install_consumers.sh [a static Release build, build/release by default]
set -euo pipefail
cd "$(dirname "$0")/.."
source_root=$PWD
static_build=${1:-build/release}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cxx=${CXX:-g++}

configure() { cmake -S "$1" -B "$2" -G Ninja "${@:3}" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }; }
build() { cmake --build "$1" "${@:2}" >"$work/build.log" 2>&1 || { tail -n 50 "$work/build.log"; exit 1; }; }

# Prefixes are moved after the install: nothing in them may remember where they were.
install_to() {                                   # build folder, prefix
  cmake --install "$1" --prefix "$work/first" >"$work/install.log" || { cat "$work/install.log"; exit 1; }
  mv "$work/first" "$2"
  if grep -rlF --include=*.cmake --include=*.pc -e "$source_root" -e "$work/first" "$2"; then
    echo "the files above name the place the library was built in"; exit 1
  fi
  if grep -rniE --include=*.cmake --include=*.pc -e 'hwy|highway|stb' "$2"/lib*; then
    echo "the package above asks for a library that only the build of Fovea needs"; exit 1
  fi
}

use() {                                          # kind, prefix
  local kind=$1 prefix=$2 libdir
  libdir=$(dirname "$(find "$prefix" -name fovea.pc)")/..
  configure tests/consumers/find_package "$work/find_package-$kind" -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_CXX_COMPILER="$cxx" \
    -DCMAKE_DISABLE_FIND_PACKAGE_hwy=ON
  build "$work/find_package-$kind"
  echo -n "$kind, find_package:   "
  "$work/find_package-$kind/train"

  export PKG_CONFIG_PATH=$libdir/pkgconfig
  "$cxx" -std=c++20 tests/consumers/train.cpp -o "$work/pkg_config-$kind" $(pkg-config --cflags --libs fovea)
  echo -n "$kind, pkg-config:     "
  LD_LIBRARY_PATH=$libdir "$work/pkg_config-$kind"
  if [ "$kind" = static ]; then
    "$cxx" -std=c++20 tests/consumers/train.cpp -o "$work/pkg_config-$kind-2" $(pkg-config --static --cflags --libs fovea)
  else                                           # needs nothing at run time but the C++ runtime
    local needed
    needed=$(ldd "$libdir"/libfovea.so | awk '{print $1}' | grep -vE '^(linux-vdso|/lib|libstdc\+\+|libm|libgcc_s|libc|libpthread|libdl)' || true)
    [ -z "$needed" ] || { echo "libfovea.so needs $needed"; exit 1; }
  fi
}

command -v pkg-config >/dev/null || { echo "pkg-config is missing: apt-get install pkg-config"; exit 1; }
if [ ! -f "$static_build/CMakeCache.txt" ]; then
  static_build=$work/static
  configure . "$static_build" -DCMAKE_BUILD_TYPE=Release -DFOVEA_BUILD_TESTS=OFF -DFOVEA_BUILD_EXAMPLES=OFF
fi
build "$static_build" --target fovea
install_to "$static_build" "$work/static-prefix"
use static "$work/static-prefix"

# What is tried here is packaging: kernels for one instruction set are enough, and a third of the work.
configure . "$work/shared" -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS=-DHWY_COMPILE_ONLY_STATIC -DBUILD_SHARED_LIBS=ON -DFOVEA_BUILD_TESTS=OFF -DFOVEA_BUILD_EXAMPLES=OFF
build "$work/shared"
install_to "$work/shared" "$work/shared-prefix"
use shared "$work/shared-prefix"

configure tests/consumers/add_subdirectory "$work/add_subdirectory" -DFOVEA_SOURCE="$source_root" -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_CXX_FLAGS=-DHWY_COMPILE_ONLY_STATIC
build "$work/add_subdirectory"
echo -n "add_subdirectory:       "
"$work/add_subdirectory/train"
