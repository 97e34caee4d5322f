# Each target prints the commands that it runs. PYTHON is the interpreter that makes the .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow lint fuzz bench interop arm android android-test android-arm

demo: .venv/ready  ## the main job, on synthesised sounds: 10 to 20 minutes on 2 cores
	$(BIN)/ced-edge distill --size tiny --name demo

test: .venv/ready  ## all tests, offline, on the CPU: a few minutes
	$(BIN)/pytest

slow: .venv/ready  ## the tests that take minutes each
	$(BIN)/pytest -m slow

torture: .venv/ready  ## 1,000 kills and 400 failing disks at random moments of all stages; needs a C compiler
	$(BIN)/python tests/torture.py --kills 1000 --failures 400 --work .venv/torture

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

FUZZ ?= --cases 10000
fuzz: .venv/ready  ## 10,000 damaged files of every kind; make fuzz FUZZ='--kind wav --seed 1' for others
	$(BIN)/python tests/fuzz.py $(FUZZ)

bench: .venv/ready  ## speed of training and teaching
	$(BIN)/python benchmarks/distill_speed.py

# The other programs that `pytest -m interop` runs on our files, each in an environment of its own.
interop: $(patsubst %,.venv/interop/%/ready,mediapipe sherpa-onnx tensorflow tflite-runtime onnxruntime-web)

BUNDLE ?= .venv/bundle
arm: .venv/ready $(BUNDLE)  ## predictions of a bundle on emulated ARM; make arm BUNDLE=folder for your own
	$(BIN)/python interop/arm.py $(BUNDLE)

.venv/bundle:
	$(BIN)/ced-edge export students/tiny --int8 --out $@

# The demonstration app. It needs JDK 17, Maven, npm and apt; docs/android.md.
ANDROID := .venv/android
ANDROID_BUNDLE ?= ced_edge/models/tiny
android: .venv/ready  ## APKs for three kinds of processors, checked, in .venv/android/apk
	android_demo/build_apk.sh $(ANDROID_BUNDLE) $(ANDROID)/apk
	STORED=1 android_demo/build_apk.sh $(ANDROID_BUNDLE) $(ANDROID)/apk arm64-v8a
	$(BIN)/python android_demo/tools/check_apk.py $(ANDROID)/apk/*.apk

android-test: android  ## the app on the real framework, on the JVM
	android_demo/tools/test.sh $(ANDROID_BUNDLE)

android-arm: android-test  ## the APK's arm64 library and model, emulated
	android_demo/tools/arm.sh $(ANDROID)/apk/ced-edge-arm64-v8a.apk

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
