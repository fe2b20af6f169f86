#!/usr/bin/env bash
# Prints the CMAKE_CUDA_ARCHITECTURES of this machine's GPUs. Without one: a single chip, so that
# the kernels are compiled at all.
set -euo pipefail

chips=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
  sed -n 's/^\([0-9]*\)\.\([0-9]\)$/\1\2-real/p' | sed 's/^90-/90a-/' | sort -u | paste -sd ';') ||
  true
echo "${chips:-90a-real}"
