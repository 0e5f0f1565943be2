# `make demo` and `make test` need Python 3.10+ and make, nothing else: both build their own virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The demo ends at the cell that is furthest from the start.
GOAL := '{"goal_cell": "farthest", "terminate_on_success": true}'

.PHONY: help install test test-fast test-long test-oldest test-newest docs bench demo check format benchmark clean

help:
	@echo "make demo       explore a maze without a reward, then master a goal; print coverage and success, draw the pictures"
	@echo "make test       lint, types, the documentation site and all tests"
	@echo "make test-fast  the tests without those marked slow, for the inner loop (under a minute)"
	@echo "make test-long  the tests that take minutes: fuzz, properties, runs that are killed at every moment (half an hour)"
	@echo "make test-oldest, make test-newest"
	@echo "                the fast tests with the oldest and the newest versions of all dependencies, in environments of their own"
	@echo "make docs       the documentation site, in docs/_build/html"
	@echo "make bench      speed of the parts of exploration, as ratios to Stable-Baselines3's SAC (two minutes)"
	@echo "make benchmark  the figures of docs/results.md (hours)"

# torch comes first and pinned: the library's own range would otherwise pick whatever build is newest.
$(VENV)/installed: requirements.txt setup.py sb3_exdm/version.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("sb3-exdm needs Python 3.10 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.txt)"
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

install: $(VENV)/installed

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sb3_exdm envs

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Warnings are errors. Without a network, links into other documentations are left out.
docs: install
	$(BIN)/python -m sphinx -q -W --keep-going -d docs/_build/doctrees docs docs/_build/html
	@echo "The site is in docs/_build/html/index.html."

test: check docs
	$(BIN)/python -m pytest

test-fast: install
	$(BIN)/python -m pytest -m "not slow and not long"

test-long: install
	$(BIN)/python -m pytest -m long

# The lower bounds are those of Python 3.11: older versions of numpy and scipy have no wheels for a newer one.
test-oldest: VENV := .venv-oldest
test-oldest: PYTHON := python3.11
test-oldest:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -r requirements-oldest.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps --editable .
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 1 -m "not slow and not long"

# In Python 3.13 there is no dm_control, which the modules of the robots import.
test-newest: VENV := .venv-newest
test-newest:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade --editable ".[all,tests]"
	$(VENV)/bin/python -m pip list
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 1 -m "not slow and not long" --doctest-ignore-import-errors

bench: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 -s --no-header --durations=0 --benchmark-columns=median,iqr,rounds --benchmark-sort=fullname tests/bench_speed.py

demo: install
	$(BIN)/exdm pretrain --env Maze2d-SquareA-v0 --steps 50000 --seed 0 --out runs/demo --overwrite
	$(BIN)/exdm finetune --pretrained runs/demo --steps 10000 --seed 0 --reuse-data --env-kwargs $(GOAL) --out runs/demo-goal --overwrite

benchmark: install
	$(BIN)/exdm benchmark coverage --out runs/benchmark
	$(BIN)/exdm benchmark finetune --out runs/finetune-benchmark
	$(BIN)/exdm benchmark control --out runs/control-benchmark

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest build dist docs/_build *.egg-info runs
