# Thin targets; each one shows what it does. PYTHON chooses the interpreter the .venv is made from.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow lint bench

demo: .venv/ready  ## the main job, on synthesised sounds: under 10 minutes on 2 cores
	$(BIN)/ced-edge distill --size tiny --name demo

test: .venv/ready  ## offline, on the CPU, a few minutes
	$(BIN)/pytest

slow: .venv/ready  ## the tests that take minutes each
	$(BIN)/pytest -m slow

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready  ## training and teaching speed, as ratios in one run
	$(BIN)/python benchmarks/distill_speed.py

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --progress-bar off -e '.[dev]'
	touch $@
