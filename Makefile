# make demo: from nothing to recommendations.  make test: every test.  make check: style, types, layout.
# make sanitize: the kernel tests under the address and undefined-behaviour sanitizers.
# make cross: the kernels built for another processor (Arm by default) and checked in an emulator.
# Each does all of its own set-up in .venv (or build/), and only what has changed is done again.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml CMakeLists.txt $(wildcard kernels/*)

.PHONY: demo test check sanitize cross clean

demo: .venv/.demo
	$(BIN)/eckart demo

test: .venv/.test
	$(BIN)/python -m pytest -n auto

check: .venv/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/test_layout.py
	$(BIN)/clang-format --dry-run --Werror kernels/* tests/kernels/*.cpp

sanitize: build/sanitize/.done
	LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	build/sanitize/venv/bin/python -m pytest -p no:cacheprovider -s tests/kernels

# Debian: apt-get install g++-aarch64-linux-gnu qemu-user
CROSS ?= aarch64-linux-gnu-g++
CROSS_FLAGS ?= -static
EMULATOR ?= qemu-aarch64
cross:
	mkdir -p build
	$(CROSS) -std=c++20 -O3 -ffp-contract=fast -Wall -Wextra -Werror $(CROSS_FLAGS) -o build/self_check \
	    tests/kernels/self_check.cpp $(filter-out kernels/bindings.cpp,$(wildcard kernels/*.cpp)) -pthread
	$(EMULATOR) build/self_check

clean:
	rm -rf .venv build

.venv/bin/python:
	$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python {v[0]}.{v[1]} found, eckart needs 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python $(SOURCES)
	$(BIN)/python -m pip install -q -e '.[demo]'
	touch $@

# What the tests of towers and encoders need and the others do not, for example WITH='torch transformers pillow'.
WITH ?=
.venv/.test: .venv/bin/python $(SOURCES)
	$(BIN)/python -m pip install -q --no-compile $(WITH) -e '.[test]'
	touch $@ .venv/.demo

build/sanitize/.done: $(SOURCES) $(wildcard src/eckart/core/*.py)
	$(PYTHON) -m venv build/sanitize/venv
	build/sanitize/venv/bin/python -m pip install -q hypothesis pytest pytest-timeout
	build/sanitize/venv/bin/python -m pip install -q --config-settings=cmake.define.ECKART_SANITIZE=ON \
	    --config-settings=build-dir=build/sanitize/cmake .
	touch $@
