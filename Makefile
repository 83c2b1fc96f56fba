# make serve NAME=value ... accepts every setting of docs/configuration.md.

VENV := .venv
BIN := $(VENV)/bin
# Every NAME=value of the command line, as YOLOPARD_NAME='value' for the environment.
SETTINGS = $(foreach name,$(filter-out VENV BIN SETTINGS,$(.VARIABLES)),$(if $(filter command,$(firstword $(origin $(name)))),YOLOPARD_$(name)='$(subst ','\'',$($(name)))'))

.PHONY: serve build selftest test check lint graph site browser prometheus peers clients libb64 locks sbom audit pin-images

serve: $(VENV)/serve ## build the engine if it is missing, and serve it
	@exec env $(SETTINGS) $(BIN)/yolopard serve

build: $(VENV)/serve ## only build the engine
	@exec env $(SETTINGS) $(BIN)/yolopard build

selftest: $(VENV)/serve ## test every engine that can be built on this machine
	@exec env $(SETTINGS) $(BIN)/yolopard selftest

# passive: waiting threads of torch do not spin. With spinning threads in both processes, builds took up to twice as long.
test: $(VENV)/dev browser prometheus clients ## all tests
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m 'not serial'
	$(BIN)/python -m pytest -m serial

check: lint ## lint, and the tests without an engine: about a minute
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m 'not engine and not serial'

graph: $(VENV)/dev ## number of modules, packages and imports of app/
	@$(BIN)/python tests/imports.py

docs/configuration.md: $(VENV)/serve app/settings/*.py
	$(BIN)/python -m app.settings > $@

# The pages of the repository and the reference of `from app import Yolopard`. A broken link is an error.
site: $(VENV)/dev ## build the docs: site/docs/index.html
	$(BIN)/sphinx-build --fail-on-warning --quiet -c docs -b html . site

lint: $(VENV)/dev ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

browser: # for the tests of the web page; without it they are skipped
	@command -v chromium >/dev/null || test "$$(id -u)" != 0 || \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || true

prometheus: # for the tests of deploy/; without it they are skipped. Not with systemd, which would start it as a service
	@command -v promtool >/dev/null || test "$$(id -u)" != 0 || test -d /run/systemd/system || \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus >/dev/null; } || true

PIP = $(BIN)/python -m pip install --disable-pip-version-check --quiet --quiet --constraint deploy/constraints.txt

$(VENV)/serve: pyproject.toml deploy/constraints.txt
	@test -x $(BIN)/python || python3 -m venv $(VENV)
	@echo "Installing the packages for building and serving into $(VENV) (once; a few minutes)"
	@$(PIP) --editable '.[bench,build,grpc,openvino,onnxruntime]'
	@$(HEADLESS)
	@touch $@

$(VENV)/dev: $(VENV)/serve
	@echo "Installing the packages for the tests"
	@$(PIP) --editable '.[dev]'
	@$(HEADLESS)
	@touch $@

# Servers that Yolopard is compared with (loadtest/compare.py), in their own virtual environment: 7 GB, due to torch.
PEERS := .venv-peers

peers: $(PEERS)/installed ## install the servers that Yolopard is compared with

$(PEERS)/installed: BIN := $(PEERS)/bin
$(PEERS)/installed: loadtest/peers/requirements.txt deploy/constraints.txt
	@test -x $(BIN)/python || python3 -m venv $(PEERS)
	@echo "Installing the peers into $(PEERS) (once; a few minutes, 7 GB)"
	@$(PIP) --requirement loadtest/peers/requirements.txt
	@$(HEADLESS)
	@touch $@

libb64: # perf_analyzer needs it; without it, perf_analyzer is left out
	@ldconfig -p | grep -q libb64.so.0d || test "$$(id -u)" != 0 || \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends libb64-0d >/dev/null; } || true

# Clients that need older packages than Yolopard (tests/clients), in their own virtual environment.
CLIENTS := .venv-clients

# The last tritonclient that has perf_analyzer, and CUDA's runtime, which perf_analyzer needs to start.
PERF_ANALYZER := tritonclient==2.50.0 nvidia-cuda-runtime-cu12==12.9.79

clients: libb64 $(CLIENTS)/installed ## install the clients that need other packages than Yolopard

$(CLIENTS)/installed: PIP = $(CLIENTS)/bin/python -m pip install --disable-pip-version-check --quiet --quiet
$(CLIENTS)/installed: tests/clients/requirements.txt
	@test -x $(CLIENTS)/bin/python || python3 -m venv $(CLIENTS)
	@echo "Installing clients into $(CLIENTS) (once; a minute)"
	@$(PIP) --requirement tests/clients/requirements.txt
	@$(HEADLESS)==$$(sed -n 's/^opencv-python==//p' tests/clients/requirements.txt)
	@$(PIP) --no-deps --target $(CLIENTS)/perf_analyzer $(PERF_ANALYZER)
	@touch $@

# The contents of the images: deploy/README.md.
SUPPLY := .venv-supply

$(SUPPLY)/installed: PIP = $(SUPPLY)/bin/python -m pip install --disable-pip-version-check --quiet --quiet
$(SUPPLY)/installed: deploy/supply.txt
	@test -x $(SUPPLY)/bin/python || python3 -m venv $(SUPPLY)
	@$(PIP) --requirement deploy/supply.txt
	@touch $@

# For all platforms, because an image may be built on another one.
LOCK = $(SUPPLY)/bin/uv pip compile pyproject.toml --group image --constraint deploy/constraints.txt \
  --excludes deploy/not-locked.txt --generate-hashes --universal --python-version 3.11 --no-emit-index-url --custom-compile-command 'make locks' --quiet

locks: $(SUPPLY)/installed ## pin the images' packages, with hashes; after a change of pyproject.toml or constraints.txt
	$(LOCK:pyproject.toml=) --output-file deploy/base.lock
	$(LOCK) --extra grpc --extra openvino --output-file deploy/cpu.lock
	$(LOCK) --extra build --extra onnxruntime --extra openvino --output-file deploy/build.lock
	$(LOCK) --extra build --extra grpc --extra tensorrt --output-file deploy/gpu.lock

# Not in `locks`: it uses PyTorch's package index, which has the small torch for CPUs only.
deploy/build-cpu.lock: $(SUPPLY)/installed
	$(LOCK) --extra build --extra onnxruntime --extra openvino --torch-backend cpu --output-file $@

IMAGES := cpu build gpu

sbom: $(SUPPLY)/installed ## list the packages of each image, as CycloneDX: sbom/*.cdx.json
	@mkdir -p sbom
	@for image in $(IMAGES); do \
	  PYTHONWARNINGS=ignore $(SUPPLY)/bin/cyclonedx-py requirements deploy/$$image.lock --pyproject pyproject.toml \
	  --mc-type application --output-reproducible --output-format JSON --output-file sbom/$$image.cdx.json || exit 1; done

audit: $(SUPPLY)/installed ## check the packages of the images for known vulnerabilities
	@deploy/audit $(SUPPLY)/bin/pip-audit $(IMAGES:%=deploy/%.lock)

pin-images: ## pin the third-party images to the current digests of their tags; needs docker
	@deploy/pin-images

# Ultralytics installs opencv-python, which needs libGL and has the same files: the headless one is installed last.
HEADLESS = $(PIP) --force-reinstall --no-deps opencv-python-headless
