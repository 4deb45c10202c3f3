# Two commands: `make repro` regenerates every table and figure, `make test` runs the notebooks and tests.
# Both make .venv, install requirements.lock and fetch the embedded data first, once.

PYTHON  ?= python3.11
PROFILE ?= sample
COMMA   := ,
ROOT    := $(CURDIR)

# Stages and notebooks start `python`, `papermill` and kernels by name: ours come first,
# whatever virtual environment the user is in.
export PATH := $(ROOT)/.venv/bin:$(PATH)
export VIRTUAL_ENV := $(ROOT)/.venv
unexport PYTHONHOME
unexport PYTHONPATH

DVC_YAML = $(if $(filter sample,$(PROFILE)),dvc.yaml,profiles/$(PROFILE)/dvc.yaml)

.DEFAULT_GOAL := help
.PHONY: help setup repro redraw test slow docs readme lab lock

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-7s %s\n", $$1, $$2}'

.venv/installed: requirements.lock settings.ini setup.py
	@command -v $(PYTHON) >/dev/null || { echo "pat needs Python 3.11: $(PYTHON) was not found. Install it, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v in ((3, 11), (3, 12)) else f"pat needs Python 3.11 (3.12 is untried), $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=/path/to/python3.11")'
	@echo "[setup] making .venv"
	@$(PYTHON) -m venv .venv
	@echo "[setup] installing the $$(grep -c == requirements.lock) packages of requirements.lock into .venv (a few minutes)"
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@# Cityscapes' own downloader; of its dependencies one is obsolete (typing), and what we call needs none that is not locked
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps cityscapesscripts==2.3.0
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

data/streets: data.dvc | .venv/installed
	@echo "[setup] fetching the embedded data (data.dvc)"
	@.venv/bin/dvc pull --quiet --remote embedded data.dvc
	@touch -c $@

setup: .venv/installed data/streets  ## make .venv, install, fetch the embedded data

repro: setup  ## regenerate every table and figure (PROFILE=sample, JOBS=n at a time, ADDRESS=of a Ray head), then compare with the reference run
	@echo "[repro] $(DVC_YAML), $(or $(JOBS),as many as cores or GPUs allow) at a time$(if $(RAY)$(ADDRESS),$(COMMA) trainings on Ray)"
	@.venv/bin/python -m pat.jobs $(DVC_YAML) $(if $(JOBS),--jobs $(JOBS)) $(if $(RAY),--ray) $(if $(ADDRESS),--address $(ADDRESS))
	@if [ -f tests/expected/$(PROFILE).json ]; then .venv/bin/python -m pat.report compare $(PROFILE); fi
	@echo "[repro] open results/$(PROFILE)/report.html"

DRAWN = table1 table2 table3 figure1 figure2 figure3 figure4 figure5 figure6 figure7 figure8 figure9 figure10 figure11 equations6_7 curves claims report
redraw: setup  ## draw tables, figures and report again from the results that are there: no data, no training
	@mkdir -p results/$(PROFILE)/notebooks
	@.venv/bin/dvc repro --force --single-item $(addprefix $(DVC_YAML):,$(DRAWN))

# Two notebooks or test files at a time, with threads of their own each: threads that spin while they wait would stop both.
PYTEST = .venv/bin/python -m pytest -n 2 --max-worker-restart 0 --dist loadfile
test slow: export OMP_WAIT_POLICY = passive
test: setup  ## run the notebooks (nbdev_test) and the tests (pytest), but for the slow ones
	@echo "[test] notebooks"
	@.venv/bin/nbdev_test --n_workers 2
	@echo "[test] tests/"
	@$(PYTEST) -m "not slow" tests

slow: setup  ## run the tests that take long: killed and edited pipelines, lost nodes, compiled and exported networks, the site
	@$(PYTEST) -m slow tests

docs: setup  ## build the documentation site from the stored outputs, in build/docs
	@PYTHONPATH=docs .venv/bin/sphinx-build -q -W --keep-going -c docs . build/docs
	@echo "[docs] open build/docs/index.html"

readme: setup  ## write README.md from nbs/index.ipynb and its stored outputs
	@.venv/bin/python docs/readme.py

lab: setup  ## open the notebooks in JupyterLab
	@.venv/bin/jupyter lab --notebook-dir nbs

lock:  ## write requirements.lock anew from the ranges in settings.ini (in a fresh environment)
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip install --quiet --editable ".[dev]"
	@{ sed -n '/^#/p' requirements.lock; build/lock/bin/python -m pip freeze --all --exclude-editable \
	   | grep -viE '^(pip|triton|nvidia-|cuda-)'; } > build/requirements.lock
	@mv build/requirements.lock requirements.lock
