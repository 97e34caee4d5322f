# Thin targets; each one shows what it does. PYTHON chooses the interpreter the .venv is made from.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow lint bench interop arm

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

# The other programs that `pytest -m interop` runs on our files, each in a place of its own.
interop: $(patsubst %,.venv/interop/%/ready,mediapipe sherpa-onnx tensorflow tflite-runtime onnxruntime-web)

BUNDLE ?= .venv/bundle
arm: .venv/ready $(BUNDLE)  ## numerics of a bundle on ARM, emulated: make arm, or make arm BUNDLE=folder
	$(BIN)/python interop/arm.py $(BUNDLE)

.venv/bundle:
	$(BIN)/ced-edge export students/tiny-esc10-pool --int8 --out $@

# tflite-runtime has no wheels for a Python after 3.11.
INTEROP_PYTHON ?= python3.11
.venv/interop/%/ready: interop/%.txt
	$(INTEROP_PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --progress-bar off -r $<
	touch $@

.venv/interop/onnxruntime-web/ready: interop/package.json
	mkdir -p $(@D) && cp $< $(@D)
	npm install --prefix $(@D) --no-audit --no-fund
	touch $@

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --progress-bar off -e '.[dev]'
	touch $@
