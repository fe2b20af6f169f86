#!/usr/bin/env bash
# demo.sh BUILD: this machine, every implementation checked on real activations, what
# quantising costs in accuracy, and what exact and block-sparse attention save over standard attention, as a table and as plots.
set -euo pipefail
cd "$(dirname "$0")/.."

tessera=$1/cli/tessera
plots=build/demo
mkdir -p "$plots"

title() { printf '\n== %s\n' "$*"; }
show() {
  title "$@"
  "$@"
}

show "$tessera" info
for file in data/*.safetensors; do
  show "$tessera" check --q "$file:q" --k "$file:k" --v "$file:v" --causal
done
show "$tessera" check --precision sage8,sage4 --heads 1 --seq 128 --causal \
     --activations data/*.safetensors
show "$tessera" bench --suite demo --plot "$plots/demo" --json "$plots/demo.json"
