#!/usr/bin/env bash
# Everything that must hold before a change lands, stage by stage; stops at the first failure.
#   format   every source as clang-format leaves it
#   test     release build, warnings as errors, all tests, C and consumer programs
#   asan     AddressSanitizer + UBSan, all tests with the conformance sweep reduced
#   tsan     ThreadSanitizer, the threading tests
#   fuzz     the file readers under libFuzzer for a short while
#   python   the Python package, installed into a virtual environment with PyTorch from PyPI;
#            TESSERA_TEST_PYTHON=0 leaves it out
# With arguments, only those stages.
set -uo pipefail
cd "$(dirname "$0")/.."

jobs=$(nproc)
logs=build/logs
mkdir -p "$logs"
launcher=()
if command -v ccache >/dev/null; then
  launcher=(-DCMAKE_{C,CXX,CUDA}_COMPILER_LAUNCHER=ccache)
fi
# Sanitizers need their shadow memory's addresses free, which strong address randomisation denies.
steady=()
if setarch -R true 2>/dev/null; then steady=(setarch -R); fi

# build PRESET [TARGET…]
build() {
  local preset=$1
  shift
  cmake --preset "$preset" "${launcher[@]}" -DTESSERA_WERROR=ON \
    -DCMAKE_CUDA_ARCHITECTURES="$(scripts/chips.sh)" >"$logs/$preset.configure" ||
    { cat "$logs/$preset.configure"; return 1; }
  cmake --build "build/$preset" -j "$jobs" ${1:+--target "$@"}
}

stage_format() { scripts/format.sh --check; }

stage_test() { build test && ctest --preset test -j "$jobs"; }

# GCC 12 aligns stacks that it watches after return to 32 bytes, and kernels of
# AVX-512 want 64 (GCC bug 110027): where those run, that check does not.
after_return=1
if grep -qw avx512f /proc/cpuinfo; then after_return=0; fi

stage_asan() {
  build asan &&
    ASAN_OPTIONS=detect_stack_use_after_return=$after_return UBSAN_OPTIONS=print_stacktrace=1 \
      "${steady[@]}" ctest --preset asan -j "$jobs"
}

stage_tsan() { build tsan threading_tests && "${steady[@]}" ctest --preset tsan -j "$jobs"; }

stage_fuzz() { build fuzz fuzz_npy fuzz_safetensors && ctest --preset fuzz -j "$jobs"; }

stage_python() { scripts/python.sh; }

stages=("$@")
if [ "$#" -eq 0 ]; then
  stages=(format test asan tsan fuzz)
  [ "${TESSERA_TEST_PYTHON:-1}" = 0 ] || stages+=(python)
fi
recap=()
for stage in "${stages[@]}"; do
  echo "== $stage"
  started=$SECONDS
  "stage_$stage" 2>&1 | tee "$logs/$stage"
  status=${PIPESTATUS[0]}
  closing=$(grep -E 'tests passed, .* out of|[0-9]+ passed' "$logs/$stage" | tail -n 1)
  recap+=("$(printf '%-8s %4ds  %s' "$stage" $((SECONDS - started)) "$closing")")
  if [ "$status" -ne 0 ]; then
    printf '%s\n' "" "${recap[@]}" "make test: FAILED in $stage (log: $logs/$stage)"
    exit 1
  fi
done
printf '%s\n' "" "${recap[@]}" "make test: all ${#stages[@]} stages passed in ${SECONDS}s"
