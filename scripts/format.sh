#!/usr/bin/env bash
# format.sh [--check]: formats every C, C++ and CUDA source, or fails if one is not formatted.
set -euo pipefail
cd "$(dirname "$0")/.."

mode=(-i)
[ "${1:-}" != --check ] || mode=(--dry-run -Werror)
git ls-files -z -- \
  '*.c' '*.h' '*.cpp' '*.hpp' '*.cu' '*.cuh' | xargs -0 -r clang-format-14 "${mode[@]}"
