#!/usr/bin/env bash
# Installs the Python package from source into a virtual environment, build/python-env, with PyTorch
# and transformers from PyPI, and runs its tests.
set -euo pipefail
cd "$(dirname "$0")/.."

env=${TESSERA_PYTHON_ENV:-build/python-env}
[ -x "$env/bin/python" ] || python3 -m venv "$env"
pip=("$env/bin/python" -m pip install -q --disable-pip-version-check)
"${pip[@]}" 'torch>=2.10' 'transformers>=5.0' 'matplotlib>=3.7' 'tqdm>=4.60' 'pytest>=8' \
  'numpy>=1.24' \
  'scikit-build-core>=0.11' 'cmake>=3.22' ninja

export SKBUILD_BUILD_DIR=build/python
CMAKE_ARGS="-DTESSERA_WERROR=ON -DCMAKE_CUDA_ARCHITECTURES=$(scripts/chips.sh)"
# Without a GPU nothing here would run its kernels, which other stages compile.
[ -n "$(nvidia-smi -L 2>/dev/null)" ] || CMAKE_ARGS+=" -DTESSERA_CUDA=OFF"
if command -v ccache >/dev/null; then
  CMAKE_ARGS+=" -DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache"
  CMAKE_ARGS+=" -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache"
fi
export CMAKE_ARGS
"${pip[@]}" --no-build-isolation --force-reinstall --no-deps .
"$env/bin/python" -m pytest -q -p no:cacheprovider
