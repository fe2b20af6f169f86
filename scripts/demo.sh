#!/usr/bin/env bash
# demo.sh BUILD: Tessera's main job on a sample of real activations, and what it is worth.
set -euo pipefail
cd "$(dirname "$0")/.."
