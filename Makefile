# The thin front of the CMake build; see CMakePresets.json for the build directories.
BUILD := build/release
JOBS := $(shell nproc)
PRESET = cmake --preset release $(LAUNCHER) -DCMAKE_CUDA_ARCHITECTURES="$(shell scripts/chips.sh)"
LAUNCHER = $(shell command -v ccache > /dev/null && echo -DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache)

.DEFAULT_GOAL := help
.PHONY: help setup build run test bench format tidy install clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install the packages that are missing (apt; Debian 12, Ubuntu 22.04 and 24.04)
	@scripts/setup.sh

build: setup ## Build the library and the command line into build/release
	@$(PRESET) -DTESSERA_BUILD_TESTS=OFF
	@cmake --build $(BUILD) -j $(JOBS)

run: build ## Build, then the demo: info, check on real activations, benchmarks and plots
	@scripts/demo.sh $(BUILD)

test: setup ## Build and run all tests, sanitizers and fuzzers included
	@scripts/test.sh

bench: build ## Build, then the core benchmark suite
	@$(BUILD)/cli/tessera bench --suite core

format: setup ## Format the sources
	@scripts/format.sh

tidy: build ## Lint the library with clang-tidy (if installed)
	@scripts/tidy.sh $(BUILD)

install: build ## Install to PREFIX (default /usr/local)
	@cmake --install $(BUILD) --prefix $(or $(PREFIX),/usr/local)

clean: ## Remove everything that was built
	rm -rf build
