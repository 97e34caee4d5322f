# Each target prints the commands that it runs. PYTHON is the interpreter that makes the .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow lint bench interop arm

demo: .venv/ready  ## the main job, on synthesised sounds: under 10 minutes on 2 cores
	$(BIN)/ced-edge distill --size tiny --name demo

test: .venv/ready  ## all tests, offline, on the CPU: a few minutes
	$(BIN)/pytest

slow: .venv/ready  ## the tests that take minutes each
	$(BIN)/pytest -m slow

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready  ## speed of training and teaching
	$(BIN)/python benchmarks/distill_speed.py

# The other programs that `pytest -m interop` runs on our files, each in an environment of its own.
interop: $(patsubst %,.venv/interop/%/ready,mediapipe sherpa-onnx tensorflow tflite-runtime onnxruntime-web)

BUNDLE ?= .venv/bundle
arm: .venv/ready $(BUNDLE)  ## predictions of a bundle on emulated ARM; make arm BUNDLE=folder for your own
	$(BIN)/python interop/arm.py $(BUNDLE)

.venv/bundle:
	$(BIN)/ced-edge export students/tiny-esc10-pool --int8 --out $@

# tflite-runtime has no wheels for Python 3.12 and later.
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
