#!/usr/bin/env bash
# Sets up a fresh Debian 12 and does one thing:
#   tools/setup.sh build    install what is missing, build all into build/
#   tools/setup.sh demo     the same for the programs alone, then the main job (tools/demo.sh)
#   tools/setup.sh test     build, then every test
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-build}" in
  build | demo | test) ;;
  *) echo "usage: tools/setup.sh [build | demo [--quick] | test]" >&2; exit 2 ;;
esac

packages="g++ meson ninja-build pkg-config libdnnl-dev libfmt-dev doctest-dev libsndfile1-dev
  libsoxr-dev libcli11-dev libtomlplusplus-dev nlohmann-json3-dev libxxhash-dev libkissfft-dev
  libhwy-dev sctk"
[ "${1:-build}" = demo ] || packages="$packages libboost-context-dev"  # the emulator, for the tests
missing=$(for p in $packages; do dpkg -s "$p" >/dev/null 2>&1 || echo "$p"; done)
if [ -n "$missing" ]; then
  sudo=$([ "$(id -u)" = 0 ] || echo sudo)
  if [ -n "$sudo" ] && ! command -v sudo >/dev/null; then
    echo "tools/setup.sh: neither root nor sudo; have these packages installed first:" $missing >&2
    exit 1
  fi
  $sudo apt-get update
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing
fi
meson setup build $([ ! -f build/build.ninja ] || echo --reconfigure)  # what is there may be new
# Threads that wait sleep soon: with every core busy elsewhere, spinning is 30 times slower.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}
case "${1:-build}" in
  build) ninja -C build ;;
  demo)
    ninja -C build programs
    tools/demo.sh "${@:2}" ;;
  test)
    ninja -C build
    build/tests ;;
esac
