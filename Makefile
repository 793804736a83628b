# `make demo` runs the main job, `make test` the checks, `make quick` a minute of them; each sets everything up first.
PYTHON ?= python3
BIN := .venv/bin
# Plain PyPI brings gigabytes of CUDA with it; with access to PyTorch's own CPU index, add it here.
TORCH ?= torch==2.13.0
# The llama.cpp that `make wheels` or `make deb` built for every processor is taken as it is; with CMAKE_ARGS of yours it
# is built as they say.
ifeq ($(origin CMAKE_ARGS),undefined)
ENGINE = $$($(BIN)/python packaging/build_engine.py --built)
endif
# GCC before 13 miscompiles llama.cpp's set-up of AMX tiles; without them its other fast kernels are used.
ifeq ($(shell uname -m),x86_64)
NO_AMX := $(shell flags='-mno-amx-tile -mno-amx-int8 -mno-amx-bf16'; \
	$${CXX:-c++} $$flags -x c++ -E - </dev/null >/dev/null 2>&1 && echo "$$flags")
ifneq ($(NO_AMX),)
export CMAKE_ARGS ?= -DCMAKE_C_FLAGS='$(NO_AMX)' -DCMAKE_CXX_FLAGS='$(NO_AMX)'
endif
endif

# Tests on so many processes; `make test ARGS="tests/api -k x"` runs those alone, without ruff and pyright.
JOBS ?= $(shell nproc)
ARGS ?=
# What a run of all tests begins with: a `timeout`, for example.
LIMIT ?=

.PHONY: demo test quick deep durations pytest lint format types docs deb image wheels dist version anchors setup clean
demo: setup
	$(BIN)/fieldlm demo

# Types beside the tests, which often wait.
test: setup
	$(if $(ARGS),$(MAKE) pytest,$(MAKE) --jobs=2 lint pytest)

# In a minute: what differs from main, with what imports it, and the tests that take a moment. `make test` checks all.
quick: setup
	$(MAKE) --jobs=3 format quick-types quick-pytest

# Every kill, power cut and damaged input of the random tests: hours.
deep: setup
	FIELDLM_DEPTH=200 $(MAKE) pytest ARGS="-o faulthandler_timeout=0 $(ARGS)"

# What each test file takes, one after the other, for the order in which they run: tests/durations.json.
durations: setup
	$(BIN)/pytest --write-durations -o faulthandler_timeout=0 $(ARGS)

pytest: setup
	$(LIMIT) $(BIN)/pytest --numprocesses=$(JOBS) $(ARGS)

lint: format types

format: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/pyright

.PHONY: quick-types quick-pytest
quick-types: setup
	$(BIN)/python -m tests.support.affected | xargs --no-run-if-empty $(BIN)/pyright

quick-pytest: setup
	$(BIN)/pytest --quick --numprocesses=$(JOBS) -q $(ARGS)

# The documentation as a site, in build/docs; a broken link or a page that asks another machine for anything is an error.
docs: setup
	$(BIN)/python -c 'import material, mkdocstrings_handlers.python' 2>/dev/null || $(BIN)/pip install -q --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Packages are for every processor of an architecture; CPU=native: as llama.cpp is built for this machine's alone.
# WITH_PYTHON=1 brings a Python and a C library, for systems with older ones.
CPU ?= every
ARCH ?= $(shell uname -m)

deb: setup
	$(BIN)/python packaging/build_deb.py --cpu $(CPU) --arch $(ARCH) $(if $(WITH_PYTHON),--with-python)

# A disk that boots into it: BOARD=generic-amd64, generic-arm64 or pi4; what goes in: BUNDLE, PROVISION, READ_ONLY=1.
BOARD ?= generic-amd64
IMAGE := $(if $(BUNDLE),--bundle '$(BUNDLE)') $(if $(PROVISION),--provision '$(PROVISION)') \
	$(if $(READ_ONLY),--read-only) $(if $(PACKAGES),--packages '$(PACKAGES)') $(if $(CMDLINE),--cmdline '$(CMDLINE)')

image: setup
	$(BIN)/python packaging/build_image.py --board $(BOARD) $(IMAGE)

# The device half and all that it needs, in dist/wheels, each library of llama.cpp once.
wheels: setup
	$(BIN)/python packaging/build_wheels.py --cpu $(CPU) --arch $(ARCH)

# Both halves as they go to PyPI.
dist: setup
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m build --outdir dist compiler

version: setup
	@$(BIN)/python -c "import tomllib; print(tomllib.load(open('pyproject.toml', 'rb'))['project']['version'])"

# llama-server, llama-bench and onnxruntime-genai in the user's cache, for benchmarks/serving.py.
anchors: setup
	$(BIN)/python benchmarks/anchors.py

setup: .venv/ready

.venv/ready: pyproject.toml compiler/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and sys.argv[1])' \
		"fieldlm needs Python 3.11 or newer, $(PYTHON) is older; name one: make PYTHON=python3.12"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install $(TORCH)
	$(BIN)/pip install $(ENGINE) -e '.[broker,llama,onnx]' -e './compiler[delta,kafka,otlp,qlora,ray]' --group dev
	touch $@

clean:
	rm -rf .venv build dist demo
