# One command each; every target sets up what it needs. `make help` lists them.

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help setup demo repro repro-fast train-distributed verify audit robustness doctor report export serve plots figures test quick faults bench lint format hooks lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 26

setup: .venv/ready ## make the environment in .venv, from the lock

# pip installs nothing whose hash is not in the lock.
.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else \
	    f"Python 3.11, 3.12 or 3.13 is needed (TensorFlow has no wheels for others), found %d.%d; name one: \
	make $(MAKECMDGOALS) PYTHON=python3.12" % v)'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

demo: setup ## all four stages on the embedded digits, offline, in demo/
	$(BIN)/python -m tools.demo

repro: setup ## the pipeline on CIFAR-10; reruns what changed
	$(BIN)/python -m tools.check
	$(BIN)/dvc repro
	$(BIN)/dvc metrics show

repro-fast: setup ## the same with the fast recipe: recipes/fast.yaml, written into params.yaml
	$(BIN)/python -m tools.recipe fast
	@$(MAKE) --no-print-directory repro

verify: setup ## rebuild the demo of the last commit from scratch, and compare it with the committed hashes
	$(BIN)/python -m tools.verify --dataset digits

audit: setup ## pictures that occur twice, and labels that are probably wrong: audit/
	$(BIN)/python -m tools.audit
	$(BIN)/python -m tools.audit labels

robustness: setup ## accuracy on corrupted test images, and confidence on other pictures: robustness/
	$(BIN)/python -m tools.robustness

doctor: setup ## check this checkout; each problem comes with the command that fixes it
	$(BIN)/python -m tools.doctor

train-distributed: setup ## the pipeline with WORKERS=2 processes on this machine that train one model
	$(BIN)/python -m tools.launch --workers $(or $(WORKERS),2)

report: setup ## the last run on one page that opens offline: report/index.html
	$(BIN)/python -m tools.report

export: setup ## the trained model for LiteRT and ONNX Runtime, checked on the test split: exports/NAME
	$(BIN)/python -m tools.export

serve: setup ## a page and an API that classify pictures with the trained model: http://127.0.0.1:8000
	$(BIN)/python -m tools.serve

plots: setup ## DVC's own page of charts, which opens offline: dvc_plots/index.html
	$(BIN)/python -m tools.plots

figures: setup ## draw the README's pictures from the last run
	$(BIN)/python -m tools.figures

test: setup ## the tests, on two cores
	$(BIN)/python -m pytest

quick: setup ## the unit tests: no DVC, no other processes, no training; under a minute
	$(BIN)/python -m pytest -m "not slow" --quick

faults: setup ## the slow tests: runs that are killed, tampered with, short of disk, shared; KILLS=60 for sixty kills
	$(BIN)/python -m pytest -m "$(or $(FAULTS),slow)"

bench: setup ## training speed of this project and of the tutorial's fit, in turns
	$(BIN)/python -m benchmarks.training

lint: setup ## lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup ## format the code, and fix what ruff can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

hooks: setup ## run lint before each commit: git's own hook, in .githooks/
	git config core.hooksPath .githooks

lock: setup ## resolve the dependencies again, for every platform and Python version
	$(BIN)/uv pip compile --quiet --upgrade --universal --fork-strategy fewest --python-version 3.11 --extra test \
	    --generate-hashes --no-emit-index-url --no-header --output-file requirements.txt pyproject.toml

clean: ## remove what make and the tests made, not data, models or DVC's cache
	rm -rf .venv demo logs report dvc_plots .pytest_cache .mypy_cache .ruff_cache .hypothesis
