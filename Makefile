# `make demo` runs the main job, `make test` the checks; both set everything up first.
PYTHON ?= python3
BIN := .venv/bin
# Plain PyPI brings gigabytes of CUDA with it; with access to PyTorch's own CPU index, add it here.
TORCH ?= torch==2.13.0
# GCC before 13 miscompiles llama.cpp's set-up of AMX tiles; without them its other fast kernels are used.
ifeq ($(shell uname -m),x86_64)
NO_AMX := $(shell flags='-mno-amx-tile -mno-amx-int8 -mno-amx-bf16'; \
	$${CXX:-c++} $$flags -x c++ -E - </dev/null >/dev/null 2>&1 && echo "$$flags")
ifneq ($(NO_AMX),)
export CMAKE_ARGS ?= -DCMAKE_C_FLAGS='$(NO_AMX)' -DCMAKE_CXX_FLAGS='$(NO_AMX)'
endif
endif

.PHONY: demo test lint deb anchors setup clean
demo: setup
	$(BIN)/fieldlm demo

test: setup lint
	$(BIN)/pytest

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

deb: setup
	$(BIN)/python packaging/build_deb.py

# llama-server, llama-bench and onnxruntime-genai in the user's cache, for benchmarks/serving.py.
anchors: setup
	$(BIN)/python benchmarks/anchors.py

setup: .venv/ready

.venv/ready: pyproject.toml compiler/pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install $(TORCH)
	$(BIN)/pip install -e . -e ./compiler --group dev
	touch $@

clean:
	rm -rf .venv build dist demo
