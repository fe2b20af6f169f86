#!/usr/bin/env bash
# tidy.sh BUILD: clang-tidy over the library's and the command line's sources, as BUILD compiles them.
set -euo pipefail
cd "$(dirname "$0")/.."

tidy=$(command -v clang-tidy-14 || command -v clang-tidy) || {
  echo "tidy: no clang-tidy, expected it installed: apt-get install clang-tidy" >&2
  exit 1
}
git ls-files -z -- 'src/*.cpp' 'cli/*.cpp' | xargs -0 -n 4 -P "$(nproc)" "$tidy" -p "$1" --quiet
