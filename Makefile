# `make demo` runs the main job, `make test` the checks; both set everything up first.
PYTHON ?= python3
BIN := .venv/bin
# Plain PyPI brings gigabytes of CUDA with it; with access to PyTorch's own CPU index, add it here.
TORCH ?= torch==2.13.0

.PHONY: demo test lint deb setup clean
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

setup: .venv/ready

.venv/ready: pyproject.toml compiler/pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install $(TORCH)
	$(BIN)/pip install -e . -e ./compiler --group dev
	touch $@

clean:
	rm -rf .venv build dist demo
